// Chat, group chat and questions to a model, over the session of the page's link.
//
// Loses nothing that the session does not lose: what is written waits, under the reader's eyes, until the server has
// handled it, and what was said is still there after a reload. Never decides what became of a message: the server says.

/** So many lines are kept of each conversation. */
const MOST_LINES = 200;

/** What comes within so many ms is kept, and scrolled to, at once: either costs as much for a hundred lines as for one. */
const TOGETHER_MS = 50;

/** What became of a message of ours, in words; a fate that is not listed is a word itself. */
const FATES = {
    queued: "✓ queued until it is read",
    delivered: "✓✓ delivered",
    said: "✓ said",
    sent: "✓ sent, more cannot be known",
    lost: "✕ lost: its session ended first",
    unknown: "✕ unknown: there is no such client",
    full: "✕ full: there is no room for it",
    unconfirmed: "✕ unconfirmed: the session ended first",
    refused: "✕ refused",
    failed: "✕ failed",
};

const remembered = {};

/** Remember a value over a reload of this tab; where that is forbidden, for as long as the page is there. */
export function keep(name, value) {
    remembered[name] = value;
    try {
        sessionStorage.setItem(`page ${name}`, JSON.stringify(value));
    } catch {
        // Forbidden, or full: what is remembered ends with the page.
    }
}

/** What was kept under this name; undefined, or null, where nothing was. */
export function recall(name) {
    if (name in remembered) return remembered[name];
    try {
        remembered[name] = JSON.parse(sessionStorage.getItem(`page ${name}`));
    } catch {
        // Forbidden: there is nothing.
    }
    return remembered[name];
}

/** Ids that no page before this one has given to a message. */
const next_id = (() => {
    const page = crypto.getRandomValues(new Uint32Array(1))[0].toString(36);
    let count = 0;
    return () => `${page}-${++count}`;
})();

const counted = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

function element(name, className, ...content) {
    const made = Object.assign(document.createElement(name), { className });
    made.append(...content);
    return made;
}

/** The lines of one conversation, on the page and in the storage. What still waits stands below all else. */
class Lines {
    #log;
    #name;
    #lines;
    #items = new Map();
    #settle = null;

    constructor(log, name) {
        this.#log = log;
        this.#name = `lines of ${name}`;
        this.#lines = [];
        for (const line of recall(this.#name) ?? []) this.#put(line);
        log.scrollTop = log.scrollHeight;
        // Whatever comes after this page finds what this one has shown last.
        addEventListener("pagehide", () => this.#settle?.());
    }

    /** A line: `text`, by `who`; `own` ones have an `id` and a `fate`. */
    add(line) {
        this.#stay_at_end(() => {
            this.#put({ id: next_id(), at: Date.now(), ...line });
            for (const { id } of this.#lines.splice(0, this.#lines.length - MOST_LINES)) {
                this.#items.get(id).remove();
                this.#items.delete(id);
            }
        });
    }

    /** Change the line of this id, and return it; undefined where there is none. */
    change(id, change) {
        const line = this.#lines.find((one) => one.id === id);
        if (line) this.#stay_at_end(() => this.#show(Object.assign(line, change(line))));
        return line;
    }

    /** What became of a message, and why. That it is unconfirmed is news only of one that still waits. */
    fate(id, fate, why) {
        return this.change(id, (line) => (fate === "unconfirmed" && line.fate !== "waiting" ? {} : { fate, why }));
    }

    get waiting() {
        return this.#lines.filter(({ fate }) => fate === "waiting").map(({ id }) => id);
    }

    #put(line) {
        const waits = line.fate === "waiting";
        const first = waits ? -1 : this.#lines.findIndex(({ fate }) => fate === "waiting");
        const before = first < 0 ? null : this.#items.get(this.#lines[first].id);
        this.#log.querySelector("ol").insertBefore(this.#item(line), before);
        this.#show(line);
        this.#lines.splice(first < 0 ? this.#lines.length : first, 0, line);
    }

    #stay_at_end(change) {
        if (!this.#settle) {
            const log = this.#log;
            const is_at_end = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
            this.#settle = () => {
                this.#settle = null;
                if (is_at_end) log.scrollTop = log.scrollHeight;
                keep(this.#name, this.#lines);
            };
            setTimeout(this.#settle, TOGETHER_MS);
        }
        change();
    }

    #item({ id, at, who, own }) {
        const time = element("time", "", new Date(at).toLocaleTimeString());
        time.dateTime = new Date(at).toISOString();
        const speaker = who ? [element("b", "", who), " "] : [];
        const meta = element("p", "meta", ...speaker, time, " ", element("span", "fate"));
        const item = element("li", own ? "own" : who ? "other" : "note", element("p", "text"), meta);
        this.#items.set(id, item);
        return item;
    }

    /** Only what is new is set, or a reader of the screen would be told all of it again. */
    #show({ id, text, fate = "", why }) {
        const item = this.#items.get(id);
        const said = FATES[fate] ?? fate;
        const set = (part, words) => {
            if (part.textContent !== words) part.textContent = words;
        };
        set(item.querySelector(".text"), text);
        set(item.querySelector(".fate"), why ? `${said}: ${why}` : said);
        item.dataset.fate = fate;
        item.classList.toggle("bad", said.startsWith("✕"));
    }
}

/** What the three conversations share: a panel, its lines, and the client they go over. */
class Conversation {
    /** Set by whoever has one. */
    client = null;
    #forgotten;

    constructor(panel, type) {
        this.panel = panel;
        this.type = type;
        panel.hidden = false;
        this.lines = new Lines(panel.querySelector(".log"), type);
        // What a page before this one left waiting goes on waiting only if its session does.
        this.#forgotten = this.lines.waiting;
    }

