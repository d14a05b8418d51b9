// A whole client and a server that follows a script; the language of that is told in tests/vectors/exchanges.json.

import assert from "node:assert/strict";

import * as heartbeat from "../../heartbeat/web/static/heartbeat.js";
import { Browser } from "./fakes.js";
import { read } from "./vectors.js";

export const FILE = read("exchanges");

// The steps that scripts in more than one place are made of.
export const onopen = (session, more = {}) => ["->", { type: "onopen", v: 1, beats: "client", ...more, session }];
export const ping = (id, more = {}) => ["->", { type: "ping", id, ...more }];
export const pong = (id) => ["<-", { type: "ping", id, status: "pong", clients: 1, ack: 0 }];

/** A client with the session s-1 tries to resume it; `numbers` are `last` and `sent`, where they are not 0. */
export const comes_back = (attempt, numbers = {}) => [
    onopen({ sid: "s-1", epoch: "e-1", last: 0, sent: 0, ...numbers, try: attempt }, { client_id: "c-1" }),
    ping(1),
];

/** What happens by itself; everything else tells of what must have happened. */
const ACTIONS = {
    "<-": (talk, ...parts) => talk.say(...parts),
    opened: (talk, ...changes) => talk.opened(...changes),
    lost: (talk, code) => (code === null ? talk.socket.drop() : talk.socket.end(code, "why not")),
    network: (talk, mode) => talk.browser.network.set(mode),
    advance: (talk, ms) => talk.browser.advance(ms),
    send: (talk, name, message, volatile) => talk.promise(name, talk.client.send(message, { volatile: !!volatile })),
    retry: (talk) => talk.client.retry(),
    close: (talk) => talk.client.close(),
    whenRoom: (talk, name) => talk.promise(name, talk.client.whenRoom()),
    whenOpen: (talk, name) => talk.promise(name, talk.client.whenOpen()),
    finish: (talk, name) => talk.waiting.get(name).resolve(),
    fail: (talk, name) => talk.waiting.get(name).reject(new RangeError("it fails, as it was asked to")),
    // What only a browser has: it happens to the page, to its time and to its network.
    page: async (talk, what, ...given) => {
        talk.browser.page[what](...given);
        // Out of the cache it gives the storage a moment to tell what another page has written down.
        if (what === "enter") await talk.browser.advance(100);
    },
    time: (talk, what, ms) => talk.browser.time[what](ms),
    cut: (talk) => talk.browser.network.cut(),
};

const EXPECTED = {
    "->": (talk, message) => talk.frame(message),
    closes: (talk, ...codes) => talk.closes(codes),
    told: (talk, event, members) => talk.status(event, members),
    heard: (talk, message) => assert.deepEqual(talk.heard.shift(), message),
    done: (talk, name) => talk.outcome("done", name),
    full: (talk, name) => talk.outcome("SessionFull", name),
    unreachable: (talk, name) => talk.outcome("Unreachable", name),
    unconfirmed: (talk, what, reason) =>
        reason === undefined ? assert.equal(talk.client.unconfirmed, what) : talk.outcome("Unconfirmed", what, reason),
    "session lost": (talk, reason, messages) => talk.session_lost(reason, messages),
    pong: (talk, ...pong) => assert.deepEqual(talk.pong, pong),
};

/** A step with `by` in the place of this name, wherever that stands. */
function filled(value, name, by) {
    if (value === name) return by;
    if (Array.isArray(value)) return value.map((one) => filled(one, name, by));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, filled(one, name, by)]));
}

/** All exchanges that are JavaScript's, those that are told for each of several once for each. */
export function* exchanges() {
    for (const exchange of FILE.exchanges) {
        if (exchange.only === "python") continue;
        for (const one of exchange.each ?? [undefined]) {
            const name = exchange.each ? `${exchange.name} [${JSON.stringify(one)}]` : exchange.name;
            yield { ...exchange, name, steps: filled(exchange.steps, "$each", one) };
        }
    }
}

/** The steps, one after the other, without what is only a way to tell of them. */
function* steps_of(steps) {
    for (const step of steps) {
        if (typeof step === "string") yield* steps_of(FILE.common[step]);
        else if (!Array.isArray(step)) {
            if (step.only === "js") yield step.step;
        } else if (step[0] === "for") {
            const [, first, last, each] = step;
            for (let n = first; n <= last; n++) yield* steps_of(filled(each, "$n", n));
        } else yield step;
    }
}

const compact = (message) => (typeof message === "string" ? message : JSON.stringify(message));

