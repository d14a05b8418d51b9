// The operator's page: how a server is, who is there, and why links died; asked of it every two seconds. Where it is one
// of a fleet it is asked how all of them are.
//
// Keeps the token, and what it has seen, in memory only. Never writes HTML: a client's id is a stranger's text.

const EVERY_MS = 2000;
/** Clients that are shown, and round trips that are drawn of each. */
const [PAGE, SPAN] = [50, 60];
/** So long a button waits to be pressed once more. */
const SURE_MS = 4000;
const [WIDTH, HEIGHT] = [96, 28];
/** So long a server is shown that answers no more; Redis lets go of it before. */
const LEASE_MS = 20_000;

const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

let token = "";
/** What is before all that is asked: nothing, or the fleet's. */
let whose = "";
let after = "";
let next = null;

/** A refusal of the server's, in its own words. */
class Refused extends Error {
    constructor(status, sentence) {
        super(sentence.trim());
        this.status = status;
    }
}

async function ask(path, method = "GET") {
    const headers = token ? { authorization: `Bearer ${token}` } : {};
    const signal = AbortSignal.timeout(5 * EVERY_MS);
    const answer = await fetch(path, { method, headers, signal, cache: "no-store" });
    if (!answer.ok) throw new Refused(answer.status, await answer.text());
    return answer.json();
}

function put(element, text) {
    if (element.textContent !== text) element.textContent = text;
}

function say(sentence) {
    put($("note"), sentence);
    put($("said"), sentence);
}

// How numbers are written.

const sum = (counts) => Object.values(counts ?? {}).reduce((all, one) => all + one, 0);

const counted = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

function size(bytes) {
    if (bytes === null) return "–";
    const step = [
        [2 ** 30, "GiB"],
        [2 ** 20, "MiB"],
        [2 ** 10, "KiB"],
    ].find(([of]) => bytes >= of);
    return step ? `${(bytes / step[0]).toFixed(1)} ${step[1]}` : `${bytes} B`;
}

