// A server of docs/protocol.md as small as it can be, for walks by chance: one client, its sessions, in memory.
// It notes each breach of the rules, of which a client of ours commits none.

/** One session, as the server holds it. */
class Session {
    sent = 0;
    confirmed = 0;
    handled = 0;
    attempt = 0;
    kept = [];
    told = 0;
    is_known = false;
    over = "";
    socket = null;
    left_at = Infinity;

    constructor(sid) {
        this.sid = sid;
    }
}

/**
 * `handled` is called with each message of the client's, once and in order within its session; `lost` with each of ours
 * that was not confirmed when its session ended. `window_ms` is how long a session is kept, `kept` how many messages of
 * the client's may be unconfirmed, `ack_ms` how long an acknowledgement may wait for a frame that goes out anyway.
 */
export class Server {
    epoch = 1;
    sessions = new Map();
    present = null;
    breaches = [];
    openings = 0;
    resumed = 0;
    refused = {};
    #sids = 0;
    // What each socket that is open has come to: its session, once there is one.
    #sockets = new Map();

    constructor(time, { handled, lost, window_ms, kept, ack_ms = 50 }) {
        this.time = time;
        this.handled = handled;
        this.lost = lost;
        this.window_ms = window_ms;
        this.ack_ms = ack_ms;
        this.limits = { message: 65536, ping: 1024, kept, kept_bytes: 1048576 };
    }

    // What happens to its sockets.

    opened(socket) {
        this.#sockets.set(socket, null);
    }

