// What a program may do with a client, and what it is spared: wrong options, promises that nobody looks at, hooks that
// fail or call back, sockets that speak after their death, timers that are left, a worker that keeps the time.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { HeartbeatClient, SessionFull, Unconfirmed } from "../../heartbeat/web/static/heartbeat.js";
import { Exchange, comes_back, onopen, ping } from "./exchange.js";
import { Browser, settle } from "./fakes.js";

describe("what is no option is named in one sentence, and nothing is begun", () => {
    const wrong = [
        ["speed", 1],
        ["linkchanged", () => {}],
        ["probe_ms", -1],
        ["attempts", NaN],
        ["tick_ms", "soon"],
        ["patience_ms", {}],
    ];
    for (const [name, value] of wrong) {
        test(`${name}: ${value}`, async () => {
            const browser = new Browser();
            assert.throws(
                () => new HeartbeatClient("ws://test/ws", { ...browser.options({}), [name]: value }),
                (error) => error instanceof TypeError && error.message.includes(name) && !error.message.includes("\n"),
            );
            browser.assert_empty();
        });
    }

    test("a URL that is none of a WebSocket's", () => {
        const browser = new Browser();
        for (const url of ["http//nowhere", "ftp://test/", "", null]) {
            assert.throws(() => new HeartbeatClient(url, browser.options({})), { name: "SyntaxError" });
        }
        browser.assert_empty();
    });

    test("what is undefined is as if it were not there, and a URL may be an object", async () => {
        const url = new URL("wss://test/ws?token=x");
        const talk = new Exchange({
            url,
            options: { interval_ms: undefined, client_id: undefined, protocols: ["a.example"] },
        });
        await talk.follow(["opens"]);
        assert.equal(`${talk.socket.url}`, `${url}`);
        assert.deepEqual(talk.socket.protocols, ["a.example"]);
        await talk.end();
    });
});

describe("a token", () => {
    test("that is a function is asked anew for each connection", async () => {
        let made = 0;
        const [again, first_ping] = comes_back(1);
        const talk = new Exchange({ options: { token: () => `token ${++made}` } });
        await talk.follow([onopen(null, { token: "token 1" }), ping(1)]);
        await talk.follow([
            ["opened", {}],
            "answered",
            "is lost",
            ["advance", 1000],
            ["->", { ...again[1], token: "token 2" }],
            first_ping,
        ]);
        assert.equal(made, 2);
        await talk.end();
    });
});

describe("what is no message is refused, and nothing of it is sent", () => {
    const circle = { type: "chat" };
    circle.circle = circle;
    const wrong = [
        undefined, null, "chat", 7, [], {}, { type: 7 }, { type: "ping" }, { type: "onopen" }, { type: "ack" },
        { type: "error" }, { type: "drain" }, { type: "chat", seq: 1 }, { type: "chat", ack: 1 }, circle,
        { type: "chat", n: 1n },
    ]; // prettier-ignore
    for (const [index, message] of wrong.entries()) {
        test(`message ${index}`, async () => {
            const talk = new Exchange();
            await talk.follow(["opens"]);
            assert.throws(() => talk.client.send(message), TypeError);
            assert.throws(() => talk.client.send(message, { volatile: true }), TypeError);
            await talk.follow([["unconfirmed", 0]]);
            await talk.end();
        });
    }

    test("names that every object seems to have are names like any other", async () => {
        const talk = new Exchange();
        await talk.follow(["opens"]);
        for (const [index, type] of ["constructor", "toString", "__proto__", "hasOwnProperty"].entries()) {
            await talk.follow([
                ["send", type, { type }],
                ["->", { type, seq: index + 1, ack: index }],
                ["<-", { type, seq: index + 1, ack: index + 1 }],
                ["heard", { type }],
                ["done", type],
            ]);
        }
        await talk.end();
    });

    test("a message that is too large for the server is not kept", async () => {
        const talk = new Exchange();
        await talk.follow(["asks", ["opened", { limits: { message: 200 } }], "answered"]);
        const text = "x".repeat(200 - 64 - '{"type":"chat","text":""}'.length);
        await assert.rejects(talk.client.send({ type: "chat", text: `${text}x` }), SessionFull);
        await talk.follow([
            ["send", "a", { type: "chat", text }],
            ["->", { type: "chat", text, seq: 1, ack: 0 }],
        ]);
        await talk.end();
    });
});