function span(seconds) {
    if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
    return seconds < 7200 ? `${Math.floor(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

const trip = (ms) => (ms < 999.5 ? `${ms.toFixed(ms < 99.95 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(2)} s`);

// How the server is.

const STATES = { ready: "acknowledged", leaving: "suspect", silent: "dead", closed: "closed" };

/** Why nobody should be sent to the server whose page this is, or to any. */
const own_reason = ({ servers, unready }) => (servers?.length === 1 && servers[0].unready) || unready;

const upper = (sentence) => `${sentence[0].toUpperCase()}${sentence.slice(1)}.`;

function show_state(state, word, sentence) {
    const section = $("now");
    if (section.dataset.state !== STATES[state]) {
        section.dataset.state = STATES[state];
        put($("said"), `${word}. ${sentence}`);
    }
    put($("word"), word);
    put($("sentence"), sentence);
    document.title = `${word} – txheartbeat`;
}

function show_totals(totals) {
    const { clients, states, room, connections, unready } = totals;
    const there = room === null ? "any number of connections" : `${room} connections`;
    const beats = `Beats every ${totals.interval_s} s; a dead peer is found within ${totals.bound_s.toFixed(1)} s.`;
    const is_alone = whose && !totals.fleet.up;
    if (unready && !totals.ready) show_state("leaving", "Not ready", upper(whose ? own_reason(totals) : unready));
    else if (is_alone) show_state("leaving", "Alone", "Redis is away: this is what one server of the fleet sees by itself.");
    else if (unready) show_state("leaving", "Partly ready", upper(unready));
    else show_state("ready", "Ready", `Room for ${there}. ${beats}`);
    const numbers = {
        ...clients,
        connections,
        sessions: totals.sessions,
        kept: size(totals.kept_bytes),
        outgoing: size(totals.outgoing_bytes),
        longest: size(totals.outgoing_longest_bytes),
        waiting: states.waiting + states.suspect,
        late: trip(totals.late_s * 1000),
        convictions: sum(totals.convictions),
        suspicions: totals.suspicions,
        relieved: totals.relieved,
        reconnects: totals.reconnects,
        resumes: totals.resumes,
        "not-resumed": sum(totals.resumes_refused),
        replayed: totals.replayed,
        opened: totals.opened,
        refused: sum(totals.refused),
    };
    for (const [id, number] of Object.entries(numbers)) put($(id), `${number}`);
}

/** Have a table's body hold the elements of these, in order. */
function fill(body, shown) {
    const wanted = [...shown.values()].map(({ element }) => element);
    // Who has a button under his fingers keeps it: nothing is moved that is in its place.
    for (const element of [...body.children]) if (!wanted.includes(element)) element.remove();
    wanted.forEach((element, index) => {
        if (body.children[index] !== element) body.insertBefore(element, body.children[index] ?? null);
    });
}

// Who is there.

/** A button that does what cannot be undone: pressed twice. */
function arm(button, what, act) {
    let later;
    const rest = () => {
        clearTimeout(later);
        later = undefined;
        put(button, what);
    };
    button.onclick = async () => {
        if (!token) {
            say("This needs the token.");
            $("token").focus();
            return;
        }
        if (later === undefined) {
            put(button, "Really?");
            later = setTimeout(rest, SURE_MS);
            return;
        }
        rest();
        try {
            say(await act());
        } catch (error) {
            say(`${what}: ${error.message}.`);
        }
        watch();
    };
    rest();
}

/** A row of a table: `labels` stand above its columns but the first, for where there is no room for that. */
function row_of(labels, name, button) {
    const element = document.createElement("tr");
    const cells = Array.from({ length: labels.length + 2 }, () => document.createElement("td"));
    for (const [index, label] of labels.entries()) cells[index + 1].dataset.label = label;
    put(cells[0], name);
    cells[0].title = name;
    button.type = "button";
    cells.at(-1).append(button);
    element.append(...cells);
    return [element, cells];
}

const SERVER_LABELS = ["State", "Connections", "Active", "Suspect", "Found dead", "Queue", "Tick was late", "Up for"];

/** A server of the fleet. */
class Server {
    #button = document.createElement("button");
    #cells;

    constructor(node, name, is_this) {
        this.name = name;
        [this.element, this.#cells] = row_of(SERVER_LABELS, name, this.#button);
        if (is_this) {
            const note = document.createElement("small");
            note.textContent = "this one";
            this.#cells[0].append(note);
        }
        this.#button.setAttribute("aria-label", `Drain ${name}`);
        arm(this.#button, "Drain", async () => {
            await ask(`fleet/servers/${encodeURIComponent(node)}/drain`, "POST");
            return `${name} asks everybody to come back later, and closes.`;
        });
    }

    /** What it says of itself; nothing where it has not answered. */
    show(totals) {
        const [, state, connections, active, suspect, dead, queue, late, age] = this.#cells;
        if (totals) this.seen_at = Date.now();
        const word = totals ? totals.unready || "ready" : "no answer";
        put(state, word);
        state.dataset.state = totals ? (totals.unready ? "suspect" : "acknowledged") : "dead";
        this.#button.hidden = !totals;
        if (!totals) return;
        // One of another version may not know of all.
        put(connections, `${totals.connections ?? "–"}`);
        put(active, `${totals.clients.active ?? "–"}`);
        put(suspect, `${totals.clients.suspect ?? "–"}`);
        put(dead, `${sum(totals.convictions)}`);
        put(queue, size(totals.outgoing_bytes ?? null));
        put(late, trip((totals.late_s ?? 0) * 1000));
        put(age, span(Math.max(0, totals.at - totals.watched_since)));
    }
}

let nodes = new Map();

const name_of = (node) => nodes.get(node)?.name ?? node;

function show_servers({ servers, missing, fleet }) {
    const shown = new Map();
    for (const totals of servers) {
        const is_twin = servers.some(({ node, server }) => server === totals.server && node !== totals.node);
        const name = is_twin ? `${totals.server} ${totals.node.slice(0, 4)}` : totals.server;
        const known = nodes.get(totals.node);
        const server = known?.name === name ? known : new Server(totals.node, name, totals.is_this);
        server.show(totals);
        shown.set(totals.node, server);
    }
    // Who was there before, and does not answer: until its lease has surely ended, or as long as nobody can be asked.
    for (const [node, server] of nodes) {
        const is_awaited = fleet.up ? missing > 0 && Date.now() - server.seen_at < LEASE_MS : true;
        if (shown.has(node) || !is_awaited) continue;
        server.show(null);
        shown.set(node, server);
    }
    const by_name = ([, one], [, other]) => (one.name < other.name ? -1 : Number(one.name > other.name));
    nodes = new Map([...shown].sort(by_name));
    fill($("nodes"), nodes);
}

/** What is watched from now on: the fleet, or this server alone. */
function be_of(fleet) {
    whose = fleet ? "fleet/" : "";
    $("servers").hidden = !fleet;
    put($("what"), fleet ? "fleet" : "server");
    for (const element of document.querySelectorAll(".whose")) put(element, fleet ? "this fleet" : "this server");
}

const LABELS = ["Standing", "State", "Round trip", "Silent for", "Open for", "Queue", "Peer"];

/** One connection of a client, or a client without any. */
class Row {
    button = document.createElement("button");
    #cells;
    #trips = [];
    #line = document.createElementNS(SVG, "polyline");
    #text = document.createElement("span");

    constructor(client_id) {
        const svg = document.createElementNS(SVG, "svg");
        svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
        svg.setAttribute("aria-hidden", "true");
        svg.append(this.#line);
        [this.element, this.#cells] = row_of(LABELS, client_id, this.button);
        this.#cells[3].append(svg, this.#text);
        this.button.setAttribute("aria-label", `Kick ${client_id}`);
        arm(this.button, "Kick", async () => {
            const { closed, missing } = await ask(`${whose}clients/${encodeURIComponent(client_id)}/kick`, "POST");
            const silent = missing ? ` No answer from ${counted(missing, "server")}.` : "";
            return `Kicked ${client_id}: ${counted(closed, "connection")}.${silent}`;
        });
    }

    show(client, connection) {
        const state = connection?.state ?? "closed";
        const [, standing, word, , silent, age, queue, peer] = this.#cells;
        put(standing, connection?.standing ?? client.standing ?? "–");
        put(word, connection ? `${state}${connection.busy ? ", busy" : ""}` : "–");
        word.dataset.state = state;
        put(silent, connection ? span(connection.silent_for_s) : "–");
        put(age, connection ? span(connection.age_s) : "–");
        put(queue, connection ? size(connection.outgoing_bytes) : "–");
        const where = connection?.node ? `, at ${name_of(connection.node)}` : "";
        const kept = `${counted(client.sessions, "session")} kept`;
        put(peer, connection ? `${connection.peer}, level ${connection.level}${where}` : kept);
        this.button.hidden = !connection;
        this.#show_trip(connection?.rtt_ms ?? null, connection?.tcp_rtt_ms ?? null);
    }

    #show_trip(own_ms, kernels_ms) {
        const ms = own_ms ?? kernels_ms;
        if (ms === null) {
            put(this.#text, "–");
            return;
        }
        this.#trips = [...this.#trips.slice(1 - SPAN), ms];
        put(this.#text, `${trip(ms)}${own_ms === null ? "*" : ""}`);
        const high = Math.max(1, ...this.#trips) * 1.1;
        const points = this.#trips.map((one, index) => {
            const x = WIDTH - (this.#trips.length - 1 - index) * (WIDTH / (SPAN - 1));
            return `${x.toFixed(1)},${(HEIGHT - 1 - (one / high) * (HEIGHT - 2)).toFixed(1)}`;
        });
        this.#line.setAttribute("points", points.join(" "));
    }
}

let rows = new Map();

function show_clients({ clients, next: following }) {
    next = following;
    $("next").disabled = !next && !after;
    put($("next"), next || !after ? `Next ${PAGE}` : "From the first");
    const shown = new Map();
    for (const client of clients) {
        for (const connection of client.connections.length ? client.connections : [null]) {
            const key = JSON.stringify([client.client_id, connection?.peer ?? null, connection?.node]);
            const row = rows.get(key) ?? new Row(client.client_id);
            row.show(client, connection);
            shown.set(key, row);
        }
    }
    rows = shown;
    fill($("rows"), rows);
    $("empty").hidden = rows.size > 0;
}

// Why links died.

const REASONS = {
    silent: "was silent",
    "no-pong": "sent bytes, and no answer",
    broken: "broke off",
};

let last_deaths = "";

function show_deaths({ deaths }) {
    const key = JSON.stringify(deaths);
    if (key === last_deaths) return;
    last_deaths = key;
    const items = deaths.map((death) => {
        const [item, time, who] = ["li", "time", "b"].map((name) => document.createElement(name));
        item.dataset.state = death.reason === "broken" ? "closed" : "dead";
        time.dateTime = new Date(death.at * 1000).toISOString();
        time.textContent = new Date(death.at * 1000).toLocaleString();
        who.textContent = death.client_id;
        const evidence = [
            death.detail,
            death.reason !== "silent" && `silent for ${span(death.silent_for)}`,
            death.unanswered_for > 0 && `no answer for ${span(death.unanswered_for)}`,
            death.rtt !== null && `last round trip ${trip(death.rtt * 1000)}`,
            death.busy && "busy",
            `level ${death.level}`,
            `open for ${span(death.age)}`,
            death.peer,
            death.node && `at ${name_of(death.node)}`,
        ];
        item.append(time, who, ` ${REASONS[death.reason] ?? death.reason}: ${evidence.filter(Boolean).join(", ")}`);
        return item;
    });
    $("deaths").replaceChildren(...items);
    $("no-deaths").hidden = items.length > 0;
}

// Watching.

let [is_asking, is_due] = [false, false];

async function watch() {
    is_due = is_asking;
    if (is_asking || document.hidden) return;
    is_asking = true;
    const query = new URLSearchParams({ limit: PAGE, after, standing: $("standing").value });
    try {
        const what = ["totals", `clients?${query}`, "deaths"];
        const [totals, clients, deaths] = await Promise.all(what.map((one) => ask(whose + one)));
        if (totals.servers) show_servers(totals);
        else if (totals.fleet) {
            be_of(true);
            is_due = true;
        }
        show_totals(totals);
        show_clients(clients);
        show_deaths(deaths);
    } catch (error) {
        if (whose && error.status === 404) {
            // It was started again, as no server of a fleet.
            be_of(false);
            is_due = true;
        } else if (error instanceof Refused) show_state("closed", "Refused", `The server says: ${error.message}.`);
        else show_state("silent", "No answer", "The server does not answer this page.");
    }
    is_asking = false;
    // Something else was wanted meanwhile.
    if (is_due) watch();
}

function turn_to(client_id) {
    after = client_id;
    watch();
}

arm($("drain"), "Drain this server", async () => {
    await ask("drain", "POST");
    return "The server asks everybody to come back later, and closes.";
});
$("may").onsubmit = (event) => {
    event.preventDefault();
    token = $("token").value.trim();
    $("token").value = "";
    $("drain").hidden = !token;
    say("The token is kept until this page is closed. The server judges it when it is used.");
    watch();
};
$("which").onsubmit = (event) => {
    event.preventDefault();
    turn_to($("after").value.trim());
};
$("standing").onchange = () => turn_to("");
$("next").onclick = () => {
    turn_to(next ?? "");
    $("after").value = after;
};
document.addEventListener("visibilitychange", watch);
setInterval(watch, EVERY_MS);
watch();
