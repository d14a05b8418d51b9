// The browser's end of the heartbeat: whether the server is still there, and a session that loses nothing.
//
// A page cannot send ping frames and is told of a dead line after a minute, so it asks by a small JSON ping and judges
// the answer. Never waits for a dead socket to close, never blames the server for the time the page itself stood still.
// States, rules and words are those of the Python package; the wire is told in docs/protocol.md. Times are in
// milliseconds. What looks terse is: each page that loads it pays for every byte.

const { max, min, abs } = Math;
const { parse, stringify } = JSON;
const nothing = () => {};
const size_of = (text) => new TextEncoder().encode(text).length;
const whole = Number.isInteger;
/** What a server declared, or our own where that is no number in reason. */
const number = (value, least, otherwise) => (value >= least ? min(value, 864e5) : otherwise);

/** What a frame adds to a message, in bytes: `seq` and `ack`, with numbers as long as they get. */
const MEMBERS = 64;
/** Types that are the heartbeat's own. */
const RESERVED = ["onopen", "ping", "ack", "error", "drain"];
/** The name of the Worker in which this module is a clock. */
const CLOCK = "heartbeat-clock";
/** A session that is yet to be declared: who it is, its numbers, and what it may keep. */
const NEW = {
    sid: null,
    attempt: 0,
    sent: 0,
    reached: 0,
    confirmed: 0,
    handled: 0,
    most: 1000,
    bytes: 1048576,
    largest: 65536,
};

const DEFAULTS = {
    client_id: undefined,
    token: undefined,
    beats: "client",
    interval_ms: 0,
    timeout_ms: [3000, 6000],
    probe_ms: 3000,
    tick_ms: 200,
    patience_ms: 60000,
    attempts: 3,
    delays_ms: [1000, 4000, 16000],
    open_timeout_ms: 10000,
    protocols: [],
    worker: undefined,
    key: undefined,
    // What a test, or another surrounding than a page, brings along.
    WebSocket: globalThis.WebSocket,
    storage: undefined,
    page: globalThis.document && globalThis,
    clock: () => performance.now(),
    wall: Date.now,
    setTimeout: globalThis.setTimeout,
    clearTimeout: globalThis.clearTimeout,
    random: Math.random,
    log: console,
};

const named = (name) =>
    class extends Error {
        name = name;
    };

/** Messages that the other end never said it had handled. */
export class Unconfirmed extends named("Unconfirmed") {
    constructor(messages, reason) {
        super(`${messages.length} unconfirmed: ${reason}`);
        this.messages = messages;
        this.reason = reason;
    }
}

/** `send` at the bound of what a session keeps. */
export const SessionFull = named("SessionFull");

/** The attempts are used up, or the server refused for good. */
export const Unreachable = named("Unreachable");

/**
 * The heartbeat of one link. It sends nothing and knows no clock: `at` holds what it is to know of the moment, `now`,
 * the `stalls` of ours so far, and the bytes `given` to the transport and `written` by it. What is to be done is returned.
 */
