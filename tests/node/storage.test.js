// The session outlives the page: what is written down, when, and what the next page makes of it.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { Exchange, comes_back } from "./exchange.js";
import { Browser, Storage, loaded_anew } from "./fakes.js";

/** A client on a page of its own: its code knows nothing of the clients before. */
const page = async (more = {}) => new Exchange({ module: await loaded_anew(), ...more });

/** The page is loaded anew: another client, with other code, and the same storage. */
async function reload({ browser }, more = {}) {
    browser.reload();
    await browser.advance(0);
    return page({ browser, ...more });
}

describe("a page that is loaded anew goes on where the one before was", () => {
    test("numbers, messages, and one attempt more each time", async () => {
        let talk = await page();
        await talk.follow([
            "opens",
            ["send", "a", { type: "chat", n: 1 }],
            ["->", { type: "chat", n: 1, seq: 1, ack: 0 }],
            ["send", "b", { type: "chat", n: 2 }],
            ["->", { type: "chat", n: 2, seq: 2, ack: 0 }],
            ["<-", { type: "chat", n: 10, seq: 1, ack: 1 }],
            ["heard", { type: "chat", n: 10 }],
            ["done", "a"],
        ]);
        talk = await reload(talk);
        assert.equal(talk.client.unconfirmed, 1);
        await talk.follow(comes_back(1, { last: 1, sent: 2 }));
        talk = await reload(talk);
        await talk.follow([
            ...comes_back(2, { last: 1, sent: 2 }),
            ["send", "c", { type: "chat", n: 3 }],
            ["opened", { resumed: true, last: 1, sent: 2 }],
            ["->", { type: "chat", n: 2, seq: 2, ack: 1 }],
            ["->", { type: "chat", n: 3, seq: 3, ack: 1 }],
            "answered",
            ["<-", { type: "chat", n: 11, seq: 2, ack: 3 }],
            ["heard", { type: "chat", n: 11 }],
            ["done", "c"],
            ["unconfirmed", 0],
        ]);
        await talk.end();
    });

    test("what was sent before there was a session waits for it", async () => {
        let talk = await page({ network: "hangs" });
        await talk.follow([["send", "a", { type: "chat" }]]);
        talk = await reload(talk);
        await talk.follow(["asks", ["opened", {}], ["->", { type: "chat", seq: 1, ack: 0 }], ["told", "open", {}]]);
        await talk.end();
    });

    test("a message whose handler had not finished comes again", async () => {
        const slow = { type: "chat", id: 1, do: "slow" };
        let talk = await page();
        await talk.follow(["opens", ["<-", { ...slow, seq: 1, ack: 0 }], ["heard", slow]]);
        talk = await reload(talk);
        await talk.follow([
            ...comes_back(1),
            ["opened", { resumed: true, sent: 1 }],
            "answered",
            ["<-", { ...slow, seq: 1, ack: 0 }],
            ["heard", slow],
            ["finish", 1],
            ["advance", 55],
            ["->", { type: "ack", ack: 1 }],
        ]);
        await talk.end();
    });

    test("the session may be over: it is told what was not confirmed, though nobody waits any more", async () => {
        let talk = await page();
        await talk.follow(["opens", ["send", "a", { type: "chat" }], ["->", { type: "chat", seq: 1, ack: 0 }]]);
        talk = await reload(talk);
        await talk.follow([
            ...comes_back(1, { sent: 1 }),
            ["opened", { sid: "s-2", reason: "unknown" }],
            ["session lost", "unknown", [{ type: "chat" }]],
            ["told", "open", {}],
        ]);
        await talk.end();
    });

    test("a window is counted afresh from there, and its end is told", async () => {
        let talk = await page();
        await talk.follow(["asks", ["opened", { window_ms: 20000 }], "answered"]);
        await talk.follow([
            ["send", "a", { type: "chat" }],
            ["->", { type: "chat", seq: 1, ack: 0 }],
        ]);
        await talk.browser.advance(10000);
        talk = await reload(talk, { network: "hangs", options: { open_timeout_ms: 60000 } });
        await talk.follow([
            ["advance", 19750],
            ["advance", 500],
            ["session lost", "expired", [{ type: "chat" }]],
        ]);
        await talk.end();
    });

    test("a client that was closed leaves nothing to go on with", async () => {
        let talk = await page();
        await talk.follow(["opens"]);
        talk.client.close();
        talk = await reload(talk);
        await talk.follow(["asks"]);
        await talk.end();
    });

    test("what a server refused for good can be asked again", async () => {
        let talk = await page();
        await talk.follow(["opens", ["lost", 4401], ["told", "closed", {}], ["told", "unreachable", {}]]);
        talk = await reload(talk);
        await talk.follow(comes_back(1));
        await talk.end();
    });
});

