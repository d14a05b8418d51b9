// What happens to a page: it is hidden and shown, it goes into the browser's cache and comes out, its line goes and
// comes, its machine sleeps, it stands still, its timers are slowed down.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { Monitor } from "../../heartbeat/web/static/heartbeat.js";
import { Exchange, comes_back, onopen, ping, pong } from "./exchange.js";
import { TRANSITIONS } from "./vectors.js";

/** An exchange, from its opening to its end. */
function exchange(name, steps, options = {}) {
    test(name, async () => {
        const talk = new Exchange(options);
        await talk.follow(steps);
        await talk.end();
        assert.deepEqual(talk.browser.log.warned, []);
    });
}

/** A client with a server that answers at once, over 20 ms of network; `pings` are those that it was asked. */
function answering() {
    const talk = new Exchange();
    talk.browser.network.latency = 20;
    talk.pings = [];
    talk.server.heard = (text, socket) => {
        const message = JSON.parse(text);
        if (message.type === "onopen") return talk.opened({});
        talk.pings.push(message);
        return socket.say(`{"type":"ping","id":${message.id},"status":"pong","ack":0}`);
    };
    return talk;
}

describe("hidden and shown", () => {
    exchange("a page that is hidden says so at once, and in each ping", [
        "opens",
        ["advance", 1000],
        ["page", "hide"],
        ping(2, { away: true, ack: 0 }),
        pong(2),
        ["advance", 6000],
        ping(3, { away: true, ack: 0 }),
        pong(3),
        ["advance", 1000],
        ["page", "show"],
        ping(4, { ack: 0 }),
        pong(4),
        ["advance", 6000],
        ping(5, { ack: 0 }),
    ]);

    exchange("two pings are never out at once: who is shown while one is says it with the next", [
        "opens",
        ["advance", 6000],
        ping(2, { ack: 0 }),
        ["page", "hide"],
        ["advance", 1000],
        pong(2),
        ["advance", 6000],
        ping(3, { away: true, ack: 0 }),
    ]);

    test("a page that was hidden from the beginning says so with its first ping", async () => {
        const talk = new Exchange({ network: "hangs" });
        talk.browser.page.document.hidden = true;
        await talk.follow([["network", "accepts"], onopen(null), ping(1, { away: true })]);
        await talk.end();
    });

    exchange("who watches has no ping to hurry with", [
        "asks",
        ["opened", { beats: "server" }],
        "answered",
        ["page", "hide"],
        ["page", "show"],
        ["advance", 11000],
    ]);

    exchange("shown while it waits for the next attempt: it tries at once, and counts afresh", [
        "opens",
        "is lost",
        ["page", "hide"],
        ["advance", 500],
        ["page", "show"],
        ...comes_back(1),
        ["lost", null],
        ["told", "closed", {}],
        ["told", "reconnecting", { attempt: 1 }],
    ]);

    exchange(
        "shown when it is unreachable: it tries again",
        [
            ["told", "unreachable", {}],
            ["network", "accepts"],
            ["advance", 60000],
            ["page", "hide"],
            ["page", "show"],
            "opens",
        ],
        { network: "refuses", options: { attempts: 0 } },
    );

    exchange("shown when the server refused for good: it stays away until it is asked", [
        "opens",
        ["lost", 4401],
        ["told", "closed", {}],
        ["told", "unreachable", {}],
        ["page", "hide"],
        ["page", "show"],
        ["page", "line", true],
        ["advance", 60000],
        ["retry"],
        ...comes_back(1),
        ["lost", 1001],
        ["told", "closed", {}],
        ["told", "reconnecting", { attempt: 1 }],
        // What was refused once is forgotten with an attempt that was not.
        ["page", "show"],
        ...comes_back(2),
    ]);

    test("hidden, its timers slowed to one a minute: it convicts nobody, and is there when it is shown", async () => {
        const talk = answering();
        const { time, page } = talk.browser;
        await time.advance(1000);
        page.hide();
        time.slow_down(60000);
        await time.advance(600_000);
        const away = talk.pings.filter((one) => one.away).length;
        assert.ok(away >= 10, `${away} pings in ten minutes`);
        assert.ok(!talk.told.some(({ event }) => ["dead", "closed", "reconnecting"].includes(event)));
        time.slow_down(null);
        page.show();
        await time.advance(100);
        assert.deepEqual([talk.client.status.state, talk.pings.at(-1).away], ["acknowledged", undefined]);
        await talk.end();
    });
});

