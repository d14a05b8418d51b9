// What a browser is to the client: time, network, storage, page and console, all of them held by the test.

import assert from "node:assert/strict";

const HEARTBEAT = new URL("../../heartbeat/web/static/heartbeat.js", import.meta.url);

let pages = 0;

/** The client's code as a page has it that is loaded anew: it knows nothing of the one before. */
export const loaded_anew = () => import(`${HEARTBEAT}?page=${++pages}`);

/** Everything that follows from what has happened by now, as far as no time passes. */
export const settle = () => new Promise(setImmediate);

// What timers of browsers and of Node can count; a longer one fires at once.
const LONGEST_TIMER = 2 ** 31 - 1;

/**
 * True milliseconds, which pass only by `advance`, and the clocks and timers of one page.
 *
 * Timers run before what has arrived is read, as they may. What is to happen at a page that stands still happens when
 * it goes on; what happens elsewhere does not wait.
 */
export class Time {
    now = 0;
    fired = 0;
    #grain = null;
    #timers = new Map();
    #arrivals = [];
    #elsewhere = [];
    #last = 0;
    #slept = 0;
    #stalled_until = 0;

    // The clock starts anywhere, and may stand still while the machine sleeps; the clock of the day never does.
    clock = () => 5000 + this.now - this.#slept;
    wall = () => 1_700_000_000_000 + this.now;

