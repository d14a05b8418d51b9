// What a hostile reader of the client tried once: each found a way, and finds it shut.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { HeartbeatClient } from "../../heartbeat/web/static/heartbeat.js";
import { Exchange, comes_back, ping, pong } from "./exchange.js";
import { Browser, Network, Page, loaded_anew } from "./fakes.js";
import { Server } from "./model_server.js";

const a = { type: "chat", text: "a" };
const b = { type: "chat", text: "b" };
const numbered = (message, seq) => ["->", { ...message, seq, ack: 0 }];

/** A client on a page of its own: its code knows nothing of the clients before. */
const page = async (more = {}) => new Exchange({ module: await loaded_anew(), ...more });

/** Another page of the same tab, to which the tab went from this one. */
const page_after = async ({ browser }, more = {}) => {
    const next = Object.assign(new Browser(), { storage: browser.storage });
    next.reload();
    return page({ browser: next, ...more });
};

/** Have this happen in a hook of the client's, too. */
function when(talk, name, then) {
    const hook = talk.client[name];
    talk.client[name] = (...told) => {
        hook(...told);
        return then(...told);
    };
}

/** The program sends the first of what was lost once more, as "again". */
const sends_again = (talk) =>
    when(talk, "sessionLost", ({ messages: [first] }) => talk.promise("again", talk.client.send(first)));

describe("a session that two pages have", () => {
    test("a duplicated tab that sent offline and was loaded anew: gap, and nothing is confirmed that never arrived", async () => {
        const browser = new Browser();
        const { time } = browser;
        const arrived = [];
        const server = new Server(time, { handled: ({ n }) => arrived.push(n), lost() {}, window_ms: 1e7, kept: 1000 });
        const open = async (tab, more) => {
            const { HeartbeatClient: Client } = await loaded_anew();
            return new Client("ws://test/ws", tab.options(server, more));
        };
        const original = await open(browser);
        await time.advance(100);
        original.send({ type: "chat", n: 1 });
        await time.advance(100);

        // The copy has no network, and sends; the original goes on in what is still the session of both.
        const network = new Network(time);
        network.set("refuses");
        const tab = Object.assign(new Browser(), { time, network, storage: browser.storage.copy() });
        tab.page = new Page(tab.storage);
        const copy = await open(tab);
        const confirmed = [];
        for (const message of [a, b]) {
            copy.send(message).then(
                () => confirmed.push(message),
                () => {},
            );
        }
        for (const n of [2, 3]) original.send({ type: "chat", n });
        await time.advance(200);
        tab.page.leave(false);
        tab.page = new Page(tab.storage);
        network.set("accepts");
        const lost = [];
        const anew = await open(tab, { sessionLost: ({ reason, messages }) => lost.push([reason, messages]) });
        await time.advance(3000);

        assert.deepEqual(lost, [["gap", [a, b]]]);
        assert.deepEqual([confirmed, server.refused], [[], { gap: 1 }]);
        original.send({ type: "chat", n: 4 });
        anew.send({ type: "chat", n: 5 });
        await time.advance(100);
        assert.deepEqual(arrived, [1, 2, 3, 4, 5]);
        for (const client of [original, copy, anew]) client.close();
        await time.advance(0);
        browser.assert_empty();
    });

    test("back from the cache, and sessionLost sends: it goes out behind what another page has left", async () => {
        const talk = await page();
        sends_again(talk);
        await talk.follow(["opens", "is lost", ["send", "a", a], ["page", "leave", true]]);
        const other = await page_after(talk, { network: "hangs" });
        await other.follow([
            ["send", "b", b],
            ["page", "leave", true],
        ]);
        await talk.follow([
            ["page", "enter"],
            ["session lost", "superseded", [a]],
            ["unconfirmed", "a", "superseded"],
            ["unconfirmed", 3],
            ...comes_back(2),
            ["opened", { resumed: true }],
            numbered(a, 1),
            numbered(b, 2),
            numbered(a, 3),
            "answered",
            ["<-", { type: "ack", ack: 3 }],
            ["done", "again"],
            ["unconfirmed", 0],
        ]);
        await talk.end();
    });

    test("the same with no session yet: what the other page has left goes out in the first", async () => {
        const talk = await page({ network: "hangs" });
        await talk.follow([
            ["send", "a", a],
            ["page", "leave", true],
        ]);
        const other = await page_after(talk, { network: "hangs" });
        await other.follow([
            ["send", "b", b],
            ["page", "leave", true],
        ]);
        await talk.follow([
            ["network", "accepts"],
            ["page", "enter"],
            ["session lost", "superseded", [a]],
            ["unconfirmed", "a", "superseded"],
            "asks",
            ["opened", {}],
            numbered(a, 1),
            numbered(b, 2),
            "answered",
            ["<-", { type: "ack", ack: 2 }],
            ["unconfirmed", 0],
        ]);
        await talk.end();
    });

    test("with no other page between there is nothing to be superseded by", async () => {
        const talk = await page({ network: "hangs" });
        await talk.follow([
            ["send", "a", a],
            ["page", "leave", true],
            ["network", "accepts"],
            ["page", "enter"],
            "asks",
            ["opened", {}],
            numbered(a, 1),
            "answered",
            ["<-", { type: "ack", ack: 1 }],
            ["done", "a"],
        ]);
        await talk.end();
    });
});

