// The wire under the page's own link, which can be listened to, cut and made slow.
//
// A fault is made here as the network makes it: nobody is told. A link that was cut neither closes nor fails, it is
// silent; whoever wants to know must ask. Never touches what is said.

/**
 * Where the page's WebSockets come from. `tap.sent(text)` and `tap.received(text)` hear what the client does,
 * `tap.connecting()` that it makes an attempt.
 */
export class Wire {
    is_cut = false;
    /** How much later than it came a message is heard. */
    delay_ms = 0;
    #tap;
    #sockets = new Set();

    constructor(tap) {
        this.#tap = tap;
    }

    /** The class to give to a client in the place of the browser's. */
    get WebSocket() {
        const [tap, wire, sockets] = [this.#tap, this, this.#sockets];
        return class extends Socket {
            constructor(url, protocols) {
                super(url, protocols, tap, wire, sockets);
            }
        };
    }

    /** From now on nothing goes out and nothing comes in, and no new socket opens. */
    cut() {
        this.is_cut = true;
        for (const socket of this.#sockets) socket.cut();
    }

    /** New sockets open again, those that were waiting for it too. What was open when it was cut stays dead. */
    mend() {
        this.is_cut = false;
        for (const socket of this.#sockets) socket.mended();
    }
}

/** As much of a WebSocket as the client uses, over one of the browser's. */
class Socket {
    onopen = null;
    onmessage = null;
    onclose = null;
    onerror = null;
    #where;
    #tap;
    #wire;
    #sockets;
    #browsers = null;
    #dead = false;
    // How it was closed while nothing could go out.
    #farewell = null;
    #arrived = [];

    constructor(url, protocols, tap, wire, sockets) {
        this.#where = [url, protocols];
        this.#tap = tap;
        this.#wire = wire;
        this.#sockets = sockets.add(this);
        tap.connecting();
        if (!wire.is_cut) this.#connect();
    }

    get bufferedAmount() {
        return this.#browsers?.bufferedAmount ?? 0;
    }

    send(text) {
        this.#tap.sent(text);
        if (!this.#dead) this.#browsers.send(text);
    }

    close(...why) {
        if (!this.#browsers) this.#sockets.delete(this);
        // On a line that is cut no close frame would leave; the server must find out by itself.
        else if (this.#wire.is_cut) this.#farewell = why;
        else this.#browsers.close(...why);
    }

    cut() {
        this.#dead ||= this.#browsers?.readyState > WebSocket.CONNECTING;
        if (this.#dead) return;
        // It has not opened yet, and does so when the line is back.
        this.#browsers?.close();
        this.#browsers = null;
    }

    mended() {
        if (this.#farewell) this.#browsers.close(...this.#farewell);
        else if (!this.#browsers) this.#connect();
    }

    #connect() {
        const socket = (this.#browsers = new WebSocket(...this.#where));
        for (const kind of ["open", "message", "close", "error"]) {
            socket.addEventListener(kind, (event) => socket === this.#browsers && this.#arrive(event));
        }
        socket.addEventListener("close", () => socket === this.#browsers && this.#sockets.delete(this));
    }

    /** Heard now, or later. Whatever its own delay, nothing overtakes what came before it. */
    #arrive(event) {
        const wait_ms = event.type === "message" ? this.#wire.delay_ms : 0;
        this.#arrived.push(event);
        if (wait_ms) setTimeout(() => this.#hear(), wait_ms);
        else this.#hear();
    }

    #hear() {
        const event = this.#arrived.shift();
        if (this.#dead) return;
        if (event.type === "message") this.#tap.received(event.data);
        this[`on${event.type}`]?.(event);
    }
}