    setTimeout = (then, delay = 0) => {
        const ms = delay >= 0 && delay <= LONGEST_TIMER ? delay : 1;
        // Some time passes with any timer: a sum of milliseconds may miss a moment by a rounding, and so twice.
        let at = this.now - this.#slept + (ms && Math.max(ms, 0.001));
        if (this.#grain) at = Math.ceil(at / this.#grain) * this.#grain;
        this.#timers.set(++this.#last, { at, then });
        return this.#last;
    };

    clearTimeout = (timer) => void this.#timers.delete(timer);

    /** How many timers are set. */
    get timers() {
        return this.#timers.size;
    }

    /** Have something arrive at the page, so much later. */
    deliver(ms, step) {
        this.#arrivals.push({ at: this.now + ms, step });
    }

    /** Have something happen elsewhere, so much later. */
    elsewhere(ms, step) {
        this.#elsewhere.push({ at: this.now + ms, step });
    }

    /** The page stands still: its clocks go on, nothing else does. */
    stall(ms) {
        this.#stalled_until = Math.max(this.#stalled_until, this.now + ms);
    }

    /** The page is busy so long with what it does just now: nothing else happens at it meanwhile. */
    work(ms) {
        this.now += ms;
    }

    /** The machine sleeps: the page stands still, and so does the clock that is not of the day. */
    sleep(ms) {
        this.stall(ms);
        this.#slept += ms;
    }

    /** Timers come in this grain from now on, as in a page that is hidden for long; null: as they are set. */
    slow_down(ms) {
        this.#grain = ms;
    }

    /** The page is no more, with all that was to happen at it. */
    forget() {
        this.#timers.clear();
        this.#arrivals = [];
        this.#stalled_until = 0;
        this.#grain = null;
    }

    /** Let time pass, from event to event. */
    async advance(ms) {
        const end = this.now + ms;
        await settle();
        for (let at = this.#next(); at <= end; at = this.#next()) {
            this.now = Math.max(this.now, at);
            await this.#turn();
        }
        this.now = Math.max(this.now, end);
    }

    #next() {
        const timers = [...this.#timers.values()].map(({ at }) => at + this.#slept);
        const page = Math.min(...timers, ...this.#arrivals.map(({ at }) => at));
        return Math.min(Math.max(page, this.#stalled_until), ...this.#elsewhere.map(({ at }) => at));
    }

    /** One turn of the event loop: the timers that are due, without those that they set, then what has arrived. */
    async #turn() {
        if (this.now >= this.#stalled_until) {
            const due = [...this.#timers].filter(([, { at }]) => at + this.#slept <= this.now);
            for (const [name, { then }] of due.sort(([, a], [, b]) => a.at - b.at)) {
                if (this.#timers.delete(name)) {
                    this.fired++;
                    then();
                    await settle();
                }
            }
            await this.#happen(this.#arrivals);
        }
        await this.#happen(this.#elsewhere);
    }

    async #happen(queue) {
        // What is put into the queue meanwhile has its turn later.
        const due = queue.filter(({ at }) => at <= this.now);
        for (const one of due) {
            const index = queue.indexOf(one);
            if (index < 0) return;
            queue.splice(index, 1);
            one.step();
            await settle();
        }
    }
}

/** The network. `mode` says what becomes of new connections: it accepts, refuses or hangs. */
export class Network {
    mode = "accepts";
    latency = 0;
    sockets = [];
    #hanging = [];

    constructor(time) {
        this.time = time;
    }

    /**
     * A class WebSocket with this server at the other end of each: its `opened` is called with each socket that is
     * open, `sent` with each text as it is written, `heard` with each that arrives, `closed` with the code by which
     * the page closes one.
     */
    served_by(server) {
        const network = this;
        return class extends Socket {
            constructor(url, protocols) {
                super(network, server, url, protocols);
            }
        };
    }

    /** The socket that was made last. */
    get socket() {
        return this.sockets.at(-1);
    }

    /** How many sockets are open, or are about to be, as the page sees them. */
    get open() {
        return this.sockets.filter(({ readyState }) => readyState <= Socket.OPEN).length;
    }

    /** Change what becomes of new connections, and of those that hang. */
    set(mode) {
        this.mode = mode;
        for (const socket of this.#hanging.splice(0)) this.connect(socket);
    }

    /** Nothing arrives any more on what is open, and nobody is told; new connections hang. */
    cut() {
        for (const socket of this.sockets) socket.is_dead = true;
        this.set("hangs");
    }

    connect(socket) {
        if (socket.readyState !== Socket.CONNECTING) return;
        if (this.mode === "hangs") this.#hanging.push(socket);
        else if (this.mode === "refuses") socket.drop();
        else {
            socket.readyState = Socket.OPEN;
            socket.server.opened?.(socket);
            socket.onopen?.({ type: "open" });
        }
    }
}

/** A WebSocket, as strict as a browser's; `say`, `end` and `drop` are the server's. */
class Socket {
    static CONNECTING = 0;
    static OPEN = 1;
    static CLOSING = 2;
    static CLOSED = 3;

    onopen = null;
    onmessage = null;
    onclose = null;
    onerror = null;
    readyState = Socket.CONNECTING;
    bufferedAmount = 0;
    // Whether the line is dead, without a word.
    is_dead = false;
    #network;
    // What waits in the buffer, while nothing leaves it.
    #clogged = null;

    constructor(network, server, url, protocols) {
        if (!/^wss?:$/.test(URL.canParse(`${url}`) && new URL(url).protocol))
            throw new DOMException(`${url}`, "SyntaxError");
        this.server = server;
        this.url = url;
        this.protocols = protocols;
        this.#network = network;
        network.sockets.push(this);
        network.time.deliver(2 * network.latency, () => network.connect(this));
    }

    send(text) {
        if (typeof text !== "string") throw new TypeError("the client writes text");
        if (this.readyState === Socket.CONNECTING) throw new DOMException("still connecting", "InvalidStateError");
        this.server.sent?.(text, this);
        const step = () => this.server.heard(text, this);
        if (this.readyState === Socket.OPEN && !this.#clogged) return this.#to_server(step);
        this.bufferedAmount += Buffer.byteLength(text);
        return this.#clogged?.push(step);
    }

    close(code, reason = "") {
        if (code !== undefined && code !== 1000 && !(code >= 3000 && code <= 4999)) {
            throw new DOMException(`a page may not close with ${code}`, "InvalidAccessError");
        }
        if (Buffer.byteLength(reason) > 123) throw new DOMException("too long a reason", "SyntaxError");
        if (this.readyState >= Socket.CLOSING) return;
        const was_open = this.readyState === Socket.OPEN;
        this.readyState = Socket.CLOSING;
        if (!was_open) return this.#network.time.deliver(0, () => this.#closed(1006, ""));
        this.#to_server(() => {
            this.server.closed(code, this);
            // The other end answers in kind.
            this.#to_page(() => this.#closed(code ?? 1005, reason));
        });
    }

    // What the server does.

    say(data) {
        this.#to_page(() => this.readyState === Socket.OPEN && this.onmessage?.({ type: "message", data }));
    }

    end(code, reason = "") {
        this.#to_page(() => this.#closed(code, reason));
    }

    drop() {
        this.#to_page(() => this.#closed(1006, ""));
    }

    /** Nothing leaves the buffer any more, until it does again. */
    clog() {
        this.#clogged ??= [];
    }

    flow() {
        const waiting = this.#clogged ?? [];
        this.#clogged = null;
        this.bufferedAmount = 0;
        for (const step of waiting) this.#to_server(step);
    }

    /** The page is gone, and its browser closes what it had open. */
    leave() {
        this.onopen = this.onmessage = this.onerror = this.onclose = null;
        if (this.readyState === Socket.OPEN) this.#to_server(() => this.server.closed(1001, this));
        this.readyState = Socket.CLOSED;
    }

    /** What still comes of a socket that nobody should listen to any more. */
    haunt(text) {
        this.onopen?.({ type: "open" });
        this.onmessage?.({ type: "message", data: text });
        this.onerror?.({ type: "error" });
        this.onclose?.({ type: "close", code: 1006, reason: "" });
    }

    #to_page(step) {
        if (!this.is_dead) this.#network.time.deliver(this.#network.latency, () => this.is_dead || step());
    }

    #to_server(step) {
        if (!this.is_dead) this.#network.time.elsewhere(this.#network.latency, () => this.is_dead || step());
    }

    #closed(code, reason) {
        if (this.readyState === Socket.CLOSED) return;
        this.readyState = Socket.CLOSED;
        if (code === 1006) this.onerror?.({ type: "error" });
        this.onclose?.({ type: "close", code, reason, wasClean: code !== 1006 });
    }
}