describe("hooks that do what they like", () => {
    const large = { type: "chat", text: "x".repeat(1000) };

    test("close() when told of what is too big for the session: closed is the last that is told", async () => {
        const talk = new Exchange({ network: "hangs" });
        when(talk, "sessionLost", () => talk.client.close());
        await talk.follow([
            ["send", "a", large],
            ["network", "accepts"],
            "asks",
            ["opened", { limits: { message: 200 } }],
            ["session lost", "too-big", [large]],
            ["told", "closed", {}],
            ["unconfirmed", "a", "too-big"],
            ["closes", 1000],
        ]);
        assert.equal(talk.client.status.event, "closed");
        assert.deepEqual(talk.browser.log.failed, []);
        await talk.end();
    });

    test("a new client, made when close() tells of what was lost, does not go on with that session", async () => {
        const talk = await page();
        const { browser, module } = talk;
        let next;
        when(talk, "sessionLost", () => (next = new Exchange({ browser, module })));
        await talk.follow([
            "opens",
            ["network", "refuses"],
            "is lost",
            ["send", "a", a],
            ["close"],
            ["session lost", "closed", [a]],
            ["unconfirmed", "a", "closed"],
            ["told", "closed", {}],
        ]);
        assert.equal(next.client.unconfirmed, 0);
        await next.follow(["opens"]);
        await next.end();
    });

    const questions = {
        status: ({ client }) => client.status,
        retry: ({ client }) => client.retry(),
        send: ({ client }) => client.send(a, { volatile: true }),
    };
    for (const [name, ask] of Object.entries(questions)) {
        test(`one probe only after a sleep, though a hook comes back to it by ${name}`, async () => {
            const talk = new Exchange();
            await talk.follow(["opens", ["advance", 6000], ping(2, { ack: 0 })]);
            when(talk, "pongReceived", () => ask(talk));
            // The pong is the first that the page sees when the machine is awake again.
            await talk.follow([["time", "sleep", 60000], pong(2)]);
            await talk.browser.advance(60000);
            // Beside the message that one of the hooks sends.
            const pings = talk.frames.splice(0).filter(([, text]) => JSON.parse(text).type === "ping");
            assert.deepEqual(pings, [["->", '{"type":"ping","id":3,"ack":0}']]);
            await talk.end();
        });
    }

    test("unreachable is told before anything of the attempt that a hook begins", async () => {
        const talk = new Exchange({ network: "hangs", options: { attempts: 0 } });
        const { browser } = talk;
        const happened = [];
        when(talk, "linkChanged", ({ event }) => happened.push([event, browser.network.open]));
        when(talk, "sessionLost", ({ reason }) => {
            happened.push([`lost: ${reason}`, browser.network.open]);
            browser.network.set("accepts");
            talk.client.retry();
        });
        await talk.follow([
            ["send", "a", a],
            ["network", "refuses"],
            ["told", "unreachable", {}],
            ["session lost", "unreachable", [a]],
            ["unconfirmed", "a", "unreachable"],
            "opens",
        ]);
        assert.deepEqual(happened, [
            ["unreachable", 0],
            ["lost: unreachable", 0],
            ["open", 1],
        ]);
        await talk.end();
    });

    test("a message sent when told of unreachable is refused like any other then", async () => {
        const talk = new Exchange({ network: "hangs", options: { attempts: 0 } });
        sends_again(talk);
        await talk.follow([
            ["send", "a", a],
            ["network", "refuses"],
            ["told", "unreachable", {}],
            ["session lost", "unreachable", [a]],
            ["unconfirmed", "a", "unreachable"],
            ["unconfirmed", "again", "unreachable"],
            ["unconfirmed", 0],
        ]);
        await talk.end();
    });

    test("close() when told of unreachable: closed is the last that is told", async () => {
        const talk = new Exchange({ network: "hangs", options: { attempts: 0 } });
        when(talk, "sessionLost", () => talk.client.close());
        await talk.follow([
            ["send", "a", a],
            ["network", "refuses"],
            ["told", "unreachable", {}],
            ["session lost", "unreachable", [a]],
            ["unconfirmed", "a", "unreachable"],
            ["told", "closed", {}],
        ]);
        await talk.end();
    });

    test("a thenable that is no promise, and gives none, is waited for", async () => {
        const talk = new Exchange();
        let finish;
        when(talk, "messageReceived", ({ text }) => text === "a" && { then: (done) => void (finish = done) });
        await talk.follow([
            "opens",
            ["<-", { ...a, seq: 1, ack: 0 }],
            ["heard", a],
            ["<-", { ...b, seq: 2, ack: 0 }],
            ["advance", 1000],
        ]);
        finish();
        await talk.follow([
            ["heard", b],
            ["advance", 55],
            ["->", { type: "ack", ack: 2 }],
        ]);
        await talk.end();
    });
});

