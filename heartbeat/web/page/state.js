// How things stand: the state of the link in a word, a sign and a sentence, and the trail of what led to it.
//
// Shows what it is told, and asks nobody. What is set is set only when it is new, for those who listen to the page.

import { duration } from "./chart.js";

/** What is over at once is shown for so long, or nobody would see it. */
const GLIMPSE_MS = 1200;
const MOST_EVENTS = 30;

export const $ = (id) => document.getElementById(id);
export const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;
const sentence = ({ detail }) => `${detail[0].toUpperCase()}${detail.slice(1)}.`;

export function put(id, text) {
    if ($(id).textContent !== text) $(id).textContent = text;
}

/** Of each state its word, its sign in the title, and its sentence about a status of the link. */
const STATES = {
    connecting: ["Connecting", "…", () => "The link is being opened."],
    acknowledged: [
        "Acknowledged",
        "✓",
        ({ rtt_ms: ms }) => (ms === null ? "The link is open." : `The last ping was answered after ${duration(ms)}.`),
    ],
    waiting: ["Waiting", "◌", ({ unanswered_for_ms: ms }) => `A ping is out, and not answered for ${seconds(ms)}.`],
    suspect: [
        "Suspect",
        "▲",
        ({ silent_for_ms: ms }) => `Nothing was heard for ${seconds(ms)}. One more ping is out: the last chance.`,
    ],
    dead: [
        "Dead",
        "✕",
        (status) =>
            status.reason === "silent"
                ? `Nothing was heard for ${seconds(status.silent_for_ms)}, not even after the second ping.`
                : sentence(status),
    ],
    closed: ["Closed", "■", sentence],
    reconnecting: ["Reconnecting", "↻", () => "What is written meanwhile waits, and is sent when the link is back."],
    unreachable: [
        "Unreachable",
        "⊘",
        ({ attempt, ...refused }) => {
            const why = attempt ? `${attempt} attempts have failed.` : sentence(refused);
            return `${why} Nothing more is tried until you ask for it.`;
        },
    ],
};

/** What has happened, the latest first. */
export function tell(state, text, what = STATES[state][0]) {
    const [item, time, word] = ["li", "time", "b"].map((name) => document.createElement(name));
    item.dataset.state = state;
    time.textContent = new Date().toLocaleTimeString();
    word.textContent = what;
    item.append(time, word, ` ${text}`);
    $("events").prepend(item);
    $("events").children[MOST_EVENTS]?.remove();
}

/** The panel that says how things stand. */
export class StatePanel {
    /** Which state is shown. */
    state = "connecting";
    // Which one is to be shown, at once or in a moment.
    #wanted = "connecting";
    #later;
    #shown_at = 0;
    #attempts;
    #beats = 0;
    // The next attempt: which, when, and how long the wait for it is in all.
    #attempt = { number: 0, at: 0, delay_ms: 0 };

    /** `attempts` are made before the link is unreachable. */
    constructor(attempts) {
        this.#attempts = attempts;
    }

    /**
     * Show a state, told by this status. What has not been seen yet is left to be seen for a moment. `quietly`: it is
     * part of the beat, and no news to those who listen.
     */
    show(state, status, quietly) {
        const now = performance.now();
        clearTimeout(this.#later);
        this.#wanted = state;
        if (state === "reconnecting") {
            const { attempt, delay_ms } = status;
            this.#attempt = { number: attempt, at: now + delay_ms, delay_ms };
        }
        const is_glimpse = ["dead", "closed"].includes(this.state) && ["reconnecting", "unreachable"].includes(state);
        const wait = is_glimpse ? this.#shown_at + GLIMPSE_MS - now : 0;
        if (wait > 0) this.#later = setTimeout(() => this.#show(state, status), wait);
        else this.#show(state, status, quietly);
    }

    /** An attempt to connect is being made, whoever asked for it. */
    attempted() {
        this.#attempt.at = 0;
        if (this.#wanted === "unreachable") this.show("connecting");
        this.refresh();
    }

    /** A ping was answered. */
    beat() {
        // Two names for one animation: that the name changes is what starts it again.
        $("beat").dataset.beat = ++this.#beats % 2;
    }

    /** Time has passed. `status` is the link's now. */
    refresh(status) {
        const left = this.#attempt.at - performance.now();
        const is_between = this.state === "reconnecting";
        const is_ahead = is_between && left > 0;
        if (status && ["acknowledged", "waiting", "suspect"].includes(this.state)) {
            put("sentence", STATES[this.state][2](status));
        }
        this.#offer(is_ahead ? "Try now" : this.state === "unreachable" ? "Try again" : "");
        $("countdown").hidden = !is_between;
        const { number, delay_ms } = this.#attempt;
        // When a server has asked to be left alone for a while, to come back then is no attempt.
        const which = number ? `Attempt ${number} of ${this.#attempts}` : "The next attempt";
        put("attempt", `${which} ${is_ahead ? `in ${seconds(left)}` : "is being made"}`);
        $("progress").value = is_ahead ? 1 - left / delay_ms : 1;
    }

    #show(state, status, quietly) {
        const [word, sign, words] = STATES[state];
        const said = words(status);
        this.state = state;
        this.#shown_at = performance.now();
        $("now").dataset.state = state;
        $("sign").setAttribute("href", `#sign-${state}`);
        put("word", word);
        put("sentence", said);
        if (!quietly) put("said", `${word}. ${said}`);
        document.title = `${sign} ${word} – txheartbeat`;
        this.refresh();
    }

    #offer(what) {
        const button = $("retry");
        // Who had it under his fingers is not sent back to the top of the page.
        if (!what && document.activeElement === button) $("cut").focus();
        button.hidden = !what;
        put("retry", what);
    }
}
