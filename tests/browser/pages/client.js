// The page of most tests: a client, a diary of all that it tells, and numbered messages in both directions.
//
// What it is to do stands in the URL's fragment, as JSON: `options` for the client, `url` of another server than
// the page's own, `holds` for a handler of words that finishes when the test says so. The ledger of messages lies in
// sessionStorage, so that it is still right after a reload.
import { HeartbeatClient } from "./heartbeat.js";

const { options = {}, url = `${location.origin.replace("http", "ws")}/ws`, holds = false } = location.hash
    ? JSON.parse(decodeURIComponent(location.hash.slice(1)))
    : {};

const diary = [];
const sockets = [];
const ticks = [];
let beats = 0;
let arrived = 0;

function note(event, more = {}) {
    diary.push({ ...more, event, at: performance.now() });
}

/** What was sent and what was received, by every life of this tab; in memory where there is no storage for it. */
const ledger = {
    memory: null,
    get state() {
        try {
            return JSON.parse(this.memory ?? sessionStorage.getItem("ledger")) ?? { sent: 0, words: [] };
        } catch {
            return { sent: 0, words: [] };
        }
    },
    change(how) {
        const { state } = this;
        const result = how(state);
        const text = JSON.stringify(state);
        try {
            if (this.memory === null) sessionStorage.setItem("ledger", text);
            else this.memory = text;
        } catch {
            this.memory = text;
        }
        return result;
    },
};

class Socket extends WebSocket {
    constructor(...where) {
        super(...where);
        sockets.push(this);
        this.addEventListener("message", ({ data }) => {
            const { type, n } = JSON.parse(data);
            if (type === "word") arrived = Math.max(arrived, n);
        });
    }
}

globalThis.Worker = class extends Worker {
    constructor(...what) {
        super(...what);
        this.addEventListener("message", () => beats++);
    }
};

for (const [target, kinds] of [
    [window, ["online", "offline", "pageshow", "pagehide"]],
    [document, ["visibilitychange", "freeze", "resume"]],
]) {
    for (const kind of kinds) {
        target.addEventListener(kind, ({ persisted }) => note(kind, { visible: !document.hidden, persisted }));
    }
}
window.addEventListener("error", ({ message }) => note("uncaught", { detail: message }));
window.addEventListener("unhandledrejection", ({ reason }) => note("uncaught", { detail: `${reason}` }));
document.addEventListener("securitypolicyviolation", ({ violatedDirective }) => {
    note("violation", { detail: violatedDirective });
});

// The control of the tests of hidden tabs: an ordinary timer, which the browser slows down there.
setInterval(() => ticks.push(performance.now()), 1000);

const handled_word = (n) => ledger.change(({ words }) => void words.push(n));

let release;
const released = new Promise((resolve) => (release = resolve));

const RECEIVED = {
    word: ({ n }) => (holds ? released.then(() => handled_word(n)) : handled_word(n)),
    enough: ({ count }) => note("enough", { count }),
    error: ({ detail }) => note("complaint", { detail }),
};

const complain = (...what) => note("complaint", { detail: what.join(" ") });
const client = new HeartbeatClient(url, {
    WebSocket: Socket,
    log: { warn: complain, error: complain },
    linkChanged: (status) => note(status.event, status),
    pongReceived: (rtt_ms, clients) => note("pong", { rtt_ms, clients, state: client.status.state }),
    messageReceived: (message) => RECEIVED[message.type]?.(message),
    sessionLost: ({ reason, messages }) => note("lost", { reason, numbers: messages.map(({ n }) => n) }),
    ...options,
});

let talking;

window.page = {
    client,
    diary,
    sockets,
    ticks,
    handled: [],
    failed: [],
    get beats() {
        return beats;
    },
    /** Send the next note. */
    say(more = {}) {
        const n = ledger.change((state) => ++state.sent);
        client.send({ type: "note", n, ...more }).then(
            () => this.handled.push(n),
            ({ reason }) => this.failed.push([n, reason]),
        );
        return n;
    },
    talk(every_ms) {
        talking = setInterval(() => this.say(), every_ms);
    },
    hush() {
        clearInterval(talking);
        return ledger.state.sent;
    },
    /** Have the server send its words. */
    listen(every_ms) {
        client.send({ type: "listen", every_ms });
    },
    /** Have it stop; `enough` says how many they were. */
    enough() {
        client.send({ type: "enough" });
    },
    /** Let the handlers of words finish, these and all that follow. */
    release,
    /** How many words have arrived and wait for their handler. */
    get waiting() {
        return arrived - this.words.length;
    },
    get words() {
        return ledger.state.words;
    },
    get sent() {
        return ledger.state.sent;
    },
};