describe("promises that nobody looks at", () => {
    const unhandled = [];
    process.on("unhandledRejection", (error) => unhandled.push(error));

    test("a lost session with a thousand of them makes no noise", async () => {
        const talk = new Exchange();
        const { client } = talk;
        await talk.follow(["opens"]);
        for (let n = 0; n < 1000; n++) client.send({ type: "chat", n });
        client.send({ type: "chat" });
        client.whenRoom();
        await talk.browser.advance(0);
        talk.socket.end(4001);
        await talk.browser.advance(0);
        client.whenOpen();
        client.send({ type: "chat" }, { volatile: true });
        assert.equal(talk.lost.length, 1);
        assert.equal(talk.lost[0].messages.length, 1000);
        client.close();
        client.send({ type: "chat" });
        client.whenRoom();
        client.whenOpen();
        await settle();
        assert.deepEqual(unhandled, []);
    });

    test("who looks is told all the same", async () => {
        const talk = new Exchange();
        await talk.follow(["opens"]);
        const promise = talk.client.send({ type: "chat" });
        talk.client.close();
        await assert.rejects(promise, (error) => error instanceof Unconfirmed && error.reason === "closed");
        await assert.rejects(
            promise.then(() => {}),
            Unconfirmed,
        );
    });

    test("whenOpen gives the client, as often as it is asked", async () => {
        const talk = new Exchange();
        const promises = [talk.client.whenOpen(), talk.client.whenOpen()];
        await talk.follow(["opens"]);
        promises.push(talk.client.whenOpen());
        assert.ok((await Promise.all(promises)).every((client) => client === talk.client));
        await talk.end();
    });
});