test("nothing is told to the server that a page loaded anew would not know", async () => {
    const talk = await page();
    const { browser } = talk;
    const captured = [];
    talk.server.sent = (text) => captured.push([JSON.parse(text), browser.storage.copy()]);
    await talk.follow([
        "opens",
        ["send", "a", { type: "chat" }],
        ["->", { type: "chat", seq: 1, ack: 0 }],
        ["<-", { type: "chat", seq: 1, ack: 1 }],
        ["heard", { type: "chat" }],
        ["done", "a"],
        ["advance", 55],
        ["->", { type: "ack", ack: 1 }],
        ["<-", { type: "chat", seq: 2, ack: 1 }],
        ["heard", { type: "chat" }],
        ["<-", { type: "ping", id: 5, ack: 1 }],
        ["->", { type: "ping", id: 5, status: "pong", ack: 2 }],
        ["<-", { type: "chat", id: 1, do: "send", seq: 3, ack: 1 }],
        ["heard", { type: "chat", id: 1, do: "send" }],
        ["->", { type: "sent", id: 1, seq: 2, ack: 2 }],
        "is lost",
        ["advance", 1000],
        ...comes_back(1, { last: 3, sent: 2 }),
        ["opened", { resumed: true, last: 1, sent: 3 }],
        ["->", { type: "sent", id: 1, seq: 2, ack: 3 }],
        ["told", "open", {}],
    ]);
    let looked_at = 0;
    for (const [{ session, seq = 0, ack = 0 }, storage] of captured) {
        if (!session && !seq && !ack) continue;
        const next = Object.assign(new Browser(), { storage });
        next.reload();
        const after = await page({ browser: next });
        await next.advance(0);
        const said = JSON.parse(after.frames[0][1]).session;
        assert.ok(said.try > (session?.try ?? 0), "its attempt is a later one");
        assert.ok(said.sent >= seq && said.last >= ack, `after ${seq} and ${ack} it says ${JSON.stringify(said)}`);
        looked_at++;
    }
    assert.equal(looked_at, 6);
    await talk.end();
});

