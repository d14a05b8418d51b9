// What a whole client does with a server that follows a script, as tests/vectors/exchanges.json tells it; here
// JavaScript's. Python's client is held to the same file by tests/wire/test_client_vectors.py.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { Exchange, exchanges } from "./exchange.js";
import { read } from "./vectors.js";

describe("the client does what the exchange tells", () => {
    for (const exchange of exchanges()) {
        test(exchange.name, async () => {
            const talk = new Exchange(exchange);
            await talk.follow(exchange.steps);
            await talk.end();
        });
    }
});

describe("a ping is answered so", () => {
    const answered = async (steps, { ping, rebuilt }, pong) => {
        const talk = new Exchange();
        await talk.follow(steps);
        talk.say(ping);
        await talk.browser.advance(0);
        const [[, answer], ...more] = talk.frames;
        assert.deepEqual([JSON.parse(answer), more], [JSON.parse(pong), []]);
        if (!rebuilt) assert.equal(answer, pong);
        await talk.end();
    };

    for (const vector of read("wire").pongs) {
        const { name, ping, pong, in_session = pong } = vector;
        test(`${name}, in a session`, () => {
            // So that an ack of the asker's is one that it may send.
            const sent = [
                "for",
                1,
                3,
                [
                    ["send", "$n", { type: "chat" }],
                    ["->", { type: "chat", seq: "$n", ack: 0 }],
                ],
            ];
            const handled = [
                "for",
                1,
                17,
                [
                    ["<-", { type: "chat", seq: "$n", ack: 0 }],
                    ["heard", { type: "chat" }],
                ],
            ];
            return answered(["opens", sent, handled], vector, in_session.replace("…", '"status":"pong","ack":17'));
        });
        // Where there is no session a ping with a status is none that is answered.
        if ((JSON.parse(ping).status ?? null) !== null) continue;
        test(`${name}, at level 0`, () => {
            const opening = ["asks", ["<-", { type: "ping", status: "pong" }], ["told", "open", {}]];
            return answered(opening, vector, pong.replace("…", '"status":"pong"'));
        });
    }
});

describe("a client answers nothing but a ping", () => {
    for (const { name, only, level, text, answer } of read("wire").messages) {
        if (only === "python") continue;
        test(name, async () => {
            const talk = new Exchange({ deaf: true });
            const pong = '{"type":"ping","id":1,"status":"pong"}';
            await talk.follow([
                "asks",
                level ? ["opened", {}] : ["<-", pong],
                ["told", "open", { level }],
                ["<-", pong],
                ["<-", text],
                ...(answer === null ? [] : [["->", answer]]),
                ["advance", 100],
            ]);
            assert.equal(talk.client.status.state, "acknowledged");
            await talk.end();
        });
    }
});
