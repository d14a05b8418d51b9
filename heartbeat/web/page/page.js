// The live page: shows what its own link to the server is doing now, and lets that link be broken on purpose.
//
// Knows nothing of heartbeats and sessions: that is heartbeat.js, used here as any page may use it. Never asks any
// other host, and never writes HTML.

import { Chart, duration } from "./chart.js";
import { Talk, keep, recall } from "./chat.js";
import { Wire } from "./faults.js";
import { HeartbeatClient } from "./heartbeat.js";
import { $, StatePanel, put, seconds, tell } from "./state.js";

const ATTEMPTS = 3;
const DELAY_MS = 4000;
/** An ordinary beat is answered before this, and is not worth a change of the picture. */
const WAITING_MS = 1000;

const FAULTS = {
    none: "Pull the cable, stop the server, or break the link here, and look what follows.",
    cut: "The link is cut: nothing goes out, nothing comes in, and nobody is told.",
    slow: `Whatever the server says is heard ${DELAY_MS / 1000} s later.`,
};

/** What became of the pings, and the server's opening words: what the client does not tell is seen on the wire. */
class Tally {
    answered = 0;
    late = 0;
    lost = 0;
    reconnects = 0;
    rtt = { sum: 0, count: 0, last: null, min: null, max: null };
    /** The server's answer to the latest opening. */
    opening = {};
    // When the pings were sent that are out, by their id.
    #out = new Map();

    sent(text) {
        const { type, id, status } = JSON.parse(text);
        if (type === "ping" && !status) this.#out.set(id, performance.now());
    }

    received(text) {
        const message = JSON.parse(text);
        if (message.type === "onopen") this.opening = message;
        if (message.type === "ping" && message.status === "pong") this.#out.delete(message.id);
    }

    pong(rtt_ms, is_late) {
        this.answered++;
        this.late += is_late;
        if (rtt_ms === null) return;
        const { sum, count, min, max } = this.rtt;
        this.rtt = {
            sum: sum + rtt_ms,
            count: count + 1,
            last: rtt_ms,
            min: Math.min(min ?? rtt_ms, rtt_ms),
            max: Math.max(max, rtt_ms),
        };
    }

    /** The link has ended; when the pings were sent that nobody will answer now. */
    ended() {
        const lost = [...this.#out.values()];
        this.#out.clear();
        this.lost += lost.length;
        return lost;
    }

    show({ status, unconfirmed }) {
        const { answered, late, lost, reconnects, opening } = this;
        const { sum, count, last, min, max } = this.rtt;
        const { interval_ms, resumed, sid } = opening;
        const rtts = { "rtt-last": last, "rtt-min": min, "rtt-avg": count ? sum / count : null, "rtt-max": max };
        for (const [id, ms] of Object.entries(rtts)) put(id, duration(ms));
        const numbers = { answered, late, lost, reconnects, unconfirmed, clients: status.clients ?? "–" };
        for (const [id, number] of Object.entries(numbers)) put(id, `${number}`);
        if (!status.client_id) return;
        put("session", !sid ? "none" : resumed ? "resumed" : "new");
        put("interval", interval_ms ? `${interval_ms / 1000} s` : "–");
        put("level", `${status.level}`);
        put("client-id", status.client_id);
    }
}

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const served = document.documentElement.dataset.messages.split(" ").filter(Boolean);
const panel = new StatePanel(ATTEMPTS);
const talk = new Talk(served);
const chart = new Chart($("chart"), () => client?.status.unanswered_for_ms ?? 0, calm);
const wire = new Wire({
    sent: (text) => tally.sent(text),
    received: (text) => tally.received(text),
    connecting: () => panel.attempted(),
});
let tally, client;
// Whether the link has been suspect since its last answer.
let is_in_doubt = false;

function opened(status) {
    const { client_id } = status;
    const resumed = Boolean(tally.opening.resumed);
    const name = recall("name");
    const is_honoured = !name || name === client_id;
    if (tally.answered) tally.reconnects++;
    tell("acknowledged", `as ${client_id}, ${resumed ? "the session goes on" : "in a new session"}`, "Open");
    panel.show("acknowledged", status);
    chart.link_opened();
    talk.opened(resumed);
    const note = `The server calls you ${client_id}: it honours names from its own machine only.`;
    put("name-note", is_honoured ? "" : note);
}

function noted(status) {
    tell(status.event, status.detail);
    panel.show(status.event, status);
}

function ended(status) {
    for (const at of tally.ended()) chart.lost(at);
    chart.link_ended();
    noted(status);
}

function reconnecting(status) {
    const { attempt, delay_ms } = status;
    tell("reconnecting", `${attempt ? `attempt ${attempt} of ${ATTEMPTS} ` : ""}in ${seconds(delay_ms)}`);
    panel.show("reconnecting", status);
}

const CHANGES = {
    open: opened,
    waiting: noted,
    suspect: noted,
    acknowledged: noted,
    dead: ended,
    closed: ended,
    reconnecting,
    unreachable: noted,
};

function linkChanged(status) {
    is_in_doubt = status.event === "suspect" || (is_in_doubt && status.event === "waiting");
    CHANGES[status.event](status);
    refresh();
}

function pongReceived(rtt_ms) {
    tally.pong(rtt_ms, is_in_doubt);
    if (rtt_ms !== null) chart.answered(rtt_ms, is_in_doubt);
    panel.beat();
    // The ordinary beat is no change that the client would tell.
    if (panel.state === "waiting" && !is_in_doubt) panel.show("acknowledged", client.status, "quietly");
    refresh();
}

function refresh() {
    if (document.hidden || !client) return;
    const { status } = client;
    const is_waiting = status.state === "waiting" && status.unanswered_for_ms > WAITING_MS;
    if (is_waiting && panel.state === "acknowledged") panel.show("waiting", status, "quietly");
    panel.refresh(status);
    tally.show(client);
}

/** Begin, or begin anew, under the name that was chosen. */
function start() {
    if (client) {
        client.linkChanged = () => {};
        client.close();
        panel.show("connecting");
    }
    tally = new Tally();
    chart.link_ended();
    const url = new URL("/ws", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    client = new HeartbeatClient(url, {
        client_id: recall("name"),
        attempts: ATTEMPTS,
        // Hidden tabs beat on.
        worker: true,
        WebSocket: wire.WebSocket,
        linkChanged,
        pongReceived,
        messageReceived: (message) => talk.heard(message),
        sessionLost: ({ messages }) => talk.lost(messages),
    });
    talk.attach(client);
}

function show_fault() {
    put("cut", wire.is_cut ? "Mend the link" : "Cut the link");
    $("delay").ariaPressed = `${wire.delay_ms > 0}`;
    put("fault", FAULTS[wire.is_cut ? "cut" : wire.delay_ms ? "slow" : "none"]);
}

$("cut").onclick = () => {
    if (wire.is_cut) {
        wire.mend();
        client.retry();
    } else wire.cut();
    show_fault();
};
$("delay").onclick = () => {
    wire.delay_ms = wire.delay_ms ? 0 : DELAY_MS;
    show_fault();
};
$("retry").onclick = () => client.retry();
$("you").onsubmit = (event) => {
    event.preventDefault();
    keep("name", $("name").value);
    start();
};

$("name").value = recall("name") ?? "";
if (!served.length) put("talk-hint", "This server serves no messages; started with --messages chat,group it does.");
show_fault();
start();
setInterval(() => calm.matches || refresh(), 100);
setInterval(refresh, 1000);
document.addEventListener("visibilitychange", refresh);