describe("the line goes and comes", () => {
    exchange("offline: it asks at once, and judges by the answer alone", [
        "opens",
        ["advance", 1000],
        ["page", "line", false],
        ["told", "suspect", {}],
        ping(2, { ack: 0 }),
        ["advance", 500],
        pong(2),
        ["told", "acknowledged", {}],
    ]);

    exchange("offline and it is true: dead within the probe, not after a minute", [
        "opens",
        ["advance", 1000],
        ["cut"],
        ["page", "line", false],
        ["told", "suspect", {}],
        ["advance", 2750],
        ["advance", 500],
        ["told", "dead", { reason: "silent" }],
        ["told", "reconnecting", { attempt: 1 }],
    ]);

    exchange("online: it asks at once whether the old connection lives", [
        "opens",
        ["advance", 1000],
        ["page", "line", true],
        ["told", "suspect", {}],
        ping(2, { ack: 0 }),
        pong(2),
        ["told", "acknowledged", {}],
    ]);

    exchange("online while it waits, or is unreachable: it tries at once", [
        "opens",
        ["network", "refuses"],
        "is lost",
        ["page", "line", false],
        ["advance", 500],
        ["page", "line", true],
        ["told", "reconnecting", { attempt: 1 }],
        ["advance", 1000],
        ["told", "reconnecting", { attempt: 2 }],
        ["advance", 4000],
        ["told", "reconnecting", { attempt: 3 }],
        ["advance", 16000],
        ["told", "unreachable", {}],
        ["network", "accepts"],
        ["page", "line", true],
        ...comes_back(5),
    ]);

    exchange("online while the last attempt hangs: it was not the last", [
        "opens",
        ["network", "hangs"],
        "is lost",
        ["advance", 1000],
        ["advance", 10000],
        ["told", "reconnecting", { attempt: 2 }],
        ["advance", 4000],
        ["advance", 10000],
        ["told", "reconnecting", { attempt: 3 }],
        ["advance", 17000],
        ["page", "line", true],
        ["advance", 9000],
        ["told", "reconnecting", { attempt: 1 }],
        ["network", "accepts"],
        ["advance", 1000],
        ...comes_back(4),
    ]);

    exchange("offline is no reason to try", [
        "opens",
        "is lost",
        ["page", "line", false],
        ["advance", 750],
        ["advance", 250],
        ...comes_back(1),
    ]);
});

describe("the page goes, and comes out of the browser's cache", () => {
    for (const persisted of [true, false]) {
        exchange(`pagehide (persisted: ${persisted}): the socket is closed, nothing is tried, the session is kept`, [
            "opens",
            ["send", "a", { type: "chat" }],
            ["->", { type: "chat", seq: 1, ack: 0 }],
            ["page", "leave", persisted],
            ["closes", null],
            ["advance", 60000],
            ["page", "line", true],
            ["page", "show"],
            ["advance", 1000],
            ["page", "enter"],
            ...comes_back(1, { sent: 1 }),
            ["opened", { resumed: true, last: 1 }],
            ["done", "a"],
            ["told", "open", {}],
        ]);
    }

    exchange("what is sent meanwhile waits", [
        "opens",
        ["page", "leave", true],
        ["closes", null],
        ["send", "a", { type: "chat" }],
        ["advance", 1000],
        ["page", "enter"],
        ...comes_back(1),
        ["opened", { resumed: true }],
        ["->", { type: "chat", seq: 1, ack: 0 }],
        ["told", "open", {}],
    ]);

    exchange("a page that comes out of the cache after the window asks, and is told that its session is over", [
        "opens",
        ["send", "a", { type: "chat" }],
        ["->", { type: "chat", seq: 1, ack: 0 }],
        ["page", "leave", true],
        ["closes", null],
        ["time", "stall", 200000],
        ["advance", 200000],
        ["page", "enter"],
        ...comes_back(1, { sent: 1 }),
        ["opened", { sid: "s-2", reason: "expired" }],
        ["session lost", "expired", [{ type: "chat" }]],
        ["unconfirmed", "a", "expired"],
        ["told", "open", {}],
    ]);

    exchange("the pageshow of a page that never went is none", ["opens", ["page", "enter", false], ["advance", 1000]]);

    exchange("a page that goes while it waits to try again tries when it is back", [
        "opens",
        "is lost",
        ["page", "leave", true],
        ["advance", 60000],
        ["page", "enter"],
        ...comes_back(1),
    ]);

    exchange(
        "a page that goes while its connect hangs",
        [["page", "leave", true], ["advance", 60000], ["network", "accepts"], ["page", "enter"], "opens"],
        { network: "hangs" },
    );

    exchange("closed while it is in the cache, it does not come back", [
        "opens",
        ["page", "leave", true],
        ["closes", null],
        ["close"],
        ["told", "closed", {}],
        ["page", "enter"],
        ["advance", 60000],
    ]);
});