export function Monitor(timing, watches, at) {
    const self = this;
    let asked, ping_at, queued_at, unanswered_since, heard;
    let deadline = Infinity;
    let last_answered = 0;
    let written_off = 0;
    // Where the ping in flight stands in our outgoing bytes; null: nothing was ahead of it.
    let mark = null;
    // id: [sent at, stalls of ours so far]
    const flights = new Map();

    /** How long an answer may take: RFC 6298 over the round trips seen. */
    const timeout = () => {
        const { tick_ms, timeout_ms } = self.timing;
        const [low, high] = timeout_ms;
        return self.rtt_ms === null ? high : min(high, max(low, self.srtt + max(tick_ms, 4 * self.rttvar)));
    };
    /** An answer is due so much later; behind bytes of ours the ping is looked after each tick until it has left. */
    const hold = (ms) => (deadline = at.now + (mark === null ? ms : min(ms, self.timing.tick_ms)));
    const note = () => {
        self.heard_at = at.now;
        heard = true;
    };
    /** The next ping is due so much later, if it is we who ping and none is out. */
    const hurry = (ms) => {
        if (!self.watches && self.state === "acknowledged") ping_at = at.now + ms;
    };
    const rest = () => {
        self.state = "acknowledged";
        hurry(self.timing.interval_ms);
    };
    /** A ping goes out now, to be answered within `wait`. `since`: when the question was first put. */
    const ask = (what, state, wait, since = at.now) => {
        const { now, given, stalls } = at;
        const id = ++self.sent;
        flights.set(id, [now, stalls]);
        self.state = state;
        heard = false;
        queued_at = since;
        mark = at.written >= given || now - since >= self.timing.patience_ms ? null : given;
        hold(wait);
        return [what, id];
    };
    const ping = (what = "ping") => ask(what, "waiting", timeout());
    const probe = (since) => ask("probe", "suspect", self.timing.probe_ms, since);
    const acknowledge = () => {
        written_off = 0;
        self.busy = false;
        unanswered_since = null;
        rest();
    };
    const convict = (reason) => {
        self.state = "dead";
        self.reason = reason;
        asked = null;
        deadline = Infinity;
        flights.clear();
        return ["convict", reason];
    };
    /** Whether the ping is still behind bytes of our own that are moving; if so, the deadline is put off. */
    const held_up = () => {
        if (mark === null) return false;
        const { patience_ms, probe_ms } = self.timing;
        // It has left, or may as well have: it has its deadline from now, and no excuse after it.
        if (at.now - queued_at >= patience_ms || at.written > mark) mark = null;
        return hold(self.state === "suspect" ? probe_ms : timeout());
    };

    // What is not listed changes nothing.
    const TABLE = {
        acknowledged: { due: ping, bytes: note, watch: probe, woke: probe },
        waiting: {
            bytes: note,
            pong: acknowledge,
            silent: () => probe(queued_at),
            heard() {
                self.busy = ++written_off > 2;
                unanswered_since ??= at.now;
                // The one just written off was a probe then, whatever our patience.
                if (at.now - unanswered_since >= self.timing.patience_ms && written_off > 3) return convict("no-pong");
                // A peer that is busy for long is asked in the way whose missing answer convicts.
                return ping(self.busy ? "probe" : "ping");
            },
            woke: probe,
        },
        suspect: {
            bytes() {
                note();
                if (self.watches) return rest();
                self.state = "waiting";
                hold(timeout());
            },
            pong: acknowledge,
            silent: () => convict("silent"),
        },
        dead: {},
    };
    const step = (what) => TABLE[self.state][what]?.();
    // What has arrived and was not read yet is read first: whoever asks is judged when we are called again.
    const turn = (what) => {
        asked = what;
    };

    Object.assign(self, {
        state: "acknowledged",
        reason: "",
        rtt_ms: null,
        busy: false,
        sent: 0,
        hurry,
        convict,
        open: () => ping(),
        /** The server has declared what holds from now on. A ping in flight gets its deadline from now. */
        declare(timing, watches) {
            Object.assign(self, { timing, watches, heard_at: at.now });
            ping_at = watches ? Infinity : at.now;
            if (self.state === "waiting") hold(timeout());
        },
        heard() {
            asked = null;
            step("bytes");
        },
        /** A pong; without an id it answers the one ping in flight. The round trip, null where it cannot be told; undefined: of no ping of ours. */
        answered(ping_id) {
            const id = ping_id ?? self.sent;
            const flight = flights.get(id);
            if (!flight) return;
            const told = (ping_id ?? flights.size < 2) && flight[1] === at.stalls;
            flights.delete(id);
            last_answered = max(last_answered, id);
            if (ping_id === undefined) flights.clear();
            step("pong");
            if (!told) return null;
            const ms = at.now - flight[0];
            // "The computation ... MUST be computed in this order": RTTVAR uses the old SRTT.
            const first = self.rtt_ms === null;
            self.rttvar = first ? ms / 2 : 0.75 * self.rttvar + 0.25 * abs(self.srtt - ms);
            self.srtt = first ? ms : 0.875 * self.srtt + 0.125 * ms;
            return (self.rtt_ms = ms);
        },
        /** The peer sent a ping of its own: ours is put off, so that two ends that both ping do not double it. */
        pinged: () => hurry(self.timing.interval_ms),
        woke() {
            asked = null;
            return step("woke");
        },
        /** When `check` has something to judge. */
        next_at() {
            if (asked) return at.now;
            if (self.state !== "acknowledged") return deadline;
            return min(ping_at, self.watches ? self.heard_at + self.timing.watch_ms : Infinity);
        },
        check() {
            const what = asked;
            asked = null;
            if (what) return step(what);
            if (at.now < self.next_at()) return;
            if (self.state === "acknowledged") return at.now >= ping_at ? step("due") : turn("watch");
            if (held_up()) return;
            return heard ? step("heard") : turn("silent");
        },
        unanswered_for() {
            for (const [id, [sent_at]] of flights) if (id > last_answered) return at.now - sent_at;
            return 0;
        },
    });
    self.declare(timing, watches);
}

