// A whole life of a client by chance, in virtual time, with a model of a server at the other end; and what must be true
// of it.

import assert from "node:assert/strict";

import { Browser, loaded_anew } from "./fakes.js";
import { Server } from "./model_server.js";

/** A source of chance that gives the same numbers for the same seed (mulberry32). */
export function chance_of(seed) {
    let state = seed >>> 0;
    return () => {
        state = (state + 0x6d2b79f5) >>> 0;
        let mixed = Math.imul(state ^ (state >>> 15), state | 1);
        mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
        return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
}

/** What may happen in a life, and how likely each is next to the others. */
const EVENTS = {
    up: 30,
    down: 30,
    wait: 25,
    drop: 4,
    drain: 1,
    cut: 3,
    refuse: 2,
    hang: 2,
    mend: 12,
    reload: 3,
    cache: 2,
    hide: 3,
    stall: 3,
    sleep: 2,
    clog: 2,
    retry: 3,
    crash: 0.4,
    absence: 0.4,
};

/**
 * The life: messages go up and down, numbered from 1; `heard` are those that the page has handled, `handled` those
 * that the server has, `lost` those of which either end was told that they were never confirmed.
 */
export class Walk {
    browser = new Browser();
    up = { sent: 0, arrived: [], lost: new Set(), full: new Set(), resolved: new Set() };
    down = { sent: 0, arrived: [], lost: new Set(), late: new Set() };
    happened = {};
    #events;

    /**
     * `loses`: sessions may end, so that messages may be lost, and then somebody must be told. `slow`: how many handlers
     * take their time. `kept`: how many messages a session keeps.
     */
    constructor(seed, { loses = false, slow = 0.1, kept = 1000 } = {}) {
        this.seed = seed;
        this.chance = chance_of(seed);
        this.loses = loses;
        this.slow = slow;
        this.kept = kept;
        this.#events = Object.entries(EVENTS).filter(([name]) => loses || !["crash", "absence"].includes(name));
        const { network, time } = this.browser;
        network.latency = this.pick([1, 20, 200]);
        this.server = new Server(time, {
            // Nobody is away for a day in a life that loses nothing.
            window_ms: loses ? 30000 : 86_400_000,
            kept,
            handled: ({ n }) => void this.up.arrived.push(n),
            lost: ({ n }) => void this.down.lost.add(n),
        });
    }

    pick(from) {
        return from[Math.floor(this.chance() * from.length)];
    }

    /** Load the page, for the first time or anew. */
    async load() {
        const { browser } = this;
        browser.reload();
        const { HeartbeatClient } = await loaded_anew();
        this.client = new HeartbeatClient("ws://test/ws", {
            ...browser.options(this.server, { random: this.chance }),
            messageReceived: ({ n }, { sid }) => this.#arrive(n, sid),
            sessionLost: ({ messages }) => messages.forEach(({ n }) => this.up.lost.add(n)),
        });
    }

    #arrive(n, sid) {
        if (this.chance() >= this.slow) return void this.down.arrived.push(n);
        // Handled when its handler has finished: whoever is loaded anew before has not handled it.
        const { client } = this;
        return new Promise((resolve) => {
            this.browser.time.deliver(this.chance() * 300, () => {
                if (this.client === client) this.#finished(n, sid);
                resolve();
            });
        });
    }

    #finished(n, sid) {
        // The handler of a session that is over meanwhile stands in nobody's line any more.
        if (this.server.present?.sid === sid) this.down.arrived.push(n);
        else this.down.late.add(n);
    }

    send_up() {
        const n = ++this.up.sent;
        // Some are so long that a few of them fill the buffer of a socket.
        const text = "x".repeat(this.chance() * (this.chance() < 0.02 ? 40_000 : 20));
        this.client.send({ type: "up", n, text }).then(
            () => this.up.resolved.add(n),
            (error) => (error.name === "SessionFull" ? this.up.full : this.up.lost).add(n),
        );
    }

    send_down() {
        if (this.server.send({ type: "down", n: this.down.sent + 1 })) this.down.sent++;
    }

    /** Live until so many messages have arrived, then mend all and wait until it is quiet. */
    async live(deliveries) {
        await this.load();
        // What waits for a first session is lost when the server turns out to be unreachable, which is told elsewhere.
        await this.pass(1000);
        while (this.up.arrived.length + this.down.arrived.length < deliveries) {
            const name = this.#draw();
            this.happened[name] = (this.happened[name] ?? 0) + 1;
            await HAPPENS[name](this);
            await this.pass(this.pick([0, 0, 10, 50, 300, 1000]) * this.chance());
        }
        await this.mend();
        await this.pass(60000);
        if (!["acknowledged", "waiting"].includes(this.client.status.state)) {
            this.client.retry();
            await this.pass(60000);
        }
        this.server.abandoned();
    }

    pass(ms) {
        return this.browser.advance(ms);
    }

    async mend() {
        const { browser } = this;
        browser.network.socket?.flow();
        browser.network.set("accepts");
        browser.time.slow_down(null);
        if (browser.page.document.hidden) browser.page.show();
    }

    #draw() {
        const all = this.#events.reduce((sum, [, weight]) => sum + weight, 0);
        let at = this.chance() * all;
        return this.#events.find(([, weight]) => (at -= weight) < 0)[0];
    }

    /** What must be true of a life that is over. */
    judge() {
        const { up, down, server, client, browser } = this;
        assert.deepEqual(server.breaches, [], "the client keeps the rules");
        assert.deepEqual(browser.log.failed, [], "nothing failed");
        for (const [name, { arrived }] of [
            ["up", up],
            ["down", down],
        ]) {
            for (let at = 1; at < arrived.length; at++) {
                assert.ok(arrived[at] > arrived[at - 1], `${name}: ${arrived[at]} came after ${arrived[at - 1]}`);
            }
        }
        const missing = ({ sent, arrived }, ...told) => {
            const known = new Set([...arrived, ...told.flatMap((those) => [...those])]);
            return Array.from({ length: sent }, (_, at) => at + 1).filter((n) => !known.has(n));
        };
        assert.deepEqual(missing(up, up.lost, up.full), [], "up: what did not arrive was told of");
        assert.deepEqual(missing(down, down.lost, down.late), [], "down: what did not arrive was told of");
        const arrived = new Set(up.arrived);
        assert.ok(
            [...up.resolved].every((n) => arrived.has(n)),
            "what is called handled was handled",
        );
        assert.equal(client.unconfirmed, 0, "all is confirmed");
        if (!this.loses) {
            const lost = [up.lost, down.lost, down.late].map(({ size }) => size);
            assert.deepEqual(lost, [0, 0, 0], "nothing was lost");
            assert.ok(up.full.size === 0 || this.kept < 1000, "there was room for all");
            assert.equal(server.epoch, 1);
        }
    }

    /** Close it; nothing is left of it. */
    async end() {
        this.client.close();
        await this.pass(1000);
        this.browser.assert_empty();
    }
}