describe("hooks", () => {
    test("they may be overridden in a class, or assigned later", async () => {
        const told = [];
        class Mine extends HeartbeatClient {
            linkChanged({ event }) {
                told.push(event);
            }
        }
        const browser = new Browser();
        let socket;
        const client = new Mine(
            "ws://test/ws",
            browser.options({ opened: (one) => (socket = one), heard() {}, closed() {} }),
        );
        client.pongReceived = (rtt_ms) => told.push(rtt_ms);
        await browser.advance(250);
        socket.say('{"type":"ping","id":1,"status":"pong"}');
        await browser.advance(0);
        assert.deepEqual(told, ["open", 250]);
        client.close();
    });

    for (const hook of ["linkChanged", "messageReceived", "pongReceived", "sessionLost"]) {
        for (const how of ["throws", "rejects"]) {
            test(`${hook} ${how}: that is told to the log, and all goes on`, async () => {
                const fails = {
                    throws() {
                        throw new RangeError("no");
                    },
                    rejects: () => Promise.reject(new RangeError("no")),
                }[how];
                const talk = new Exchange();
                const { client, browser } = talk;
                client[hook] = fails;
                await browser.advance(0);
                talk.opened({});
                talk.say({ type: "ping", id: 1, status: "pong", ack: 0 });
                talk.say({ type: "chat", seq: 1, ack: 0 });
                await browser.advance(60);
                client.send({ type: "chat" });
                talk.socket.end(4001);
                await browser.advance(1000);
                talk.opened({ sid: "s-2" });
                await browser.advance(0);
                assert.equal(client.status.event, "open");
                const failed = browser.log.failed.map((line) => line.includes(hook) && line.includes("no"));
                assert.deepEqual(failed, Array(hook === "linkChanged" ? 4 : 1).fill(true));
                assert.ok(
                    talk.frames.some(([, text]) => text === '{"type":"ack","ack":1}'),
                    "it is handled all the same",
                );
                await talk.end();
            });
        }
    }

    for (const event of ["open", "suspect", "dead", "closed", "reconnecting", "unreachable"]) {
        for (const call of ["close", "retry", "send"]) {
            test(`linkChanged(${event}) may call ${call}()`, async () => {
                const talk = new Exchange({ options: { attempts: 1 } });
                const { client, browser } = talk;
                const { told } = talk;
                let calls = 0;
                client.linkChanged = (status) => {
                    told.push(status);
                    if (status.event === event && calls++ === 0)
                        client[call](...(call === "send" ? [{ type: "chat" }] : []));
                };
                await browser.advance(0);
                talk.opened({});
                talk.say({ type: "ping", id: 1, status: "pong", ack: 0 });
                await browser.advance(5000);
                if (["closed", "reconnecting", "unreachable"].includes(event)) talk.socket.drop();
                else browser.network.cut();
                if (event === "unreachable") browser.network.set("refuses");
                else browser.network.set("accepts");
                await browser.advance(60000);
                assert.equal(calls > 0, true, "it came to that");
                const sockets = browser.network.sockets.length;
                if (call === "close") {
                    // Nothing is told but that it is closed, and nothing is tried.
                    assert.deepEqual(
                        told
                            .slice(told.findIndex((status) => status.event === event) + 1)
                            .map((status) => status.event),
                        ["closed"],
                    );
                    assert.equal(browser.time.timers, 0);
                    await browser.advance(600_000);
                    assert.equal(browser.network.sockets.length, sockets);
                } else if (event !== "unreachable" || call === "retry") {
                    assert.ok(browser.network.open <= 1, "one connection at a time");
                }
                assert.deepEqual(browser.log.failed, []);
                await talk.end();
            });
        }
    }

    for (const hook of ["messageReceived", "pongReceived", "sessionLost"]) {
        test(`${hook} may close the client`, async () => {
            const talk = new Exchange();
            const { client, browser } = talk;
            client[hook] = () => client.close();
            await talk.follow(["asks", ["opened", {}], ["told", "open", {}]]);
            talk.say({ type: "chat", n: 1, seq: 1, ack: 0 });
            talk.say({ type: "chat", n: 2, seq: 2, ack: 0 });
            talk.say({ type: "ping", id: 1, status: "pong", ack: 0 });
            client.send({ type: "chat" });
            talk.socket.end(4001);
            await browser.advance(600_000);
            assert.equal(talk.told.at(-1).event, "closed");
            assert.deepEqual(browser.log.failed, []);
            await talk.end();
        });
    }

    test("a handler that returns the promise of a send does not wait for it", async () => {
        const talk = new Exchange();
        const { client } = talk;
        client.messageReceived = ({ n }) => client.send({ type: "answer", n });
        await talk.follow([
            "opens",
            ["<-", { type: "chat", n: 1, seq: 1, ack: 0 }],
            ["->", { type: "answer", n: 1, seq: 1, ack: 0 }],
            ["<-", { type: "chat", n: 2, seq: 2, ack: 0 }],
            ["->", { type: "answer", n: 2, seq: 2, ack: 1 }],
            ["advance", 55],
            ["->", { type: "ack", ack: 2 }],
        ]);
        await talk.end();
    });

    test("a message names itself by its session and its number", async () => {
        const talk = new Exchange();
        const named = [];
        talk.client.messageReceived = (message, { sid, seq }) => named.push([message, sid, seq]);
        await talk.follow(["opens", ["<-", { type: "chat", seq: 1, ack: 0 }], ["<-", { type: "chat" }]]);
        assert.deepEqual(named, [
            [{ type: "chat" }, "s-1", 1],
            [{ type: "chat" }, "s-1", null],
        ]);
        await talk.end();
    });
});

describe("a socket that is done with is not listened to", () => {
    const ends = {
        dead: [
            ["advance", 6000],
            ["->", { type: "ping", id: 2, ack: 0 }],
            ["cut"],
            ["advance", 6125],
            ["told", "suspect", {}],
            ["told", "dead", {}],
            ["told", "reconnecting", {}],
            ["network", "accepts"],
        ],
        lost: ["is lost"],
        "closed by us": [
            ["<-", { type: "chat", seq: 5, ack: 0 }],
            ["closes", 4010],
            ["told", "closed", {}],
            ["told", "reconnecting", {}],
        ],
        "gone with its page": [
            ["page", "leave", true],
            ["closes", null],
        ],
    };
    for (const [end, steps] of Object.entries(ends)) {
        test(`${end}: what still comes of it changes nothing, before the next is open and after`, async () => {
            const talk = new Exchange();
            await talk.follow(["opens"]);
            const ghost = talk.socket;
            await talk.follow(steps);
            const haunt = () => {
                for (const text of ['{"type":"chat","seq":1,"ack":0}', '{"type":"ping","id":9}', "nonsense"])
                    ghost.haunt(text);
            };
            haunt();
            await talk.follow([end === "gone with its page" ? ["page", "enter"] : ["advance", 1000], ...comes_back(1)]);
            haunt();
            await talk.follow([["opened", { resumed: true }], "answered"]);
            haunt();
            await talk.follow([["advance", 1000]]);
            assert.deepEqual(talk.browser.log.warned, []);
            await talk.end();
        });
    }

    test("closed, nothing comes of any", async () => {
        const talk = new Exchange();
        await talk.follow(["opens", ["close"], ["closes", 1000], ["told", "closed", { code: null }]]);
        talk.socket.haunt('{"type":"chat","seq":1,"ack":0}');
        await talk.follow([["advance", 60000]]);
        talk.browser.assert_empty();
    });

    test("one connection at a time: each that is given up was closed", async () => {
        const talk = new Exchange({ network: "hangs" });
        for (let n = 0; n < 5; n++) {
            await talk.browser.advance(10000);
            talk.client.retry();
            assert.equal(talk.browser.network.open, 1);
        }
        await talk.end();
    });
});