    heard(text, socket) {
        if (this.#sockets.has(socket)) this.#heard(JSON.parse(text), text, socket);
    }

    closed(code, socket) {
        const session = this.#sockets.get(socket);
        this.#leave(socket);
        if (session && code === 1000) this.#end(session, "closed");
        else if (code === 4010 || code === 4011) this.breaches.push(`it closed ${code}`);
    }

    // What it does by itself.

    /**
     * Send a message in the session that was opened last. Returns whether there is one that the client knows of: a page
     * that goes before it has read the answer to its opening never comes back to that session.
     */
    send(message) {
        const session = this.present;
        if (!session?.is_known) return false;
        session.kept.push({ ...message, seq: ++session.sent });
        if (session.socket) this.#write(session, session.kept.at(-1));
        return true;
    }

    /** End every connection with this code, or without one. */
    drop(code = null) {
        for (const [socket] of this.#sockets) {
            if (code === null) socket.drop();
            else socket.end(code);
            this.#leave(socket);
        }
    }

    /** All is forgotten, as by a crash of a server that keeps nothing. */
    crash() {
        this.drop();
        for (const session of [...this.sessions.values()]) this.#end(session, "epoch");
        this.epoch++;
    }

    /** A ping of the server's own. */
    ping() {
        const session = this.present;
        if (session?.socket)
            session.socket.say(JSON.stringify({ type: "ping", id: this.openings, ack: this.#tell(session) }));
    }

    // What comes in.

    #heard(message, text, socket) {
        const session = this.#sockets.get(socket);
        const { type } = message;
        if (type === "onopen") return this.#judge(message, socket);
        if (!session) {
            if (type !== "ping" || "ack" in message) this.breaches.push(`before the answer: ${text}`);
            // It waits behind the answer, which has gone out by now.
            return undefined;
        }
        if ("ack" in message && !this.#confirm(session, message.ack)) return this.breaches.push(`ack: ${text}`);
        session.is_known ||= "ack" in message;
        if (type === "ping") return this.#pinged(session, message, socket);
        if (type !== "ack") return this.#numbered(session, message, text);
        return undefined;
    }

    #pinged(session, message, socket) {
        if (message.status === "pong") return;
        // The one that came with the opening has none.
        if (!("ack" in message) && message.id !== 1)
            this.breaches.push(`a ping without an ack: ${JSON.stringify(message)}`);
        socket.say(JSON.stringify({ ...message, status: "pong", clients: 1, ack: this.#tell(session) }));
    }

    #numbered(session, message, text) {
        const { seq, ack, ...told } = message;
        if (!Number.isInteger(seq) || !Number.isInteger(ack)) this.breaches.push(`no number: ${text}`);
        if (seq > session.handled + 1) this.breaches.push(`a gap after ${session.handled}: ${text}`);
        if (seq !== session.handled + 1) return;
        session.handled = seq;
        this.handled(told);
        this.time.elsewhere(this.ack_ms, () => {
            if (session.socket && session.told < session.handled) {
                session.socket.say(JSON.stringify({ type: "ack", ack: this.#tell(session) }));
            }
        });
    }

    #confirm(session, upto) {
        if (!Number.isInteger(upto) || upto > session.sent) return false;
        if (upto > session.confirmed) {
            session.kept.splice(0, upto - session.confirmed);
            session.confirmed = upto;
        }
        return true;
    }

    #tell(session) {
        return (session.told = session.handled);
    }

    #write(session, message) {
        session.socket.say(JSON.stringify({ ...message, ack: this.#tell(session) }));
    }

    // Openings.

    #judge({ session: named }, socket) {
        const known = named && this.sessions.get(named.sid);
        const reason = named ? this.#refusal(named, known) : "";
        if (reason === "superseded") {
            socket.end(4001, "a later attempt has resumed this session");
            this.#sockets.delete(socket);
            return;
        }
        const session = reason === null ? known : new Session(`s-${++this.#sids}`);
        if (reason === null) this.#resume(session, named);
        else if (reason) this.refused[reason] = (this.refused[reason] ?? 0) + 1;
        this.sessions.set(session.sid, session);
        this.present = session;
        session.socket = socket;
        session.left_at = Infinity;
        this.#sockets.set(socket, session);
        this.openings++;
        this.#answer(
            session,
            socket,
            reason === null ? { resumed: true } : { resumed: false, ...(reason && { reason }) },
        );
        for (const message of session.kept) this.#write(session, message);
        this.time.elsewhere(0, () => this.#overdue());
    }

    #refusal({ epoch, last, sent, try: attempt }, known) {
        if (epoch !== `e-${this.epoch}`) return "epoch";
        if (!known) return "expired";
        if (attempt <= known.attempt) return "superseded";
        if (last < known.confirmed || last > known.sent || sent < known.handled) {
            // In a walk nobody ever loses count.
            this.breaches.push(`numbers that do not fit: ${JSON.stringify({ last, sent })}`);
            return "gap";
        }
        return null;
    }

    #resume(session, { last, try: attempt }) {
        if (session.socket) {
            // Cut off in the same turn: nothing more is read from it.
            session.socket.end(4001, "another connection has resumed this session");
            this.#sockets.delete(session.socket);
        }
        session.attempt = attempt;
        this.#confirm(session, last);
        this.resumed++;
    }

    #answer(session, socket, more) {
        const { sid, handled, sent } = session;
        session.told = handled;
        const answer = {
            type: "onopen", status: "ok", client_id: "c-1", interval_ms: 6000, clients: 1, v: 1, sid,
            epoch: `e-${this.epoch}`, ...more, last: handled, sent, window_ms: this.window_ms, beats: "client",
            watch_ms: 12000, timeout_ms: [3000, 6000], probe_ms: 3000, limits: this.limits,
        }; // prettier-ignore
        socket.say(JSON.stringify(answer));
    }

    // How it ends.

    #leave(socket) {
        const session = this.#sockets.get(socket);
        this.#sockets.delete(socket);
        if (!session || session.socket !== socket) return;
        session.socket = null;
        session.left_at = this.time.now;
        this.time.elsewhere(this.window_ms, () => this.#overdue());
    }

    #overdue() {
        // A connection that was cut is found dead by the watch, here at once: what matters is when the client is back.
        for (const session of [...this.sessions.values()]) {
            if (session.socket?.is_dead) this.#leave(session.socket);
            if (this.time.now - session.left_at >= this.window_ms) this.#end(session, "expired");
        }
    }

    #end(session, reason) {
        if (session.over) return;
        session.over = reason;
        this.sessions.delete(session.sid);
        if (this.present === session) this.present = null;
        for (const { seq, ...message } of session.kept) this.lost(message);
    }

    /** What is left in sessions that nobody will come back to. */
    abandoned() {
        for (const session of [...this.sessions.values()]) if (session !== this.present) this.#end(session, "left");
    }
}
