// What the Python core and the JavaScript core must both do, as tests/vectors tells it; here JavaScript does. What has
// no export of its own is asked of a whole client. The same files are replayed by tests/core/test_vectors.py.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { Monitor } from "../../heartbeat/web/static/heartbeat.js";
import { Exchange } from "./exchange.js";
import { TRANSITIONS, ours, read, replayed } from "./vectors.js";

const near = (seen, expected, what) =>
    assert.ok(Math.abs(seen - expected) <= 1e-6, `${what}: ${seen} is not ${expected}`);

describe("the monitor does what the table says", () => {
    for (const scenario of ours(TRANSITIONS.scenarios)) {
        test(scenario.name, () => {
            for (const [step, expected, seen] of replayed(scenario)) assert.deepEqual(seen, expected, step);
        });
    }
});

test("the monitor walks as Python's does", () => {
    for (const walk of ours(read("walks"))) {
        for (const [step, expected, seen] of replayed(walk)) assert.deepEqual(seen, expected, `${walk.name}, ${step}`);
    }
});

test("the round trip is smoothed so, and the deadline follows", () => {
    for (const { name, tick_ms, low_ms, high_ms, steps } of read("rtt")) {
        const at = { now: 0, stalls: 0, given: 0, written: 0 };
        const timing = { ...TRANSITIONS.timing, tick_ms, timeout_ms: [low_ms, high_ms] };
        const monitor = new Monitor(timing, false, at);
        for (const [sample, srtt, rttvar, timeout] of steps) {
            if (sample !== null) {
                at.now += sample;
                near(monitor.answered(monitor.sent), sample, name);
                near(monitor.srtt, srtt, name);
                near(monitor.rttvar, rttvar, name);
            }
            monitor.hurry(0);
            assert.equal(monitor.check()[0], "ping");
            near(monitor.next_at() - at.now, timeout, name);
        }
    }
});

describe("the delays are these", () => {
    const { attempts, drained, restarted, final } = read("backoff");

    /** A client that was lost by `code`, after what the server said; the delay that follows. */
    async function delay_after(code, u, window_ms, ...said) {
        const talk = new Exchange({ options: { random: () => u } });
        await talk.follow(["asks", ["opened", { window_ms }], "answered", ...said]);
        talk.socket.end(code, "why not");
        await talk.browser.advance(0);
        const [closed, { event, delay_ms }] = talk.told;
        assert.equal(closed.event, "closed");
        await talk.end();
        return event === "reconnecting" ? delay_ms : event;
    }

    test("before an attempt", async () => {
        for (const { delays_ms, attempts: most, u, next_delay_ms } of attempts) {
            const chances = [...u];
            const options = { delays_ms, attempts: most, random: () => chances.shift() };
            const talk = new Exchange({ network: "refuses", options });
            for (const [index, expected] of next_delay_ms.entries()) {
                // A rounding longer than the delay.
                await talk.browser.advance((next_delay_ms[index - 1] ?? 0) + 0.01);
                const { event, delay_ms, attempt } = talk.told.shift();
                assert.deepEqual(
                    [event, attempt],
                    [expected === null ? "unreachable" : "reconnecting", Math.min(index + 1, most)],
                );
                if (expected !== null) near(delay_ms, expected, `attempt ${attempt}`);
            }
            await talk.end();
        }
    });

    test("after a drain", async () => {
        for (const { min_ms, max_ms, window_ms, u, delay_ms } of drained) {
            near(await delay_after(1012, u, window_ms, ["<-", { type: "drain", min_ms, max_ms }]), delay_ms, "drained");
        }
    });

    test("after a restart", async () => {
        for (const { u, delay_ms } of restarted) near(await delay_after(1012, u, 120000), delay_ms, "restarted");
    });

    test("none after a final code", async () => {
        const stays_away = [];
        // Those that mean anything, and some on either side of them.
        const codes = Array.from({ length: 5000 }, (_, code) => code).filter((code) =>
            /^(10[0-2]|[23]000|3999|4)/.test(code),
        );
        for (const code of codes.filter((code) => code >= 1000)) {
            if ((await delay_after(code, 0.5, 120000)) === "unreachable") stays_away.push(code);
        }
        assert.deepEqual(stays_away, final);
    });
});
