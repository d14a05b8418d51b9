// The files that Python and JavaScript share, and how a scenario of the monitor is replayed.

import { readFileSync } from "node:fs";

import { Monitor } from "../../heartbeat/web/static/heartbeat.js";

/** The vectors in a file of this name. */
export const read = (name) => JSON.parse(readFileSync(new URL(`../vectors/${name}.json`, import.meta.url), "utf-8"));

/** Those that are not Python's alone. */
export const ours = (vectors) => vectors.filter(({ only }) => only !== "python");

export const TRANSITIONS = read("transitions");
const { timing: TIMING, roles: ROLES, fresh: FRESH } = TRANSITIONS;

/** By how much a sum of milliseconds may differ from one of seconds. */
const ROUNDING = 1e-6;

/** A monitor, and the moment that it is told of. */
class Replay {
    at = { now: 0, stalls: 0, given: 0, written: 0 };
    // Whether it has asked for a turn of the event loop before it judges.
    asked = false;

    constructor(timing, roles) {
        const { watches, first_ping_ms } = { ...ROLES, ...roles };
        this.monitor = new Monitor({ ...TIMING, ...timing }, watches, this.at);
        if (first_ping_ms) this.monitor.hurry(first_ping_ms);
    }

    /** Take one step; undefined where JavaScript has no such step, else its answer, null for none. */
    step(what, { given = 0, written = 0, stalls = 0, ...more }, now) {
        Object.assign(this.at, { now, given, written, stalls });
        const asked = this.asked;
        if (what === "close" || (what === "confirm" && !asked) || (what === "check" && asked)) return undefined;
        if (["heard", "confirm", "woke", "convict"].includes(what)) this.asked = false;
        const answer = STEPS[what](this.monitor, more) ?? null;
        // It asks by wanting to be called again at once, in a turn of its own.
        if (what !== "check" || answer || this.monitor.next_at() !== now) return answer;
        this.asked = true;
        return ["confirm"];
    }

    looks() {
        const { monitor, at } = this;
        const next_at = monitor.next_at();
        return {
            state: monitor.state,
            next_at_ms: next_at === Infinity || (this.asked && next_at === at.now) ? null : next_at,
            busy: monitor.busy,
            sent: monitor.sent,
            reason: monitor.reason,
            unanswered_for_ms: monitor.unanswered_for(),
        };
    }
}

const STEPS = {
    open: (monitor) => monitor.open(),
    heard: (monitor) => monitor.heard(),
    answered: (monitor, { id }) => monitor.answered(id ?? undefined),
    check: (monitor) => monitor.check(),
    confirm: (monitor) => monitor.check(),
    woke: (monitor) => monitor.woke(),
    pinged: (monitor) => monitor.pinged(),
    declare(monitor, { timing, roles }) {
        const { watches, first_ping_ms } = { ...ROLES, ...roles };
        monitor.declare({ ...TIMING, ...timing }, watches);
        if (first_ping_ms) monitor.hurry(first_ping_ms);
    },
    convict: (monitor, { reason }) => monitor.convict(reason),
};

/** Numbers that differ by a rounding are the same. */
function rounded(seen, expected) {
    if (typeof seen === "number" && typeof expected === "number") {
        return Math.abs(seen - expected) <= ROUNDING ? expected : seen;
    }
    if (!seen || !expected || typeof seen !== "object" || Array.isArray(seen)) return seen;
    return Object.fromEntries(Object.entries(seen).map(([name, value]) => [name, rounded(value, expected[name])]));
}

/** What a scenario expects and what is seen: at the start, and after each step. */
export function* replayed({ timing, roles, begins, steps }) {
    const replay = new Replay(timing, roles);
    let expected = { ...FRESH, ...begins };
    yield ["a new monitor", expected, rounded(replay.looks(), expected)];
    for (const [index, [[what, given, now], answer, changes]] of steps.entries()) {
        // Who closes drops the monitor.
        if (what === "close") return;
        expected = { ...expected, ...changes };
        const answered = replay.step(what, given, now);
        if (answered === undefined) continue;
        const all = { answer, ...expected };
        yield [`step ${index}: ${what} at ${now}`, all, rounded({ answer: answered, ...replay.looks() }, all)];
    }
}