describe("timers", () => {
    test("a window longer than a timer can count does not make it spin", async () => {
        const talk = new Exchange({ options: { attempts: 0 } });
        await talk.follow([
            "asks",
            ["opened", { window_ms: 2 ** 40 }],
            "answered",
            ["lost", null],
            ["told", "closed", {}],
            ["told", "unreachable", {}],
        ]);
        const before = talk.browser.time.fired;
        await talk.browser.advance(3_600_000);
        assert.ok(talk.browser.time.fired - before < 100, "it looks seldom");
        await talk.end();
    });

    test("at rest it has one timer, and an hour of beats takes few of them", async () => {
        const talk = new Exchange();
        talk.server.heard = (text, socket) => {
            const { type, id } = JSON.parse(text);
            if (type === "ping") socket.say(`{"type":"ping","id":${id},"status":"pong","ack":0}`);
        };
        talk.browser.network.latency = 20;
        await talk.browser.advance(100);
        talk.opened({});
        await talk.browser.advance(1000);
        assert.equal(talk.browser.time.timers, 1);
        const before = talk.browser.time.fired;
        await talk.browser.advance(3_600_000);
        assert.ok(talk.browser.time.fired - before < 1300, `${talk.browser.time.fired - before} timers for 600 beats`);
        await talk.end();
    });

    test("where nothing is to be done there is none, which would keep a program alive", async () => {
        const talk = new Exchange({ network: "refuses", options: { attempts: 0 } });
        await talk.follow([["told", "unreachable", {}]]);
        assert.equal(talk.browser.time.timers, 0);
        await talk.end();
    });
});

describe("a worker may keep the time", () => {
    class Clock {
        asked = [];
        is_over = false;

        postMessage(delay) {
            this.asked.push(delay);
        }

        terminate() {
            this.is_over = true;
        }
    }

    test("it beats on where the timers of the page are slowed down, and ends with the client", async () => {
        const worker = new Clock();
        const talk = new Exchange({ options: { worker } });
        await talk.follow(["opens", ["page", "hide"], ["->", { type: "ping", id: 2, away: true, ack: 0 }]]);
        await talk.follow([
            ["<-", { type: "ping", id: 2, status: "pong", ack: 0 }],
            ["time", "slow_down", 600_000],
        ]);
        for (let id = 3; id < 8; id++) {
            // The worker rings when it was asked to.
            let waited = 0;
            while (waited < 6000) {
                const delay = worker.asked.at(-1);
                waited += delay;
                await talk.browser.advance(delay);
                worker.onmessage({ data: 0 });
                await talk.browser.advance(0);
            }
            await talk.follow([
                ["->", { type: "ping", id, away: true, ack: 0 }],
                ["<-", { type: "ping", id, status: "pong", ack: 0 }],
            ]);
        }
        talk.client.close();
        assert.ok(worker.is_over);
        worker.onmessage({ data: 0 });
        await talk.browser.advance(600_000);
        talk.browser.assert_empty();
    });

    test("it rings too early: nothing is done before its time", async () => {
        const worker = new Clock();
        const talk = new Exchange({ options: { worker } });
        await talk.follow(["opens"]);
        for (let n = 0; n < 5; n++) {
            await talk.browser.advance(1000);
            worker.onmessage({ data: 0 });
        }
        await talk.follow([]);
        await talk.end();
    });
});