describe("our own bytes do not put off the judgement of a dead line", () => {
    test("it dies between the answer to the opening and the first pong", async () => {
        const talk = new Exchange();
        await talk.follow([
            "asks",
            ["opened", {}],
            ["told", "open", {}],
            ["cut"],
            ["advance", 15400],
            ["told", "suspect", {}],
            ["told", "dead", { reason: "silent" }],
            ["told", "reconnecting", { attempt: 1 }],
        ]);
        await talk.end();
    });

    test("an ack is due in the very tick in which the ping is, which carries it", async () => {
        const talk = new Exchange();
        const written = [];
        await talk.follow(["opens", ["advance", 5950], ["<-", { ...a, seq: 1, ack: 0 }], ["heard", a], ["cut"]]);
        talk.server.sent = (text) => written.push(text);
        await talk.follow([
            ["advance", 50],
            ["advance", 2999],
            // The ping's deadline, and the probe's.
            ["advance", 2],
            ["told", "suspect", {}],
            ["advance", 2990],
            ["advance", 10],
            ["told", "dead", { reason: "silent" }],
            ["told", "reconnecting", { attempt: 1 }],
        ]);
        assert.deepEqual(written, ['{"type":"ping","id":2,"ack":1}', '{"type":"ping","id":3,"ack":1}']);
        await talk.end();
    });

    test("messages that come faster than they are handled are acknowledged all the while", async () => {
        const talk = new Exchange({ deaf: true });
        const { time } = talk.browser;
        const acks = [];
        when(talk, "messageReceived", () => time.work(20));
        await talk.follow(["opens"]);
        talk.server.sent = (text) => acks.push([time.now, JSON.parse(text).ack]);
        const began = time.now;
        for (let seq = 1; seq <= 900; seq++) talk.say({ type: "chat", seq, ack: 0 });
        await time.advance(0);
        const moments = [began, ...acks.map(([at]) => at), time.now];
        const longest = Math.max(...moments.slice(1).map((at, index) => at - moments[index]));
        assert.ok(time.now - began >= 18000);
        assert.ok(longest <= 100, `${longest} ms without an ack`);
        talk.frames.length = 0;
        await time.advance(100);
        assert.equal(acks.at(-1)[1], 900);
        await talk.end();
    });
});

