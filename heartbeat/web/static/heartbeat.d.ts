// The names, units and errors of heartbeat.js. Times are in milliseconds, as their names say.

/** What the heartbeat believes of the other end. */
export type State = "acknowledged" | "waiting" | "suspect" | "dead";

/** What has changed about a link. */
export type LinkEvent =
    | "open"
    | "waiting"
    | "suspect"
    | "acknowledged"
    | "dead"
    | "closed"
    | "reconnecting"
    | "unreachable";

/** What is known of a link at the moment of a change. */
export interface LinkStatus {
    readonly event: LinkEvent;
    /** The heartbeat's; null while there is no open WebSocket. */
    readonly state: State | null;
    /** A sentence for people. */
    readonly detail: string;
    /** Since the last message. */
    readonly silent_for_ms: number;
    /** Since the oldest ping without an answer. */
    readonly unanswered_for_ms: number;
    /** The latest round trip; null before the first that can be told. */
    readonly rtt_ms: number | null;
    /** Whether messages keep coming while pings go unanswered. */
    readonly busy: boolean;
    /** 1 with a session; 0 without: while there is no link, or with a server that only answers pings. */
    readonly level: 0 | 1;
    /** Who the server says we are, where it says so. */
    readonly client_id: string | null;
    /** How many clients are active on the server, where it says so. */
    readonly clients: number | null;
    /** The wire's word for why a link is dead: `silent`, `no-pong`, `refused`; else empty. */
    readonly reason: string;
    /** The close code, of a link that the server closed with one. */
    readonly code: number | null;
    /** Of `reconnecting` and `unreachable`: how many attempts that makes. What the server asked for is none. */
    readonly attempt: number | null;
    /** Of `reconnecting`: how long until it is made. */
    readonly delay_ms: number | null;
}

/**
 * A message of the application. `seq` and `ack` are the session's own, and so are the types `onopen`, `ping`, `ack`,
 * `error` and `drain`: none of them may be sent. What the server could not take comes back as an `error`.
 */
export interface Message {
    type: string;
    [member: string]: unknown;
}

/** The message that is being handled. */
export interface Handling {
    /** Its number in the session, null where it has none. With `sid` it names the message for good. */
    readonly seq: number | null;
    /** The name of the session, null where there is none. */
    readonly sid: string | null;
}

/** What the client needs of a storage; sessionStorage has it. */
export interface SessionStore {
    getItem(key: string): string | null;
    setItem(key: string, value: string): void;
    removeItem(key: string): void;
}

/** The part of a WebSocket that is used; the browser's, or that of the package `ws`. */
export interface Transport {
    readonly bufferedAmount: number;
    onopen: ((event: any) => unknown) | null;
    onmessage: ((event: any) => unknown) | null;
    onclose: ((event: any) => unknown) | null;
    onerror: ((event: any) => unknown) | null;
    send(text: string): void;
    close(code?: number, reason?: string): void;
}

export interface Options {
    /** Who to say we are, and by what right; a function is asked anew for each connection, as for a token that expires. */
    client_id?: string;
    token?: string | (() => string);
    /** Wishes to a server that declares the timing, settings with one that does not. An interval is at least 100 ms. */
    beats?: "client" | "server" | "both" | "none";
    interval_ms?: number;
    /** The clamp of the adaptive deadline for an answer. */
    timeout_ms?: readonly [number, number];
    probe_ms?: number;
    tick_ms?: number;
    patience_ms?: number;
    /** Attempts to get back, and the nominal delay before each; the last one repeats. */
    attempts?: number;
    delays_ms?: readonly [number, ...number[]];
    open_timeout_ms?: number;
    /** Subprotocols to offer. */
    protocols?: string | string[];

    /**
     * Let a Worker keep the time, which nobody slows down in a hidden tab; true: one with this module as its script.
     * Where a bundler made one script of many, that would be all of them: then bring a module Worker whose script
     * imports this module, and whose name is `heartbeat-clock`. It is terminated by `close`.
     */
    worker?: boolean | { postMessage(delay_ms: number): void; onmessage: ((event: any) => unknown) | null; terminate(): void };
    /** Where the session is kept; default the page's sessionStorage, null: nowhere. */
    storage?: SessionStore | null;
    /** The name under which it is kept; by default made of the URL without its query. */
    key?: string;
    /** The WebSocket class; default the global one. */
    WebSocket?: new (url: string | URL, protocols: string | string[]) => Transport;
    /** The window, whose events are listened to; default the global one where it has a document, null: none. */
    page?: any;
    /** Monotonic milliseconds, and milliseconds of the day. */
    clock?: () => number;
    wall?: () => number;
    setTimeout?: (then: () => void, delay_ms: number) => any;
    clearTimeout?: (timer: any) => void;
    /** A number from [0, 1). */
    random?: () => number;
    /** Where to complain; default console. */
    log?: { warn(...what: unknown[]): void; error(...what: unknown[]): void };