/** The answer to the ping in `text`, which decodes to `message`: the text as it came, and the answerer's members. */
function pong_frame(text, message, members) {
    // Our own ends write it last.
    if (members.ack >= 0) text = text.replace(/,"ack":\d+\}$/, "}");
    if ("status" in message || "clients" in message) return stringify({ ...message, clients: undefined, ...members });
    return text.replace(/\}\s*$/, stringify(members).replace("{", ","));
}

/** An application message as JSON. Throws TypeError for what is none. */
function encode(message) {
    const { type, seq, ack } = message;
    if (typeof type !== "string" || RESERVED.includes(type) || (seq ?? ack) !== undefined) {
        throw new TypeError("a message has a type of its own, and no seq or ack");
    }
    return stringify(message);
}

/** Tell all who wait, once. */
const settle = (waiting, how, value) => {
    for (const one of waiting.splice(0)) one[how](value);
};

/** A promise that may be ignored: what becomes of it is told elsewhere too. */
function quiet(start) {
    const promise = new Promise(start);
    promise.catch(nothing);
    return promise;
}

// The keys in use by this page: two clients of one page never share a session.
const in_use = new Set();

/** Keeps one connection to `url` alive, from its construction to `close`. */
export class HeartbeatClient {
    linkChanged() {}
    messageReceived() {}
    pongReceived() {}
    sessionLost() {}