/** One exchange: what is seen is kept in order, each kind for itself, until a step tells of it. */
export class Exchange {
    frames = [];
    told = [];
    heard = [];
    outcomes = new Map();
    lost = [];
    pong = null;
    waiting = new Map();

    /** `module` is the client's code, another one after a page was loaded anew. */
    constructor({ options, network, deaf, url = "ws://test/ws", browser = new Browser(), module = heartbeat } = {}) {
        const { frames } = this;
        this.browser = browser;
        this.module = module;
        browser.network.set(network ?? "accepts");
        this.server = {
            opened: (socket) => void (this.socket = socket),
            heard: (text) => void frames.push(["->", text]),
            closed: (code) => void frames.push(["closes", code ?? null]),
        };
        this.client = new module.HeartbeatClient(url, {
            ...browser.options(this.server, options),
            linkChanged: (status) => void this.told.push(status),
            sessionLost: (error) => void this.lost.push(error),
            pongReceived: (...pong) => void (this.pong = pong),
            ...(deaf ? {} : { messageReceived: (message, handling) => this.handle(message, handling) }),
        });
    }

    // The program at the client.

    handle(message, handling) {
        this.heard.push(message);
        if (message.do === "fail") throw new RangeError("it fails, as it was asked to");
        if (message.do === "reply") handling.reply({ type: "accepted", id: message.id });
        if (message.do === "send") this.client.send({ type: "sent", id: message.id });
        if (message.do === "close") this.client.close();
        if (message.do !== "slow") return undefined;
        return new Promise((resolve, reject) => this.waiting.set(message.id, { resolve, reject }));
    }

    promise(name, promise) {
        promise.then(
            () => this.outcomes.set(name, "done"),
            (error) => this.outcomes.set(name, error),
        );
    }

    // The server.

    say(...parts) {
        this.socket.say(compact(parts.length > 1 ? Object.assign({}, ...parts) : parts[0]));
    }

    opened(...changes) {
        const answer = Object.assign({}, FILE.answer, ...changes);
        this.say(Object.fromEntries(Object.entries(answer).filter(([, value]) => value !== null)));
    }

    // What must have happened.

    frame(message) {
        const [kind, text] = this.frames.shift() ?? [];
        assert.equal(kind, "->", kind ? `it ${kind} ${text}` : "nothing was written");
        if (message.type === "onopen") assert.deepEqual(JSON.parse(text), message);
        else assert.equal(text, compact(message));
    }

    closes(codes) {
        const [kind, code] = this.frames.shift() ?? [];
        assert.equal(kind, "closes", `it ${kind} ${code}`);
        assert.ok(codes.includes(code), `it closes ${code}`);
    }

    status(event, members = {}) {
        const status = this.told.shift();
        assert.equal(status?.event, event);
        const seen = Object.fromEntries(Object.keys(members).map((name) => [name, status[name]]));
        assert.deepEqual(seen, members);
    }

    outcome(kind, name, reason) {
        const error = this.outcomes.get(name);
        assert.ok(this.outcomes.delete(name), "nothing has become of it");
        if (kind === "done") assert.equal(error, kind);
        else assert.ok(error instanceof this.module[kind] && error instanceof Error, `${error}`);
        assert.equal(error.reason, reason);
    }

    session_lost(reason, messages) {
        const error = this.lost.shift();
        assert.ok(error instanceof this.module.Unconfirmed, `${error}`);
        assert.deepEqual([error.reason, [...error.messages]], [reason, messages]);
    }

    assert_nothing_else() {
        const { frames, told, heard, lost } = this;
        const outcomes = [...this.outcomes];
        const left = Object.entries({ frames, told, heard, outcomes, lost }).filter(([, those]) => those.length);
        assert.deepEqual(Object.fromEntries(left), {});
    }

    /** Follow the script to its end. */
    async follow(steps) {
        await this.browser.advance(0);
        for (const [number, [what, ...given]] of [...steps_of(steps)].entries()) {
            try {
                if (!(what in ACTIONS)) EXPECTED[what](this, ...given);
                else {
                    this.assert_nothing_else();
                    await ACTIONS[what](this, ...given);
                    await this.browser.advance(0);
                }
            } catch (error) {
                error.message = `at step ${number}, ${what} ${JSON.stringify(given)}: ${error.message}`;
                throw error;
            }
        }
        this.assert_nothing_else();
    }

    /** Close it; nothing is left of it: no timer, no socket, no listener, nothing written down. */
    async end() {
        this.client.close();
        await this.browser.advance(0);
        this.browser.assert_empty();
    }
}