describe("what the transport holds back", () => {
    test("messages go out as fast as the line takes them, so that a ping is never far from it", async () => {
        const talk = new Exchange();
        await talk.follow(["opens"]);
        talk.socket.clog();
        const text = "x".repeat(10_000);
        for (let n = 1; n <= 20; n++) talk.client.send({ type: "chat", n, text });
        await talk.browser.advance(0);
        const held = talk.socket.bufferedAmount;
        assert.ok(held > 60_000 && held < 100_000, `${held} bytes wait`);
        talk.socket.flow();
        await talk.browser.advance(500);
        assert.deepEqual(
            talk.frames.map(([, frame]) => JSON.parse(frame).n),
            Array.from({ length: 20 }, (_, at) => at + 1),
        );
        await talk.end();
    });

    test("a ping behind bytes of our own has its time from when it has left", async () => {
        const talk = new Exchange();
        await talk.follow(["opens", ["advance", 5900]]);
        talk.socket.clog();
        talk.client.send({ type: "chat", text: "x".repeat(50_000) });
        await talk.browser.advance(20000);
        assert.deepEqual(talk.told, []);
        talk.socket.flow();
        await talk.browser.advance(0);
        assert.deepEqual(
            talk.frames.map(([, frame]) => JSON.parse(frame).type),
            ["chat", "ping"],
        );
        talk.say({ type: "ping", id: 2, status: "pong", ack: 1 });
        await talk.browser.advance(1000);
        assert.deepEqual([talk.told, talk.client.status.state], [[], "acknowledged"]);
        await talk.end();
    });

    test("bytes that never leave are borne for a minute, and then it is over", async () => {
        const talk = new Exchange();
        await talk.follow(["opens", ["advance", 5900]]);
        talk.socket.clog();
        talk.client.send({ type: "chat", text: "x".repeat(50_000) });
        await talk.browser.advance(55_000);
        assert.deepEqual(talk.told, []);
        await talk.browser.advance(20_000);
        assert.deepEqual(talk.told.map(({ event }) => event).slice(0, 2), ["suspect", "dead"]);
        await talk.end();
    });

    test("what is no text is not taken, and not answered", async () => {
        const talk = new Exchange();
        await talk.follow(["opens"]);
        for (const data of [new ArrayBuffer(8), new Blob(["{}"])]) talk.socket.say(data);
        await talk.follow([["advance", 1000]]);
        assert.equal(talk.browser.log.warned.length, 2);
        await talk.end();
    });
});

test("without a page it does the same, and needs none of it", async () => {
    const talk = new Exchange({ options: { page: null } });
    await talk.follow([
        "opens",
        ["send", "a", { type: "chat" }],
        ["->", { type: "chat", seq: 1, ack: 0 }],
        "is lost",
        ["advance", 1000],
        ...comes_back(1, { sent: 1 }),
    ]);
    await talk.end();
});

test("the status is known at any time", async () => {
    const talk = new Exchange({ options: { client_id: "alice" } });
    const { client, browser } = talk;
    assert.equal(client.status.event, "closed");
    assert.deepEqual([client.status.state, client.status.level, client.status.client_id], [null, 0, null]);
    await browser.advance(0);
    talk.opened({ client_id: "alice", clients: 3 });
    await browser.advance(100);
    talk.say({ type: "ping", id: 1, status: "pong", clients: 4, ack: 0 });
    await browser.advance(1000);
    const { event, state, silent_for_ms, unanswered_for_ms, rtt_ms, level, client_id, clients } = client.status;
    assert.deepEqual(
        { event, state, silent_for_ms, unanswered_for_ms, rtt_ms, level, client_id, clients },
        {
            event: "open",
            state: "acknowledged",
            silent_for_ms: 1000,
            unanswered_for_ms: 0,
            rtt_ms: 100,
            level: 1,
            client_id: "alice",
            clients: 4,
        },
    );
    await browser.advance(6000);
    assert.deepEqual(
        [client.status.state, client.status.silent_for_ms, client.status.unanswered_for_ms],
        ["waiting", 7000, 1000],
    );
    await talk.end();
});

test("a worker that is not to be had is told to the log, and our own timer does", async () => {
    const browser = new Browser();
    const talk = new Exchange({ options: { worker: true }, browser });
    await talk.follow(["opens", ["advance", 6000], ["->", { type: "ping", id: 2, ack: 0 }]]);
    assert.deepEqual(browser.log.warned, ["ReferenceError: Worker is not defined"]);
    await talk.end();
});