describe("a storage that fails", () => {
    for (const refuses of ["setItem", "getItem"]) {
        test(`${refuses} throws from the beginning: it goes on in memory, and says so once`, async () => {
            const browser = new Browser();
            browser.storage.refuses = refuses;
            let talk = await page({ browser });
            await talk.follow([
                "opens",
                ["send", "a", { type: "chat" }],
                ["->", { type: "chat", seq: 1, ack: 0 }],
                "is lost",
                ["advance", 1000],
                ...comes_back(1, { sent: 1 }),
                ["opened", { resumed: true }],
                ["->", { type: "chat", seq: 1, ack: 0 }],
                ["told", "open", {}],
            ]);
            assert.equal(browser.log.warned.length, 1);
            browser.storage.refuses = null;
            talk = await reload(talk);
            await talk.follow(["asks"]);
            await talk.end();
        });
    }

    test("it is full later: what was written is taken away, for an old copy must never be resumed", async () => {
        let talk = await page();
        const { browser } = talk;
        await talk.follow(["opens", ["send", "a", { type: "chat" }], ["->", { type: "chat", seq: 1, ack: 0 }]]);
        browser.storage.refuses = "setItem";
        await talk.follow([
            ["send", "b", { type: "chat" }],
            ["->", { type: "chat", seq: 2, ack: 0 }],
        ]);
        assert.deepEqual([...browser.storage.items], []);
        assert.equal(browser.log.warned.length, 1);
        browser.storage.refuses = null;
        await talk.follow([
            ["send", "c", { type: "chat" }],
            ["->", { type: "chat", seq: 3, ack: 0 }],
        ]);
        assert.deepEqual([...browser.storage.items], []);
        talk = await reload(talk);
        await talk.follow(["asks"]);
        await talk.end();
    });

    test("all of it throws", async () => {
        const browser = new Browser();
        for (const name of ["getItem", "setItem", "removeItem"]) {
            browser.storage[name] = () => {
                throw new DOMException(name, "SecurityError");
            };
        }
        const talk = await page({ browser });
        await talk.follow(["opens", ["send", "a", { type: "chat" }], ["->", { type: "chat", seq: 1, ack: 0 }]]);
        talk.client.close();
    });

    test("to look at it is forbidden", async () => {
        const browser = new Browser();
        Object.defineProperty(browser.page, "sessionStorage", {
            get() {
                throw new DOMException("cookies are off", "SecurityError");
            },
        });
        const talk = await page({ browser });
        await talk.follow(["opens"]);
        await talk.end();
    });

    test("null: nothing is written down, and nothing is said", async () => {
        const talk = await page({ options: { storage: null } });
        await talk.follow(["opens", ["send", "a", { type: "chat" }], ["->", { type: "chat", seq: 1, ack: 0 }]]);
        assert.deepEqual([[...talk.browser.storage.items], talk.browser.log.warned], [[], []]);
        await talk.end();
    });

    for (const text of ["", "{", "null", "[]", "{}", "7", '"text"', "[7]", "[null]"]) {
        test(`what is written there is nothing of ours (${text}): it begins afresh`, async () => {
            const storage = new Storage();
            storage.setItem("shop", text);
            const talk = await page({ options: { storage, key: "shop" } });
            await talk.follow(["opens", ["send", "a", { type: "chat" }], ["->", { type: "chat", seq: 1, ack: 0 }]]);
            await talk.end();
            assert.deepEqual([...storage.items], []);
        });
    }
});

test("what is sent in the moment in which a page looks what another has left is written down when it goes again", async () => {
    const browser = new Browser();
    const module = await loaded_anew();
    const talk = new Exchange({ browser, module });
    await talk.follow(["opens", ["page", "leave", true], ["closes", null], ["advance", 1000]]);
    browser.page.enter();
    talk.client.send({ type: "chat" });
    await browser.advance(50);
    browser.page.leave(false);
    browser.reload();
    const after = new Exchange({ browser, module: await loaded_anew() });
    await after.follow([
        ...comes_back(1),
        ["opened", { resumed: true }],
        ["->", { type: "chat", seq: 1, ack: 0 }],
        ["told", "open", {}],
    ]);
    await after.end();
});

