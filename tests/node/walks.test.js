// Lives of a client by chance: tens of thousands of messages over links that break in every way, and pages that go and
// come back. Nothing is lost, doubled or out of order; where a session ends, whoever sent is told of what was not
// confirmed.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { Walk } from "./walk.js";

const seeds = (first, count) => Array.from({ length: count }, (_, at) => first + at);

async function live(seed, deliveries, options) {
    const walk = new Walk(seed, options);
    await walk.live(deliveries);
    walk.judge();
    await walk.end();
    return walk;
}

describe("in a session that lives nothing is lost", () => {
    for (const seed of seeds(1, 10)) test(`life ${seed}`, () => live(seed, 1200, {}));
});

describe("at the bound what has no room is told of at once, and nothing else is lost", () => {
    for (const seed of seeds(501, 5)) test(`life ${seed}`, () => live(seed, 800, { kept: 1 + (seed % 7) }));
});

describe("where sessions end, whoever sent is told of what was not confirmed", () => {
    for (const seed of seeds(1001, 10)) test(`life ${seed}`, () => live(seed, 1000, { loses: true }));
});