/** A storage that may refuse: `refuses` is a name of its methods, or null. */
export class Storage {
    refuses = null;
    items = new Map();

    #see(what) {
        if (this.refuses === what) throw new DOMException(`no ${what}`, "QuotaExceededError");
    }

    getItem(key) {
        this.#see("getItem");
        return this.items.get(key) ?? null;
    }

    setItem(key, value) {
        this.#see("setItem");
        this.items.set(key, `${value}`);
    }

    removeItem(key) {
        this.#see("removeItem");
        this.items.delete(key);
    }

    /** A copy, as a duplicated tab gets one. */
    copy() {
        const copy = new Storage();
        copy.items = new Map(this.items);
        return copy;
    }
}

/** A window with its document. */
export class Page extends EventTarget {
    document = Object.assign(new EventTarget(), { hidden: false, visibilityState: "visible" });
    navigator = { onLine: true };
    // The signals that end what listens to it and to its document.
    #listening = [];

    constructor(storage) {
        super();
        this.sessionStorage = storage;
        for (const target of [this, this.document]) {
            const add = target.addEventListener;
            target.addEventListener = (kind, listener, options) => {
                this.#listening.push(options?.signal);
                add.call(target, kind, listener, options);
            };
        }
    }

    /** How many listeners there are. */
    get listeners() {
        return this.#listening.filter((signal) => !signal?.aborted).length;
    }

    hide() {
        this.#is_visible(false);
    }

    show() {
        this.#is_visible(true);
    }

    /** An event of the document's, which bubbles to the window. */
    #of_the_document(kind) {
        this.document.dispatchEvent(new Event(kind));
        this.dispatchEvent(new Event(kind));
    }

    line(is_there) {
        this.navigator.onLine = is_there;
        this.dispatchEvent(new Event(is_there ? "online" : "offline"));
    }

    /** The page goes: into the browser's cache (`persisted`), or for good. */
    leave(persisted) {
        this.dispatchEvent(Object.assign(new Event("pagehide"), { persisted }));
    }

    /** It is there again, out of the cache. */
    enter(persisted = true) {
        this.dispatchEvent(Object.assign(new Event("pageshow"), { persisted }));
    }

    freeze() {
        this.#of_the_document("freeze");
    }

    resume() {
        this.#of_the_document("resume");
    }

    #is_visible(is_visible) {
        Object.assign(this.document, { hidden: !is_visible, visibilityState: is_visible ? "visible" : "hidden" });
        this.#of_the_document("visibilitychange");
    }
}

/** Keeps what would be complained of. */
export class Log {
    warned = [];
    failed = [];

    warn = (...what) => void this.warned.push(what.map(String).join(" "));
    error = (...what) => void this.failed.push(what.map(String).join(" "));
}

/** One browser with one page: everything that a client is given. */
export class Browser {
    time = new Time();
    network = new Network(this.time);
    storage = new Storage();
    page = new Page(this.storage);
    log = new Log();

    /** The options of a client in it, and of this server; chance is always a half, unless it is said otherwise. */
    options(server, more = {}) {
        const { time, network, page, log } = this;
        return {
            WebSocket: network.served_by(server),
            page,
            clock: time.clock,
            wall: time.wall,
            setTimeout: time.setTimeout,
            clearTimeout: time.clearTimeout,
            random: () => 0.5,
            log,
            ...more,
        };
    }

    advance(ms) {
        return this.time.advance(ms);
    }

    /** No timer is left, no socket, no listener, and nothing is written down. */
    assert_empty() {
        const { time, network, page, storage } = this;
        const left = {
            timers: time.timers,
            sockets: network.open,
            listeners: page.listeners,
            items: [...storage.items],
        };
        assert.deepEqual(left, { timers: 0, sockets: 0, listeners: 0, items: [] });
    }

    /** The page is loaded anew: nothing is left of it but what it has written down. */
    reload() {
        this.time.forget();
        for (const socket of this.network.sockets) socket.leave();
        this.page = new Page(this.storage);
    }
}