const HAPPENS = {
    up: (walk) => burst(walk, () => walk.send_up()),
    down: (walk) => burst(walk, () => walk.send_down()),
    wait: (walk) => walk.pass(walk.pick([100, 1000, 4000, 10000]) * walk.chance()),
    drop: (walk) => walk.server.drop(walk.pick([null, null, 1001, 1011, 1012, 1013, 4000, 4008])),
    drain: (walk) => walk.browser.network.socket.say('{"type":"drain","min_ms":0,"max_ms":2000}'),
    cut: (walk) => walk.browser.network.cut(),
    refuse: (walk) => walk.browser.network.set("refuses"),
    hang: (walk) => walk.browser.network.set("hangs"),
    mend: (walk) => walk.mend(),
    reload: (walk) => {
        // What is said in the moment after a page came back is written down when it goes, and not before.
        if (walk.was_away) walk.browser.page.leave(false);
        walk.was_away = false;
        return walk.load();
    },
    cache: async (walk) => {
        const { browser, chance } = walk;
        browser.page.leave(true);
        await browser.advance(chance() * 3000);
        browser.page.enter();
        walk.was_away = true;
    },
    hide: async (walk) => {
        walk.browser.page.hide();
        walk.browser.time.slow_down(walk.pick([1000, 1000, 60000]));
    },
    stall: (walk) => walk.browser.time.stall(walk.pick([300, 3000, 12000]) * walk.chance()),
    sleep: (walk) => walk.browser.time.sleep(walk.pick([1000, 30000]) * walk.chance()),
    clog: (walk) => walk.browser.network.socket.clog(),
    retry: (walk) => walk.client.retry(),
    crash: (walk) => walk.server.crash(),
    absence: async (walk) => {
        walk.browser.network.set("refuses");
        walk.server.drop();
        await walk.pass(45000);
    },
};

function burst(walk, send) {
    for (let count = walk.pick([1, 1, 3, 20]); count > 0; count--) send();
}
