// Every name of heartbeat.d.ts, used as it is meant. Only the type checker reads this.

import WS from "ws";
import {
    HeartbeatClient,
    Monitor,
    SessionFull,
    Unconfirmed,
    Unreachable,
    type Effect,
    type Handling,
    type LinkEvent,
    type LinkStatus,
    type Message,
    type Moment,
    type Options,
    type SessionStore,
    type State,
    type Timing,
    type Transport,
} from "txheartbeat";

// A client, with nothing but a URL, and with everything that can be told to it.

const plain = new HeartbeatClient("wss://example.org/ws");

class Wrapped implements Transport {
    bufferedAmount = 0;
    onopen: Transport["onopen"] = null;
    onmessage: Transport["onmessage"] = null;
    onclose: Transport["onclose"] = null;
    onerror: Transport["onerror"] = null;
    constructor(readonly url: string | URL, readonly protocols?: string | string[]) {}
    send(text: string): void {}
    close(code?: number, reason?: string): void {}
}

const kept = new Map<string, string>();
const shelf: SessionStore = {
    getItem: (key) => kept.get(key) ?? null,
    setItem: (key, value) => kept.set(key, value),
    removeItem: (key) => kept.delete(key),
};

const options: Options = {
    client_id: "alice",
    token: "open sesame",
    beats: "both",
    interval_ms: 6000,
    timeout_ms: [3000, 6000],
    probe_ms: 3000,
    tick_ms: 200,
    patience_ms: 60_000,
    attempts: 3,
    delays_ms: [1000, 4000, 16_000],
    open_timeout_ms: 10_000,
    protocols: ["heartbeat"],
    worker: true,
    storage: shelf,
    key: "mine",
    WebSocket: Wrapped,
    page: null,
    clock: () => performance.now(),
    wall: () => Date.now(),
    setTimeout: (then, delay_ms) => setTimeout(then, delay_ms),
    clearTimeout: (timer) => clearTimeout(timer),
    random: () => 0.5,
    log: console,
    linkChanged: (status) => status.event,
    messageReceived: (message, handling) => [message.type, handling.seq],
    pongReceived: (rtt_ms, clients) => (rtt_ms ?? 0) + (clients ?? 0),
    sessionLost: (error) => error.messages,
};

const beats: Options["beats"][] = ["client", "server", "both", "none", undefined];

// A clock of one's own: a Worker, or whatever has so much of one.
const clock = { postMessage: (delay_ms: number) => {}, onmessage: null, terminate: () => {} };
const workers: Options["worker"][] = [
    true,
    false,
    new Worker("/worker.js", { type: "module", name: "heartbeat-clock" }),
    clock,
];

// The WebSockets of the browser and of the package `ws` are taken as they are, and so is sessionStorage.
const classes: Options["WebSocket"][] = [WebSocket, WS, Wrapped];
const stores: Options["storage"][] = [sessionStorage, localStorage, shelf, null];

const client = new HeartbeatClient(new URL("wss://example.org/ws"), options);

// What it tells.

function tell(status: LinkStatus): string {
    const event: LinkEvent = status.event;
    const state: State | null = status.state;
    const times: number[] = [status.silent_for_ms, status.unanswered_for_ms];
    const maybe: (number | null)[] = [status.rtt_ms, status.clients, status.code, status.attempt, status.delay_ms];
    const level: 0 | 1 = status.level;
    const name: string | null = status.client_id;
    return [event, state, ...times, ...maybe, level, name, status.busy, status.reason, status.detail].join(" ");
}

const events: LinkEvent[] = [
    "open", "waiting", "suspect", "acknowledged", "dead", "closed", "reconnecting", "unreachable",
];
const states: State[] = ["acknowledged", "waiting", "suspect", "dead"];

client.linkChanged = tell;
client.messageReceived = (message: Message, handling: Handling) => [message.text, handling.seq, handling.sid];
client.pongReceived = (rtt_ms: number | null, clients: number | null) => undefined;
client.sessionLost = (error: Unconfirmed) => error.reason;

class Told extends HeartbeatClient {
    override linkChanged(status: LinkStatus): void {}
    override messageReceived(message: Message, handling: Handling): void {}
    override pongReceived(rtt_ms: number | null, clients: number | null): void {}
    override sessionLost(error: Unconfirmed): void {}
}

const status: LinkStatus = new Told("ws://127.0.0.1:9000/ws").status;
const waiting: number = client.unconfirmed;

// What it is told.

client.messageReceived = async (message, handling) => {
    await new Promise((then) => setTimeout(then, 1000));
    if (message.type === "order") void client.send({ type: "accepted", id: message.id, seq_of_it: handling.seq });
};

async function talk(): Promise<void> {
    const opened: HeartbeatClient = await client.whenOpen();
    try {
        await opened.send({ type: "order", id: 7, lines: [{ what: "a bun" }] });
    } catch (error) {
        if (error instanceof Unconfirmed) error.messages.map((message: Message) => message.type);
        if (error instanceof SessionFull) await client.whenRoom();
        if (error instanceof Unreachable) client.retry();
        if (error instanceof Error) console.log(error.name, error.message);
    }
    void client.send({ type: "typing" }, { volatile: true });
    client.close();
}

// The parts that decide.

const timing: Timing = {
    interval_ms: 6000,
    timeout_ms: [3000, 6000],
    probe_ms: 3000,
    watch_ms: 12_000,
    tick_ms: 200,
    patience_ms: 60_000,
};
const at: Moment = { now: 0, stalls: 0, given: 0, written: 0 };

function carry(effect: Effect | undefined): number | string | undefined {
    if (effect === undefined) return undefined;
    switch (effect[0]) {
        case "ping":
        case "probe":
            return effect[1].toFixed();
        case "convict":
            return effect[1].toUpperCase();
    }
}

const monitor = new Monitor(timing, false, at);
carry(monitor.open());
at.now += 20;
monitor.heard();
const rtt_ms: number | null | undefined = monitor.answered(1);
const known: boolean = monitor.answered() !== undefined;
monitor.pinged();
monitor.hurry(4);
carry(monitor.woke());
carry(monitor.check());
carry(monitor.convict("silent"));
monitor.declare(monitor.timing, true);
const numbers: number[] = [monitor.heard_at, monitor.sent, monitor.next_at(), monitor.unanswered_for()];
const samples: number[] = [monitor.rtt_ms ?? 0, monitor.srtt ?? 0, monitor.rttvar ?? 0];
const words: [State, string] = [monitor.state, monitor.reason];
const facts: boolean[] = [monitor.busy, monitor.watches];