describe("two of them", () => {
    test("two clients of one page have two sessions, and close each its own", async () => {
        const browser = new Browser();
        const module = await loaded_anew();
        const one = new Exchange({ browser, module });
        await one.follow(["opens"]);
        const two = new Exchange({ browser, module });
        await two.follow(["asks", ["opened", { sid: "s-2", client_id: "c-2" }], ["told", "open", {}]]);
        assert.equal(browser.storage.items.size, 2);
        two.client.close();
        assert.equal(browser.storage.items.size, 1);
        const again = new Exchange({ browser, module });
        await again.follow(["asks"]);
        again.client.close();
        one.client.close();
        await browser.advance(0);
        browser.assert_empty();
    });

    test("a client that is closed leaves its name to the next, which a page loaded anew finds under it", async () => {
        const browser = new Browser();
        const module = await loaded_anew();
        const before = new Exchange({ browser, module });
        await before.follow(["opens"]);
        before.client.close();
        await new Exchange({ browser, module }).follow(["opens"]);
        const talk = await reload({ browser });
        await talk.follow(comes_back(1));
        await talk.end();
    });

    test("both go on when the page is loaded anew", async () => {
        const browser = new Browser();
        let module = await loaded_anew();
        for (const sid of ["s-1", "s-2"]) {
            const talk = new Exchange({ browser, module });
            await talk.follow(["asks", ["opened", { sid }], ["told", "open", {}]]);
        }
        browser.reload();
        module = await loaded_anew();
        const talks = [];
        for (const sid of ["s-1", "s-2"]) {
            const talk = new Exchange({ browser, module });
            talks.push(talk);
            await browser.advance(0);
            assert.equal(JSON.parse(talk.frames[0][1]).session.sid, sid);
        }
        for (const { client } of talks) client.close();
        await browser.advance(0);
        browser.assert_empty();
    });

    test("the session of another server, or of another key, is another", async () => {
        const browser = new Browser();
        await (await page({ browser })).follow(["opens"]);
        browser.reload();
        const module = await loaded_anew();
        for (const more of [{ url: "ws://other/ws" }, { options: { key: "mine" } }]) {
            const talk = await page({ browser, module, ...more });
            await talk.follow(["asks"]);
            talk.client.close();
        }
        const same = new Exchange({ browser, module, url: "ws://test/ws?token=another" });
        await same.follow(comes_back(1));
        await same.end();
    });

    test("a duplicated tab copies the session: who comes second has it, the other opens afresh, in peace", async () => {
        const first = await page();
        await first.follow(["opens", ["send", "a", { type: "chat" }], ["->", { type: "chat", seq: 1, ack: 0 }]]);
        const tab = Object.assign(new Browser(), { storage: first.browser.storage.copy() });
        tab.reload();
        const second = await page({ browser: tab });
        await second.follow([...comes_back(1, { sent: 1 }), ["opened", { resumed: true, last: 1 }], "answered"]);
        await first.follow([
            ["lost", 4001],
            ["session lost", "superseded", [{ type: "chat" }]],
            ["unconfirmed", "a", "superseded"],
            ["told", "closed", { code: 4001 }],
            ["told", "reconnecting", { attempt: 1 }],
            ["advance", 1000],
            "asks",
            ["opened", { sid: "s-2" }],
            "answered",
        ]);
        for (const talk of [first, second]) {
            await talk.follow([
                ["send", "x", { type: "chat" }],
                ["->", { type: "chat", seq: talk === first ? 1 : 2, ack: 0 }],
            ]);
            await talk.end();
        }
    });

    test("a page out of the cache whose session another page has carried on leaves it to that", async () => {
        const browser = new Browser();
        const talk = await page({ browser });
        await talk.follow([
            "opens",
            ["send", "a", { type: "chat" }],
            ["->", { type: "chat", seq: 1, ack: 0 }],
            ["page", "leave", true],
            ["closes", null],
        ]);
        // The tab went to another page of the site, which went on with the session, and went in its turn.
        const between = Object.assign(new Browser(), { storage: browser.storage });
        between.reload();
        const other = await page({ browser: between });
        await other.follow([
            ...comes_back(1, { sent: 1 }),
            ["opened", { resumed: true, last: 1 }],
            "answered",
            ["send", "b", { type: "chat" }],
            ["->", { type: "chat", seq: 2, ack: 0 }],
            ["page", "leave", true],
            ["closes", null],
        ]);
        await talk.follow([
            ["page", "enter"],
            ["session lost", "superseded", [{ type: "chat" }]],
            ["unconfirmed", "a", "superseded"],
            ...comes_back(2, { sent: 2 }),
            ["opened", { resumed: true, last: 1 }],
            ["->", { type: "chat", seq: 2, ack: 0 }],
            ["told", "open", {}],
        ]);
        await talk.end();
    });
});