    opened(resumed) {
        if (!resumed) for (const id of this.#forgotten) this.lines.fate(id, "unconfirmed");
        this.#forgotten = [];
    }

    /** Call `submitted` with what was filled in; the message is typed anew, the rest stays. */
    submits(form, submitted) {
        form.addEventListener("submit", (event) => {
            event.preventDefault();
            submitted(Object.fromEntries(new FormData(form)));
            if (form.elements.text) form.elements.text.value = "";
        });
    }

    /** Send a message that has a line: it waits until the server has handled it. */
    say(who, message) {
        const id = next_id();
        this.lines.add({ id, who, text: message.text, own: true, fate: "waiting" });
        this.client.send({ type: this.type, id, ...message }).catch((error) => {
            this.lines.fate(id, error.name === "SessionFull" ? "full" : "unconfirmed");
        });
    }

    /** The server refused a message; whether it was one of ours. */
    refused({ re, detail }) {
        return this.lines.fate(re, "refused", detail);
    }
}

class Chat extends Conversation {
    constructor(panel) {
        super(panel, "onchat");
        const form = panel.querySelector("form");
        form.elements.to.value = recall("to") ?? "";
        this.submits(form, ({ to, text }) => {
            keep("to", to);
            this.say(`to ${to}`, { to, text });
        });
    }

    heard({ id, from, text, status }) {
        if (status) this.lines.fate(id, status);
        else this.lines.add({ who: from, text });
    }
}

class Group extends Conversation {
    #membership;
    #say;

    constructor(panel) {
        super(panel, "ongroupchat");
        const [membership, say] = panel.querySelectorAll("form");
        this.#membership = membership;
        this.#say = say;
        membership.elements.group.value = recall("group") ?? "";
        this.submits(membership, ({ group }) => (this.#is_member ? this.#leave() : this.#join(group)));
        this.submits(say, ({ text }) => this.say("you", { group: recall("group"), action: "say", text }));
        this.#show();
    }

    get #is_member() {
        return recall("is member") ?? false;
    }

    opened(resumed) {
        super.opened(resumed);
        // Membership ends with the session, not with the link.
        if (!resumed && this.#is_member) this.#join(recall("group"));
    }

    heard({ group, action, from, id, text, members, missed }) {
        if (members !== undefined) keep("members", members);
        const moved = { join: "joined", leave: "left" }[action];
        if (missed) this.lines.add({ text: `${counted(missed, "message")} of ${group} missed` });
        else if (moved) this.lines.add({ text: `${from} ${moved} ${group}` });
        else if (!this.lines.fate(id, "said")) this.lines.add({ who: from, text });
        this.#show();
    }

    refused(error) {
        if (error.re === this.type) this.lines.add({ text: error.detail });
        const is_ours = super.refused(error) || error.re === this.type;
        if (is_ours && ["not-a-member", "full"].includes(error.code)) this.#set_member(false);
        return is_ours;
    }

    #join(group) {
        keep("group", group);
        this.#set_member(true);
        this.client.send({ type: this.type, group, action: "join" });
    }

    #leave() {
        this.#set_member(false);
        this.client.send({ type: this.type, group: recall("group"), action: "leave" });
    }

    #set_member(is_member) {
        keep("is member", is_member);
        keep("members", 0);
        this.#show();
    }

    #show() {
        const is_member = this.#is_member;
        const members = recall("members");
        this.#membership.elements.group.readOnly = is_member;
        this.#membership.querySelector("button").textContent = is_member ? "Leave" : "Join";
        const count = members ? counted(members, "member") : "joining";
        this.panel.querySelector("output").textContent = is_member ? count : "";
        for (const field of this.#say.elements) field.disabled = !is_member;
    }
}

class Questions extends Conversation {
    #log;

    constructor(panel) {
        super(panel, "onaichat");
        this.#log = panel.querySelector(".log");
        this.submits(panel.querySelector("form"), ({ text }) => this.say("you", { text }));
    }

    heard({ id, delta = "", status }) {
        const answer = `${id} answer`;
        this.lines.fate(id, "asked");
        if (!this.lines.change(answer, ({ text }) => ({ text: text + delta }))) {
            this.lines.add({ id: answer, who: "the model", text: delta, fate: "answering" });
        }
        if (status) this.lines.fate(answer, status);
        // A reader of the screen is told the whole answer, not each of its words.
        this.#log.ariaBusy = !status;
    }

    refused(error) {
        this.#log.ariaBusy = false;
        return this.lines.fate(`${error.re} answer`, "failed", error.detail) || super.refused(error);
    }
}

const KINDS = { chat: Chat, group: Group, ai: Questions };

/** All conversations that the server serves, by the names it gives them. */
export class Talk {
    #conversations;

    constructor(served) {
        this.#conversations = served.map((name) => new KINDS[name](document.getElementById(name)));
    }

    /** Go over this client from now on. */
    attach(client) {
        for (const conversation of this.#conversations) conversation.client = client;
    }

    /** The server has sent a message. */
    heard(message) {
        if (message.type === "error") this.#conversations.some((one) => one.refused(message));
        else this.#conversations.find(({ type }) => type === message.type)?.heard(message);
    }

    /** The link is open, with the session of before or with a new one. */
    opened(resumed) {
        for (const conversation of this.#conversations) conversation.opened(resumed);
    }

    /** The session was lost, and these messages of ours were never confirmed. */
    lost(messages) {
        for (const { id } of messages) this.#conversations.some(({ lines }) => lines.fate(id, "unconfirmed"));
    }
}