describe("the machine sleeps, the page stands still", () => {
    exchange("frozen and resumed: it asks before it judges", [
        "opens",
        ["page", "freeze"],
        ["time", "stall", 4000],
        ["advance", 4000],
        ["page", "resume"],
        ["told", "suspect", {}],
        ping(2, { ack: 0 }),
        pong(2),
        ["told", "acknowledged", {}],
    ]);

    exchange("frozen for long, and its timers run before it is told: it asks once", [
        "opens",
        ["page", "freeze"],
        ["time", "stall", 30000],
        ["advance", 30000],
        ["told", "suspect", {}],
        ping(2, { ack: 0 }),
        ["page", "resume"],
        pong(2),
        ["told", "acknowledged", {}],
    ]);

    exchange("asleep for an hour: it asks first, and the link that lived lives on", [
        "opens",
        ["time", "sleep", 3_600_000],
        ["advance", 3_600_000],
        // Its timers have stood still with it.
        ["advance", 5500],
        ["told", "suspect", {}],
        ping(2, { ack: 0 }),
        ["advance", 2000],
        pong(2),
        ["told", "acknowledged", {}],
    ]);

    exchange("asleep, and the first that is seen of it is a message: it asks all the same", [
        "opens",
        ["time", "sleep", 600_000],
        ["advance", 600_000],
        ["<-", { type: "ack", ack: 0 }],
        ["told", "suspect", {}],
        ping(2, { ack: 0 }),
        ["told", "waiting", {}],
        pong(2),
        ["told", "acknowledged", {}],
    ]);

    exchange("asleep, and the link died: dead within the probe", [
        "opens",
        ["cut"],
        ["time", "sleep", 3_600_000],
        ["advance", 3_600_000],
        ["advance", 5500],
        ["told", "suspect", {}],
        ["advance", 2250],
        ["advance", 500],
        ["told", "dead", {}],
        ["told", "reconnecting", {}],
    ]);

    for (const stall of [2000, 8000]) {
        for (const at of [500, 2000, 5875, 6025, 8000, 8875, 9125, 11875]) {
            test(`it stood still for ${stall} ms, ${at} ms after its first pong, and blames nobody`, async () => {
                const talk = answering();
                const { time } = talk.browser;
                await time.advance(100);
                await time.advance(at);
                time.stall(stall);
                await time.advance(60000);
                const told = talk.told.map(({ event }) => event);
                // Who was away for so long asks first: that it is answered is no news before.
                assert.deepEqual(told.slice(0, 1), ["open"]);
                assert.ok(
                    told.slice(1).every((event) => stall > 5000 && ["suspect", "acknowledged"].includes(event)),
                    `${told}`,
                );
                // A round trip during which we stood still is none.
                assert.equal(talk.client.status.rtt_ms, 40);
                await talk.end();
            });
        }
    }

    exchange("a peer that died while we stood still is convicted later by as much", [
        "opens",
        ["advance", 6000],
        ping(2, { ack: 0 }),
        ["advance", 1000],
        ["cut"],
        ["time", "stall", 4000],
        ["advance", 4000],
        // Of its 3 s two have passed: how late we were is known to a second.
        ["advance", 750],
        ["advance", 500],
        ["told", "suspect", {}],
        ["advance", 2500],
        ["advance", 500],
        ["told", "dead", { reason: "silent" }],
        ["told", "reconnecting", {}],
    ]);

    exchange("a timer that is late by less than a tick is nobody's stall", [
        "opens",
        ["advance", 5900],
        ["time", "stall", 250],
        ["advance", 250],
        ping(2, { ack: 0 }),
        ["advance", 50],
        pong(2),
        ["pong", 50, 1],
    ]);
});

test("a ping is hurried where we ping and none is out", () => {
    const at = { now: 0, stalls: 0, given: 0, written: 0 };
    const monitor = new Monitor(TRANSITIONS.timing, false, at);
    monitor.hurry(1000);
    assert.equal(monitor.next_at(), 1000);
    at.now = 1000;
    assert.deepEqual(monitor.check(), ["ping", 1]);
    monitor.hurry(500);
    assert.equal(monitor.next_at(), 7000);
    const watcher = new Monitor(TRANSITIONS.timing, true, at);
    watcher.hurry(0);
    assert.equal(watcher.next_at(), 13000);
});