    linkChanged?: HeartbeatClient["linkChanged"];
    messageReceived?: HeartbeatClient["messageReceived"];
    pongReceived?: HeartbeatClient["pongReceived"];
    sessionLost?: HeartbeatClient["sessionLost"];
}

/** Keeps one connection to `url` alive, from its construction to `close`. */
export class HeartbeatClient {
    /** Throws SyntaxError for a URL that is none of a WebSocket's, TypeError for an option that is none. */
    constructor(url: string | URL, options?: Options);

    /** What is known of the link now. */
    readonly status: LinkStatus;
    /** How many messages of ours the server has not said it handled. */
    readonly unconfirmed: number;

    // Hooks: assign them, or override them.

    linkChanged(status: LinkStatus): unknown;
    /**
     * A message arrived. May return a promise: the next message waits for it, and only then is this one acknowledged.
     * One that fails is handled all the same, and told to the log.
     */
    messageReceived(message: Message, handling: Handling): unknown;
    /** A ping was answered after `rtt_ms`, null where that cannot be told. */
    pongReceived(rtt_ms: number | null, clients: number | null): unknown;
    /** The session could not be resumed, and these messages were never confirmed. */
    sessionLost(error: Unconfirmed): unknown;

    // To be called, and not to be overridden: each client has its own.

    /**
     * Send a message, now or when the link is open (again). Resolves when the server has handled it; without a
     * session when it was written. Rejects with Unconfirmed or SessionFull. May be ignored.
     * `volatile`: now or not at all, without a number.
     * Throws TypeError for what is no message.
     */
    readonly send: (message: Message, how?: { volatile?: boolean }) => Promise<void>;
    /** Resolves when `send` has room; rejects with Unconfirmed (of none) when the session is lost. */
    readonly whenRoom: () => Promise<void>;
    /** Resolves when the link is open; rejects with Unreachable when it will not be, by itself. */
    readonly whenOpen: () => Promise<this>;
    /** Try again now: after `unreachable`, or instead of waiting for the next attempt. */
    readonly retry: () => void;
    /** Close for good, and end the session. */
    readonly close: () => void;
}

/** Messages that the other end never said it had handled, in the order they were sent, and why: a word. */
export class Unconfirmed extends Error {
    constructor(messages: readonly Message[], reason: string);
    readonly messages: readonly Message[];
    /** `expired`, `unknown`, `epoch`, `gap`, `auth`, `full`, `superseded`, `unreachable`, `too-big` or `closed`. */
    readonly reason: string;
}

/** `send` at the bound of what a session keeps, or of a message that is too large: nothing was kept of it. */
export class SessionFull extends Error {}

/** The attempts are used up, or the server refused for good; `retry` tries again. */
export class Unreachable extends Error {}

// The part that decides, for whoever wants to test or reuse it. It knows no clock and sends nothing.

export interface Timing {
    interval_ms: number;
    timeout_ms: readonly [number, number];
    probe_ms: number;
    watch_ms: number;
    tick_ms: number;
    patience_ms: number;
}

/** What the monitor is to know of the moment; its owner keeps it up to date before each call. */
export interface Moment {
    /** Our running time: a clock's, less what we ourselves were late. */
    now: number;
    /** How often we ourselves were late so far. */
    stalls: number;
    /** Bytes handed to the transport on this link, and those that have left its buffer. */
    given: number;
    written: number;
}

export type Effect = ["ping", number] | ["probe", number] | ["convict", string];

/** One table of states and inputs, and the timers that lead to it; the same as Python's. */
export class Monitor {
    /** A link that opens at `at.now`. `watches`: this end sends no pings, and grows suspicious of silence. */
    constructor(timing: Timing, watches: boolean, at: Moment);
    readonly state: State;
    /** Why it is dead, else empty. */
    readonly reason: string;
    readonly busy: boolean;
    /** How many pings and probes; the latest has this id. */
    readonly sent: number;
    readonly heard_at: number;
    readonly rtt_ms: number | null;
    /** RFC 6298's, of the round trips so far. */
    readonly srtt: number | undefined;
    readonly rttvar: number | undefined;
    readonly timing: Timing;
    readonly watches: boolean;

    // To be called, and not to be overridden: each monitor has its own.

    /** When `check` is to be called; at once, in a turn of its own, when it has asked for that before it judges. */
    readonly next_at: () => number;
    readonly open: () => Effect;
    readonly declare: (timing: Timing, watches: boolean) => void;
    readonly heard: () => void;
    /**
     * Without an id it answers the one ping in flight. The round trip, null where it cannot be told, undefined where
     * the id is of no ping of ours that waits.
     */
    readonly answered: (ping_id?: number) => number | null | undefined;
    readonly pinged: () => void;
    /** The next ping is due so much later, if none is out. */
    readonly hurry: (ms: number) => void;
    readonly woke: () => Effect | undefined;
    readonly check: () => Effect | undefined;
    readonly convict: (reason: string) => Effect;
    readonly unanswered_for: () => number;
}
