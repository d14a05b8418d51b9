// The chart of round trips: the last three minutes, moving to the left, on a scale that grows with what it shows.
//
// Draws what it is told and measures nothing. All marks of a kind are one path, so that a redraw sets a handful of
// attributes, however many pings there were.

const SPAN_MS = 180_000;
const FRAME_MS = 100;
const LEFT = 56;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 24;
/** The scale reaches over two decades at least, none of them below this one. */
const LEAST_MS = 0.1;
/** The text for those who do not see the picture changes so seldom, not to be in their way. */
const RETELL_MS = 15_000;

const SVG = "http://www.w3.org/2000/svg";

/** A time in its own unit, with as many digits as it deserves. */
export function duration(ms) {
    if (ms === null || ms === undefined) return "–";
    return ms < 999.5 ? `${ms.toFixed(ms < 99.95 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

export class Chart {
    #svg;
    #pending_ms;
    #calm;
    #parts = {};
    // What became of pings: {at, rtt_ms, kind}, `kind` being `dots`, `late` or `lost`.
    #marks = [];
    // When there was no link: {from, until}, `until` null while there is none now.
    #gaps = [];
    #is_seen = true;
    #is_due = false;
    #drawn_at = -Infinity;
    #told_at = -Infinity;
    #scale = "";

    /**
     * `pending_ms()` is how long the oldest ping that is out has been waiting; `calm` a media query that matches where
     * nothing is to move by itself.
     */
    constructor(svg, pending_ms, calm) {
        this.#svg = svg;
        this.#pending_ms = pending_ms;
        this.#calm = calm;
        for (const name of ["grid", "gap", "stem", "late-stem", "lost-stem", "dots", "late", "lost", "pending"]) {
            this.#parts[name] = this.#add("path", { class: name });
        }
        this.#parts.labels = this.#add("g", {});
        new IntersectionObserver(([entry]) => {
            this.#is_seen = entry.isIntersecting;
            this.changed();
        }).observe(svg);
        new ResizeObserver(() => this.changed()).observe(svg);
        document.addEventListener("visibilitychange", () => this.changed());
        this.changed();
    }

    answered(rtt_ms, is_late) {
        this.#mark({ at: performance.now(), rtt_ms, kind: is_late ? "late" : "dots" });
    }

    /** The ping that was sent then will not be answered. */
    lost(at) {
        this.#mark({ at, rtt_ms: null, kind: "lost" });
    }

    link_opened() {
        const gap = this.#gaps.at(-1);
        if (gap) gap.until ??= performance.now();
        this.changed();
    }

    link_ended() {
        if (this.#gaps.at(-1)?.until !== null) this.#gaps.push({ from: performance.now(), until: null });
        this.changed();
    }

    /** There is something new to draw. */
    changed() {
        if (this.#is_due || document.hidden || !this.#is_seen) return;
        this.#is_due = true;
        const wait = Math.max(0, this.#drawn_at + FRAME_MS - performance.now());
        setTimeout(() => requestAnimationFrame(() => this.#turn()), wait);
    }

    #mark(mark) {
        this.#marks.push(mark);
        this.changed();
    }

    #turn() {
        this.#is_due = false;
        this.#drawn_at = performance.now();
        this.#draw(this.#drawn_at);
        if (!this.#calm.matches) this.changed();
    }

    #draw(now) {
        const since = now - SPAN_MS;
        this.#marks = this.#marks.filter(({ at }) => at > since);
        this.#gaps = this.#gaps.filter(({ until }) => (until ?? now) > since);
        const { width, height } = this.#svg.getBoundingClientRect();
        const [right, bottom] = [width - RIGHT, height - BOTTOM];
        // The ordinary beat is answered before one sees that it was asked.
        const pending = this.#pending_ms();
        const waits = pending > FRAME_MS ? [pending] : [];
        const times = [...this.#marks.filter(({ kind }) => kind !== "lost").map(({ rtt_ms }) => rtt_ms), ...waits];
        const [low, high] = range_of(times);
        const x = (at) => (LEFT + ((Math.max(at, since) - since) / SPAN_MS) * (right - LEFT)).toFixed(1);
        const y = (ms) => {
            const part = (Math.log10(Math.max(ms, 10 ** low)) - low) / (high - low);
            return (bottom - part * (bottom - TOP)).toFixed(1);
        };
        this.#draw_scale({ width, right, bottom, low, high, y });
        const d = { gap: "", stem: "", "late-stem": "", "lost-stem": "", dots: "", late: "", lost: "", pending: "" };
        for (const { from, until } of this.#gaps) {
            d.gap += `M${x(from)} ${TOP}H${x(until ?? now)}V${bottom}H${x(from)}z`;
        }
        for (const { at, rtt_ms, kind } of this.#marks) {
            const top = kind === "lost" ? TOP + 6 : y(rtt_ms);
            d[STEMS[kind]] += `M${x(at)} ${top}V${bottom}`;
            d[kind] += `M${x(at)} ${top}${SHAPES[kind]}`;
        }
        for (const ms of waits) d.pending = `M${x(now)} ${bottom}V${y(ms)}m-4 0${CIRCLE}`;
        for (const [name, path] of Object.entries(d)) this.#parts[name].setAttribute("d", path);
        if (now - this.#told_at >= RETELL_MS) this.#tell(now, times);
    }

    /** Grid and labels, drawn anew only where they have changed. */
    #draw_scale({ width, right, bottom, low, high, y }) {
        const scale = [width, bottom, low, high].join();
        if (scale === this.#scale) return;
        this.#scale = scale;
        let grid = "";
        const labels = [];
        for (let decade = Math.ceil(low); decade <= high; decade++) {
            const at = y(10 ** decade);
            grid += `M${LEFT} ${at}H${right}`;
            const name = decade < 3 ? `${10 ** decade} ms` : `${10 ** (decade - 3)} s`;
            labels.push(this.#label(name, { x: LEFT - 6, y: +at + 4, "text-anchor": "end" }));
        }
        for (const minute of [0, 1, 2, 3]) {
            const at = right - (minute / 3) * (right - LEFT);
            const anchor = ["end", "middle", "middle", "start"][minute];
            const place = { x: at, y: bottom + 17, "text-anchor": anchor };
            labels.push(this.#label(minute ? `${minute} min` : "now", place));
        }
        this.#parts.grid.setAttribute("d", grid);
        this.#parts.labels.replaceChildren(...labels);
    }

    #tell(now, times) {
        this.#told_at = now;
        const [answers, late, lost] = Object.keys(SHAPES).map(
            (wanted) => this.#marks.filter(({ kind }) => kind === wanted).length,
        );
        const range = times.length ? `, from ${duration(Math.min(...times))} to ${duration(Math.max(...times))}` : "";
        const text = `${answers + late} answers${range}, ${late} late, ${lost} lost`;
        this.#svg.setAttribute("aria-label", `Round trips of the last 3 minutes: ${text}.`);
    }

    #label(text, attributes) {
        const label = this.#add("text", attributes);
        label.textContent = text;
        return label;
    }

    #add(name, attributes) {
        const element = document.createElementNS(SVG, name);
        for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
        return this.#svg.appendChild(element);
    }
}

const CIRCLE = "a4 4 0 1 0 8 0a4 4 0 1 0-8 0";
const SHAPES = { dots: "h0", late: "m0-5 5 9h-10z", lost: "m-5-5 10 10m0-10-10 10" };
const STEMS = { dots: "stem", late: "late-stem", lost: "lost-stem" };

/** Powers of ten, whole or halves, between which all these times lie. */
function range_of(times) {
    const log = (ms, round) => round(2 * Math.log10(Math.max(LEAST_MS, ms))) / 2;
    const low = log(0.8 * Math.min(1, ...times), Math.floor);
    return [low, Math.max(low + 2, log(1.2 * Math.max(LEAST_MS, ...times), Math.ceil))];
}