    constructor(url, options = {}) {
        const self = this;
        const o = { ...DEFAULTS };
        for (const [name, value] of Object.entries(options)) {
            if (value === undefined) continue;
            const to = name in o ? o : self;
            // A number, or some of them, where the default is; not less than nothing, and not none at all.
            const is_number = typeof [o[name]].flat()[0] === "number";
            if (!(name in to) || (is_number && !(typeof value === typeof o[name] && max(...[value].flat()) >= 0))) {
                throw new TypeError(`there is no option ${name}: ${value}`);
            }
            to[name] = value;
        }
        const { page, log, clock, wall, setTimeout, clearTimeout } = o;
        // Without the query, which may hold a token that changes.
        let key = o.key ?? `heartbeat ${`${url}`.split("?")[0]}`;
        while (in_use.has(key)) key += "+";
        // Promises of `send`: a handler that returns one does not wait for it.
        const ours = new WeakSet();
        const listening = new AbortController();
        const rooms = [];
        const opens = [];
        let closed, refused, gone, worker, status;

        // Time. All that is to be done later is done by one timer, at the first of these moments.

        let at = {};
        let timer;
        // The moment of what is being done, as the monitor is to know it.
        const t = { now: 0, stalls: 0, given: 0, written: 0 };
        let due = Infinity;
        let wall_due = Infinity;
        // Our running time is the clock's, less what we ourselves were late.
        let late = 0;

        /** Something happens. Who slept before it asks before he judges. */
        const enter = () => {
            const raw = clock();
            if (raw - due > o.tick_ms) {
                late += raw - due;
                t.stalls++;
                due = raw;
            }
            t.now = max(t.now, raw - late);
            t.written = t.given - (socket?.bufferedAmount ?? 0);
            if (wall() - wall_due > 5000) {
                // Once, whatever the hooks do that are told of it.
                wall_due = Infinity;
                woke();
            }
        };

        /** And what follows from it, in this order: nothing is told that is not written down. */
        const leave = () => {
            run();
            save();
            pump();
            owe();
            if (!is_full()) settle(rooms, "resolve");
            clearTimeout(timer);
            let next = min(...Object.values(at));
            if (opened) next = min(next, monitor.next_at());
            // While a ping is out our own lateness is looked for each second. Hidden pages get no finer timers.
            if (opened && monitor.state !== "acknowledged") next = min(next, t.now + 1000);
            due = wall_due = Infinity;
            // Where nothing is due a timer would only keep a program alive.
            if (next === Infinity) return;
            // A longer one than fits into 31 bits would be none.
            const delay = max(0, min(next - t.now, 864e5));
            due = clock() + delay;
            wall_due = wall() + delay;
            // Armed anew after each message: timers of network callbacks are spared the throttling of hidden pages.
            timer = setTimeout(tick, delay);
            worker?.postMessage(delay);
        };

        const entering =
            (then) =>
            (...what) => {
                enter();
                then(...what);
                leave();
            };

        const tick = entering(() => {
            if (t.now >= at.back) {
                delete at.back;
                gone = false;
                // Another page of this tab may have carried the session on meanwhile.
                const [head, texts] = left();
                if (head && head.sid + head.attempt !== session.sid + session.attempt) end("superseded", head, texts);
                come_back();
            }
            if (t.now >= at.expiry) end("expired");
            if (t.now >= at.stable) {
                // Accepted, one beat answered, and up for a while.
                at.stable = t.now + 5000;
                if (monitor.rtt_ms !== null) {
                    delete at.stable;
                    attempt = 0;
                    excused = false;
                }
            }
            if (t.now >= at.again) connect();
            else if (opened) carry(monitor.check());
            else if (t.now >= at.open) over("", "no answer in time");
        });

        // The page.

        const noticed = entering(({ type }) => {
            if (type === "pagehide") {
                // In the cache it would be lost all the same, and other browsers keep no page that has one open.
                abandon();
                at = {};
                gone = true;
            } else if (type === "pageshow") {
                // What another page has written down last may arrive a moment after this (Chromium 156).
                if (gone) at.back = t.now + 100;
            } else if (type === "visibilitychange") {
                // Beat at once, to tell that we are away, or back.
                monitor?.hurry(0);
                if (!page.document.hidden) come_back();
            } else {
                woke();
                if (type !== "offline") come_back();
            }
        });

        const woke = () => opened && carry(monitor.woke());

        const again = () => {
            if (opened || closed || gone) return;
            // An attempt that is under way began when things were worse: if it fails, it was not the last.
            attempt = 0;
            if (!socket) connect();
        };
        const come_back = () => refused || again();

        // What others are told.

        /** Call a hook; a promise where it takes its time. What it throws is told to the log, and we go on. */
        const hook = (name, ...values) => {
            const failed = (error) => log.error(`${name} failed:`, error);
            try {
                const result = self[name](...values);
                return result?.then && !ours.has(result) && Promise.resolve(result).then(nothing, failed);
            } catch (error) {
                failed(error);
            }
        };

        const describe = (event, detail, more) => {
            const { state = null, rtt_ms = null, busy = false, reason = "" } = monitor ?? {};
            return {
                event,
                state,
                detail,
                silent_for_ms: monitor ? t.now - monitor.heard_at : 0,
                unanswered_for_ms: monitor?.unanswered_for() ?? 0,
                rtt_ms,
                busy,
                level: carries ? 1 : 0,
                client_id,
                clients,
                reason,
                code: null,
                attempt: null,
                delay_ms: null,
                ...more,
            };
        };

        const report = (known) => {
            status = known;
            hook("linkChanged", status);
        };

        const silence = () => `${((t.now - monitor.heard_at) / 1000).toFixed(1)} s`;

        /** Report suspicion, and how it ends. The ordinary beat is nobody's news. */
        const changed = () => {
            const state = monitor?.state;
            if (!state || state === reported || (state === "waiting" && reported === "acknowledged")) return;
            reported = state;
            const words = {
                suspect: `network fluctuation: nothing received for ${silence()}`,
                waiting: "messages arrive again",
                acknowledged: "answered again",
            };
            report(describe(state, words[state]));
        };

        // One connection, and what is known of it.

        let socket, monitor, opened, carries, reported, client_id, clients;
        // After a drain: when to come back, and until when that counts.
        let return_at, return_by;
        // How often we tried since the link was stable, and whether a delay that is no attempt was granted.
        let attempt = 0;
        let excused;

        const forget_link = () => {
            socket = monitor = opened = carries = client_id = clients = null;
            t.given = 0;
            reported = "acknowledged";
        };

        const connect = () => {
            delete at.again;
            return_by = -Infinity;
            refused = false;
            written = session.confirmed;
            // Written down before the socket can say it, so that no attempt is ever made twice.
            session.attempt++;
            dirty = true;
            socket = new o.WebSocket(url, o.protocols);
            at.open = t.now + o.open_timeout_ms;
            socket.onopen = entering(hello);
            socket.onmessage = entering(({ data }) => receive(data));
            socket.onclose = entering(({ code, reason }) => {
                const told = code !== 1005 && code !== 1006;
                const why = told ? `closed by the server: ${code} ${reason}` : "lost";
                over("closed", why, told ? code : null, code === 4001 && "superseded");
            });
            // What went wrong is not told to pages; that it did is told by the close that follows.
            socket.onerror = nothing;
        };

        /** Listen to the present socket no longer. A dead one may take a minute to close, and nobody waits for it. */
        const abandon = (...code) => {
            const old = socket;
            if (!old) return;
            old.onopen = old.onmessage = old.onclose = null;
            at = { expiry: at.expiry ?? (session.sid ? (monitor?.heard_at ?? t.now) + session.window_ms : Infinity) };
            forget_link();
            old.close(...code);
        };

        /** The connection, or the attempt, is over: say so, then wait and try again, or give up. */
        const over = (event, why, code = null, ends, ...close) => {
            const known = event && monitor && describe(event, why, { code });
            abandon(...close);
            if (ends) end(ends);
            if (known) report(known);
            // A hook was told of the end, and has connected already, or closed.
            if (socket || closed) return;
            // A few attempts, spread wide: the jitter comes after any cap, or a crowd would come back in step.
            const u = o.random();
            let delay_ms = t.now <= return_by ? max(0, return_at - t.now) : /101[23]/.test(code) ? 1000 + 9000 * u : null;
            refused = /100[0237-9]|1010|44../.test(code);
            // What the server asked for is no attempt, but only once between two stable links.
            if (refused) delay_ms = null;
            else if (delay_ms !== null && !excused) excused = true;
            else if (attempt >= o.attempts) delay_ms = null;
            else delay_ms = (o.delays_ms[attempt++] ?? o.delays_ms.at(-1)) * (0.5 + u);
            if (delay_ms !== null) {
                at.again = t.now + delay_ms;
                return report(describe("reconnecting", why, { attempt, delay_ms }));
            }
            report(describe("unreachable", why, { attempt }));
            if (!is_unreachable()) return;
            settle(opens, "reject", new Unreachable(why));
            if (!session.sid) end("unreachable");
        };

        const is_unreachable = () => closed || (!socket && status.event === "unreachable");

        const write = (message, text = stringify(message)) => {
            t.given += size_of(text);
            socket.send(text);
        };

        /** Do what the monitor says. */
        const carry = (effect) => {
            const [what, which] = effect ?? [];
            if (what === "convict") {
                over("dead", `no answer (${which}), nothing received for ${silence()}`, null, null, 4000, which);
            } else if (what) {
                write({ type: "ping", id: which, away: page?.document.hidden || undefined, ack: carries ? tell() : undefined });
            }
            changed();
        };

        const hello = () => {
            const { sid, epoch, client_id: was } = session;
            monitor = new Monitor(timing_of({}), watches(o.beats), t);
            write({
                type: "onopen",
                v: 1,
                beats: o.beats,
                interval_ms: o.interval_ms || undefined,
                session: sid && { sid, epoch, last: tell(), sent: session.reached, try: session.attempt },
                // It was given that id, perhaps because the one it claimed was not honoured; it is whose the session is.
                client_id: sid && (!o.client_id || /^c-/.test(was)) ? was : o.client_id,
                // One that expires is made anew for each attempt.
                token: o.token?.call ? o.token() : o.token,
            });
            // The opening goes out with the ping, and is nothing that it would have to wait behind.
            t.written = t.given;
            carry(monitor.open());
        };

        const watches = (beats) => beats === "server" || beats === "none";

        const timing_of = ({ interval_ms, timeout_ms, probe_ms, watch_ms }) => {
            const [low, high] = timeout_ms ?? [];
            const interval = max(100, number(interval_ms, 1, o.interval_ms || 6000));
            const ceiling = number(high, 1, o.timeout_ms[1]);
            return {
                ...o,
                interval_ms: interval,
                timeout_ms: [min(ceiling, number(low, 1, o.timeout_ms[0])), ceiling],
                probe_ms: number(probe_ms, 1, o.probe_ms),
                watch_ms: number(watch_ms, 1, interval + min(10000, max(interval / 2, ceiling))),
            };
        };

        const receive = (text) => {
            monitor.heard();
            try {
                const message = parse(text);
                const { type } = message;
                if (rows[type]) rows[type](message, text);
                else if (carries && "seq" in message) numbered(message, text);
                else deliver(message);
            } catch (error) {
                const { code, message } = error;
                // A rule on which the session rests; the second time with no progress between, the session is over.
                if (code) cut(code, message, stumbled === (stumbled = `${session.confirmed} ${received}`) && "gap");
                // Other mistakes of a server's are not answered.
                else log.warn("not taken:", error);
            }
            changed();
        };

        const breach = (code, why) => {
            throw { code, message: why };
        };

        const cut = (code, why, ends) => over("closed", `closed by us (${code})`, null, ends, code, why);

        // Never numbered, whatever they say.
        const rows = {
            __proto__: null,

            onopen(answer) {
                const { v, sid, epoch, client_id: name, beats = "client", resumed, last = 0, sent = 0 } = answer;
                if (opened || answer.status !== "ok") return;
                client_id = name ?? null;
                clients = count_of(answer);
                const timing = timing_of(v ? answer : {});
                monitor.declare(timing, watches(v ? beats : o.beats));
                if (!sid) return go_plain();
                const { message, kept: most, kept_bytes } = answer.limits ?? {};
                const bounds = {
                    most: number(most, 1, NEW.most),
                    bytes: number(kept_bytes, 1, NEW.bytes),
                    largest: number(message, 1, NEW.largest),
                    window_ms: number(answer.window_ms, 1, 120000),
                };
                if (resumed !== true) {
                    if (session.sid) end(answer.reason || "unknown");
                    // A hook was told, and may have closed.
                    if (!socket) return;
                    begin({ ...bounds, sid, epoch, client_id: name });
                } else if (session.sid !== sid) {
                    // Its window ended while the server took it up again.
                    return cut(1000, "expired");
                } else if (!(last >= session.confirmed && last <= session.sent && sent >= received)) {
                    // It has forgotten what it had confirmed, or confirms what was never sent.
                    return cut(4010, "gap", "gap");
                } else {
                    Object.assign(session, bounds);
                    confirm(last);
                }
                delete at.expiry;
                dirty = carries = true;
                is_open(`open as ${name}, a beat every ${timing.interval_ms / 1000} s`);
            },

            ping(message, text) {
                const { status, id, ack } = message;
                if (status === "pong") {
                    const ping_id = id === undefined || whole(id) ? id : -1;
                    if (carries) confirm(ack);
                    const rtt = monitor.answered(ping_id);
                    if (rtt === undefined) return;
                    clients = count_of(message);
                    if (!opened) go_plain();
                    hook("pongReceived", rtt, clients);
                } else if (status != null && !carries) carry(monitor.convict("refused"));
                else {
                    monitor.pinged();
                    if (carries) confirm(ack);
                    write(0, pong_frame(text, message, { status: "pong", ack: carries ? tell() : undefined }));
                }
            },

            ack({ ack }) {
                if (carries) confirm(ack);
            },

            drain({ min_ms, max_ms }) {
                const longest = number(max_ms, 0, 0);
                const latest = min(longest, (session.window_ms || 120000) / 2);
                const first = min(number(min_ms, 0, 0), latest);
                return_at = t.now + first + (latest - first) * o.random();
                return_by = t.now + longest;
            },
        };

        const count_of = ({ clients }) => (whole(clients) ? clients : null);

        /** There is no session to be had here: what waited for one goes out as it is. */
        const go_plain = () => {
            if (session.sid) end("unknown");
            if (!socket) return;
            const waiting = kept;
            adopt();
            for (const { text, resolve } of waiting) {
                write(0, text);
                resolve();
            }
            is_open("open, without a session");
        };

        const is_open = (detail) => {
            // A hook was told of what had no room, and may have closed.
            if (!socket) return;
            opened = true;
            delete at.open;
            at.stable = t.now + 5000;
            report(describe("open", detail));
            settle(opens, "resolve", self);
        };

        // The session, and what is kept of it: the messages above `confirmed`, each with who waits for it.

        let session, kept, bytes_kept, queue, running, received, written, told, untold, stumbled, dirty;
        let store = o.storage;

        /** Where it cannot be written down it goes on in memory, and what was written is taken away. */
        const shelf = (what, text) => {
            try {
                if (store === undefined) store = page?.sessionStorage;
                const found = store?.[what](key, text);
                return what < "r" && [...parse(found ?? "[]")];
            } catch (error) {
                // A copy that is no longer kept up must never be resumed.
                if (store && what !== "removeItem") shelf("removeItem");
                if (store !== null) log.warn("the session is in memory only:", error);
                store = null;
            }
        };

        const save = () => {
            // Out of the cache, and before we have looked, the session may be another page's.
            if (!dirty || at.back) return;
            dirty = false;
            // What is about to be written counts as written: it must not be said of less, by whoever copies this.
            if (carries) session.reached = session.sent;
            if (kept.length || session.sid) shelf("setItem", stringify([session, kept.map(({ text }) => text)]));
            else shelf("removeItem");
        };

        /** Go on with this session, and these messages kept in it; by default a new one that is yet to be declared. */
        const adopt = (head, texts = []) => {
            session = { ...NEW, ...head };
            kept = [];
            queue = [];
            bytes_kept = untold = 0;
            running = false;
            stumbled = "";
            received = told = session.handled;
            written = session.confirmed;
            dirty = true;
            texts.forEach?.((text) => keep(text));
        };

        /** The session that a page before this one left, and its messages; nothing where there is none. */
        const left = () => shelf("getItem") ?? [];

        const keep = (text, resolve = nothing, reject = nothing) => {
            const size = size_of(text);
            kept.push({ text, size, resolve, reject });
            bytes_kept += size;
            dirty = true;
        };

        const append = (...what) => {
            session.sent++;
            keep(...what);
        };

        /** Whether a message of this size has no room. */
        const is_full = (size = 1) =>
            kept.length >= session.most || bytes_kept + size > session.bytes || size + MEMBERS > session.largest;

        const full = (size) =>
            new SessionFull(`no room for ${size} bytes beside ${kept.length} messages`);

        /** Tell whoever waits which messages were never confirmed. */
        const lose = (lost, reason) => {
            const error = new Unconfirmed(lost.map(({ text }) => parse(text)), reason);
            settle(lost, "reject", error);
            if (error.messages.length) hook("sessionLost", error);
        };

        /** The session is over; the next messages are sent in another. */
        const end = (reason, ...head) => {
            const lost = kept;
            const waiting = rooms.splice(0);
            adopt(...head);
            delete at.expiry;
            lose(lost, reason);
            settle(waiting, "reject", new Unconfirmed([], reason));
        };

        /** The server has declared this session: what waited for it goes out in it, as far as it has room. */
        const begin = (head) => {
            const waiting = kept;
            adopt(head);
            const left_out = waiting.filter(({ text, size, resolve, reject }) => {
                if (is_full(size)) return true;
                append(text, resolve, reject);
            });
            lose(left_out, "too-big");
        };

        /** What `ack` says; what is no number says nothing. */
        const confirm = (upto) => {
            const before = session.confirmed;
            if (!(whole(upto) && upto > before)) return;
            if (upto > session.sent) breach(4011, `ack ${upto} is above what was sent`);
            const done = kept.splice(0, upto - before);
            session.confirmed = upto;
            written = max(written, upto);
            dirty = true;
            for (const { size } of done) bytes_kept -= size;
            settle(done, "resolve");
        };

        const pump = () => {
            delete at.pump;
            while (carries && written < session.sent) {
                if (socket.bufferedAmount > 65536) {
                    // A ping is never far from the line.
                    at.pump = t.now + 50;
                    return;
                }
                const { text } = kept[written++ - session.confirmed];
                write(0, `${text.slice(0, -1)},"seq":${written},"ack":${tell()}}`);
            }
        };

        /** What `ack` says in a frame that goes out now. */
        const tell = () => {
            delete at.ack;
            untold = 0;
            return (told = session.handled);
        };

        /** Say what was handled: at once where it is much, else soon, unless something that goes out before says it. */
        const owe = () => {
            const count = session.handled - told;
            if (!carries || !count) return;
            at.ack ??= t.now + 50;
            if (count > 31 || untold * 4 >= session.bytes || t.now >= at.ack) write({ type: "ack", ack: tell() });
        };

        /** A numbered message; its number counts before anything else is judged. */
        const numbered = ({ seq, ack, ...message }, text) => {
            if (!whole(seq) || seq < 1) throw new TypeError(`seq is ${seq}`);
            if (seq > received + 1) breach(4010, `message ${seq} came after message ${received}`);
            if (seq > received) {
                received = seq;
                queue.push([seq, message, size_of(text)]);
            }
            confirm(ack);
        };

        // What has no type was never a message.
        const deliver = (message, seq = null) =>
            typeof message.type === "string" && hook("messageReceived", message, { seq, sid: session.sid });

        /** Handle what has arrived, one at a time: however full we are, or two full ends would wait for each other. */
        const run = () => {
            const mine = session;
            while (!running && queue.length) {
                running = true;
                const [seq, message, size] = queue.shift();
                const done = () => {
                    if (mine !== session) return;
                    running = false;
                    session.handled = seq;
                    untold += size;
                    dirty = true;
                };
                const result = deliver(message, seq);
                if (result) result.then(entering(done));
                else done();
            }
        };

        Object.assign(self, {
            send(message, { volatile } = {}) {
                const text = encode(message);
                const size = size_of(text);
                const promise = quiet(
                    entering((resolve, reject) => {
                        const never = (reason) => reject(new Unconfirmed([message], reason));
                        if (volatile || (opened && !carries)) {
                            if (!opened) return never("closed");
                            write(0, text);
                            resolve();
                        } else if (closed) never("closed");
                        else if (!session.sid && is_unreachable()) never("unreachable");
                        else if (is_full(size)) reject(full(size));
                        else append(text, resolve, reject);
                    }),
                );
                ours.add(promise);
                return promise;
            },

            whenRoom: () =>
                quiet((resolve, reject) => {
                    if (is_full()) rooms.push({ resolve, reject });
                    else resolve();
                }),

            whenOpen: () =>
                quiet((resolve, reject) => {
                    if (opened) resolve(self);
                    else if (is_unreachable()) reject(new Unreachable(status.detail));
                    else opens.push({ resolve, reject });
                }),

            retry: entering(again),

            close: entering(() => {
                if (closed) return;
                closed = true;
                listening.abort();
                worker?.terminate();
                const known = describe("closed", "closed by us");
                abandon(1000, "done");
                end("closed");
                at = {};
                settle(opens, "reject", new Unreachable("closed by us"));
                report(known);
                // Only now: a hook may have made another client.
                in_use.delete(key);
            }),
        });
        Object.defineProperties(self, {
            unconfirmed: { get: () => kept.length },
            status: {
                get() {
                    enter();
                    leave();
                    return monitor ? describe(status.event, status.detail) : status;
                },
            },
        });

        if (o.worker) {
            // Beside our own timer, not in its place: a worker may fail to start, or not be allowed to.
            try {
                worker = o.worker === true ? new Worker(import.meta.url, { type: "module", name: CLOCK }) : o.worker;
                worker.onmessage = () => tick();
            } catch (error) {
                log.warn(error);
            }
        }
        forget_link();
        adopt(...left());
        status = describe("closed", "not connected yet");
        enter();
        if (session.sid) at.expiry = t.now + session.window_ms;
        connect();
        // Of one that could not even begin nothing is left behind.
        in_use.add(key);
        // The last two are the document's, and bubble. The controller brings its own signal.
        for (const kind of ["online", "offline", "pageshow", "pagehide", "visibilitychange", "resume"]) {
            page?.addEventListener(kind, noticed, listening);
        }
        leave();
    }
}

// In a Worker of that name this module is nothing but a clock, which nobody slows down in a hidden page.
if (globalThis.name === CLOCK) {
    let timer;
    globalThis.onmessage = ({ data }) => {
        clearTimeout(timer);
        timer = setTimeout(postMessage, data, 0);
    };
}