describe("options", () => {
    const far = 1e10;
    const waits = [
        ["open_timeout_ms", far, "hangs"],
        ["delays_ms", [far], "refuses"],
        ["interval_ms", far, "accepts"],
    ];
    for (const [name, value, network] of waits) {
        test(`${name} of more than 31 bits is a long wait, and no busy timer`, async () => {
            const talk = new Exchange({ network, options: { [name]: value } });
            const { time } = talk.browser;
            // A server without sessions, which declares no interval of its own.
            talk.server.heard = (text, socket) =>
                JSON.parse(text).type === "ping" && socket.say(text.replace("}", ',"status":"pong"}'));
            await time.advance(6000);
            const before = time.fired;
            await time.advance(60000);
            assert.equal(time.fired - before, 0);
            await talk.end();
        });
    }

    test("and such a wait ends when it should", async () => {
        const talk = new Exchange({ network: "refuses", options: { delays_ms: [far] } });
        const { time, network } = talk.browser;
        await time.advance(1000);
        assert.equal(time.fired, 0);
        await time.advance(far - 2000);
        assert.equal(network.sockets.length, 1);
        await time.advance(2000);
        assert.equal(network.sockets.length, 2);
        await talk.end();
    });

    const wrong = [
        ["delays_ms", 1000],
        ["timeout_ms", 5000],
        ["interval_ms", [5000]],
        ["attempts", [3]],
    ];
    for (const [name, value] of wrong) {
        test(`${name}: ${JSON.stringify(value)} is a number in place of a list, or the other way round, and refused`, () => {
            const browser = new Browser();
            assert.throws(
                () => new HeartbeatClient("ws://test/ws", { ...browser.options({}), [name]: value }),
                (error) => error instanceof TypeError && error.message.includes(name),
            );
            browser.assert_empty();
        });
    }
});

describe("a storage", () => {
    test("whose setItem returns something is written to, and read by the next page", async () => {
        const items = new Map();
        const storage = {
            getItem: (key) => items.get(key) ?? null,
            setItem: (key, text) => items.set(key, text),
            removeItem: (key) => items.delete(key),
        };
        const talk = await page({ options: { storage } });
        await talk.follow(["opens", ["send", "a", a], numbered(a, 1)]);
        talk.browser.reload();
        const after = await page({ browser: talk.browser, options: { storage } });
        await after.follow([...comes_back(1, { sent: 1 }), ["opened", { resumed: true }], numbered(a, 1), "answered"]);
        assert.deepEqual(talk.browser.log.warned, []);
        await after.end();
        assert.equal(items.size, 0);
    });

    for (const moment of ["the beginning", "some moment"]) {
        test(`that throws in everything from ${moment} on costs nothing but the reload`, async () => {
            const browser = new Browser();
            const forbid = () => {
                for (const name of ["getItem", "setItem", "removeItem"]) {
                    browser.storage[name] = () => {
                        throw new DOMException(name, "SecurityError");
                    };
                }
            };
            if (moment === "the beginning") forbid();
            const talk = await page({ browser });
            await talk.follow(["opens"]);
            forbid();
            await talk.follow([
                ["send", "a", a],
                numbered(a, 1),
                ["<-", { type: "ack", ack: 1 }],
                ["done", "a"],
                ["send", "b", b],
                numbered(b, 2),
                "is lost",
                ["advance", 1000],
                ...comes_back(1, { sent: 2 }),
                ["opened", { resumed: true, last: 2 }],
                ["done", "b"],
                ["told", "open", {}],
            ]);
            assert.deepEqual([browser.log.warned.length, browser.log.failed], [1, []]);
            talk.client.close();
            await browser.advance(0);
            assert.deepEqual([browser.time.timers, browser.network.open, browser.page.listeners], [0, 0, 0]);
        });
    }
});
