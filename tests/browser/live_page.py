"""The live page as tests see it: its link can be cut, its time can be held, and it can be looked at all over."""

import base64
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from chromium import Tab
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

__all__ = ["SIZES", "LivePage"]

SIZES = {"wide": (1440, 900), "phone": (360, 740)}
SCHEMES = ("light", "dark")
AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
#: Screenshots change the tree, so they are taken only when somebody has asked for them.
IMAGES = Path(__file__).parents[2] / "docs" / "images" if os.environ.get("HEARTBEAT_SCREENSHOTS") else None

# A clock that can be held, under the page's own: what lasts a second can be looked at for longer. Short timers go
# on, with which the page draws what it knows already. And the delays between attempts are always the shortest.
HOLD = """
const [set, clear, now, day] = [setTimeout, clearTimeout, performance.now.bind(performance), Date.now];
const again = new Map();
let [held_at, held_ms] = [null, 0];
const gone_ms = () => held_ms + (held_at === null ? 0 : now() - held_at);
// While it is held, always the same: a time that goes back by a hair has the page wait for longer than a short timer.
performance.now = () => (held_at ?? now()) - held_ms;
Date.now = () => day() - Math.round(gone_ms());
window.setTimeout = (then, ms, ...more) => {
    const due = () => {
        if (held_at !== null && ms > 101) return again.set(id, set(due, 20));
        again.delete(id);
        then(...more);
    };
    const id = set(due, ms);
    return id;
};
window.clearTimeout = (id) => {
    clear(id);
    clear(again.get(id));
    again.delete(id);
};
let wanted = null;
const look = () => {
    if (held_at !== null || wanted === null || document.querySelector("#now")?.dataset.state !== wanted) return;
    held_at = now();
    wanted = null;
};
new MutationObserver(look).observe(document, { subtree: true, attributeFilter: ["data-state"] });
window.hold_in = (state) => {
    wanted = state;
    look();
    return true;
};
window.is_held = () => held_at !== null;
window.go_on = () => {
    held_ms += now() - held_at;
    held_at = null;
};
Math.random = () => 0;
"""

# What a reader would find fault with: what is cut off, what lies on something else, what is too small to touch.
FAULTS = """
const faults = [];
const fault = (is_wrong, what) => is_wrong && faults.push(what);
const shown = (element) => element.checkVisibility() && !element.closest(".unseen, .library");
const all = (selector) => [...document.body.querySelectorAll(selector)].filter(shown);
const name = (element) => `${element.localName}#${element.id}.${element.className.baseVal ?? element.className}`;
const box_of = (element) => element.getBoundingClientRect();

fault(document.scrollingElement.scrollWidth > innerWidth, "the page is wider than its window");
for (const element of all("*")) {
    const { left, right, height } = box_of(element);
    fault(left < -0.5 || right > innerWidth + 0.5, `${name(element)} is outside the window`);
    if (element.matches("button, input")) fault(height < 44, `${name(element)} is too small to touch`);
    if (element instanceof SVGElement || element.matches("input, .log, .events") || !element.clientWidth) continue;
    fault(element.scrollWidth > element.clientWidth + 1, `${name(element)} is too narrow`);
    fault(element.scrollHeight > element.clientHeight + 2, `${name(element)} is too low`);
}

const texts = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
    const { currentNode: node } = walker;
    const element = node.parentElement;
    if (!node.data.trim() || !shown(element) || element.closest(".log, .events")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) texts.push([element, node.data.trim(), box]);
}
for (const [element, text, { left, right, top, bottom }] of texts) {
    const around = element.closest("svg, button, .panel, main, header, footer");
    const outer = box_of(around);
    const is_in = left >= outer.left && right <= outer.right + 1 && top >= outer.top - 1 && bottom <= outer.bottom + 1;
    fault(!is_in, `"${text}" is cut off by ${name(around)}`);
}
const things = all("button, input, progress, .sign, .log, .events").map((one) => [one, name(one), box_of(one)]);
for (const [index, [one, its_name, a]] of [...texts, ...things].entries()) {
    for (const [other, others_name, b] of [...texts, ...things].slice(index + 1)) {
        if (one.contains(other) || other.contains(one)) continue;
        const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        fault(width > 1 && height > 3, `"${its_name}" and "${others_name}" overlap`);
    }
}
return faults;
"""

VIOLATIONS = """
const tell = arguments[arguments.length - 1];
const said = ({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html)}`;
axe.run().then(({ violations }) => tell(violations.map(said)), (error) => tell([`${error}`]));
"""

# The grid reaches to the right edge of the chart when it was drawn at the present width.
IS_DRAWN = """(() => {
    const width = document.querySelector("#chart").getBoundingClientRect().width;
    return document.querySelector("#chart .grid").getAttribute("d").includes(`H${width - 10}M`);
})()"""

STATE = "document.querySelector('#now').dataset.state"


class LivePage(Tab):
    """A tab with the live page of a server."""

    def __init__(self, driver: webdriver.Chrome, url: str, name: str | None = None) -> None:
        super().__init__(driver)
        self.url = url
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": "{" + HOLD + "}"})
        driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        self.look("wide")
        driver.get(url)
        if name is not None:
            self.fill("#you [name=name]", name)
            self.until_text("#client-id", name)
        self.until_state("acknowledged")

    def knows(self) -> str:
        """What it shows, for whoever reads of a failure."""
        return self.ask("`${document.title}\\n${document.body.innerText}`")

    # What it shows.

    def text(self, selector: str) -> str:
        """The text of the element there."""
        return self.ask("document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements there."""
        return self.ask("[...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector)

    def number(self, name: str) -> int:
        """One of the numbers."""
        return int(self.text(f"#{name}"))

    def lines(self, panel: str, fate: str | None = None) -> list[str]:
        """What was said in a conversation, by everybody, or what of our own has this fate."""
        which = "" if fate is None else f"[data-fate={fate}]"
        return self.texts(f"#{panel} li{which} .text")

    def until_text(self, selector: str, text: str, timeout: float = 15) -> None:
        """Wait until the element there has this text."""
        self.until("document.querySelector(arguments[0]).textContent === arguments[1]", timeout, selector, text)

    def until_lines(self, panel: str, count: int, fate: str, timeout: float = 15) -> None:
        """Wait until so many lines of our own have this fate."""
        wanted = "document.querySelectorAll(arguments[0]).length === arguments[1]"
        self.until(wanted, timeout, f"#{panel} .own[data-fate={fate}]", count)

    def until_state(self, state: str, timeout: float = 15) -> None:
        """Wait until its link is shown to be in this state."""
        self.until(f"{STATE} === arguments[0]", timeout, state)

    def until_told(self, *states: str, timeout: float = 15) -> None:
        """Wait until this has happened, in this order; by then more may have."""
        words = "[...document.querySelectorAll('#events b')].map(({ textContent: word }) => word.toLowerCase())"
        self.until(f"{words}.reverse().join(' ').includes(arguments[0])", timeout, " ".join(states))

    def trail(self) -> list[str]:
        """What has happened, in words, from the first to the last."""
        return [text.lower() for text in reversed(self.texts("#events b"))]

    @contextmanager
    def held(self, state: str, timeout: float, cause: Callable[[], object] = lambda: None) -> Iterator[None]:
        """As soon as this state is shown, time stands still for as long as it is looked at; `cause` brings it about."""
        self.ask("hold_in(arguments[0])", state)
        cause()
        self.until("is_held()", timeout)
        yield
        assert self.ask(STATE) == state
        self.ask("go_on()")

    # What is done to it.

    def find(self, selector: str) -> WebElement:
        """The element there."""
        self.show()
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def press(self, selector: str) -> None:
        """Press the button there, by the keyboard."""
        self.find(selector).send_keys(Keys.SPACE)

    def fill(self, selector: str, text: str) -> None:
        """Write into the field there, and submit by Enter."""
        field = self.find(selector)
        field.clear()
        field.send_keys(text, Keys.ENTER)

    def chat(self, to: str, text: str) -> None:
        """Send a message to somebody."""
        field = self.find("#chat [name=to]")
        field.clear()
        field.send_keys(to)
        self.fill("#chat [name=text]", text)

    # Looking at it.

    def look(self, size: str, scheme: str = "light") -> None:
        """Have a window of this size, and a user who likes it light or dark."""
        width, height = SIZES[size]
        self.show()
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def is_fine(self, name: str, picture: str | None = None) -> None:
        """On a phone and on a wide screen, light and dark: nothing is cut off or overlaps, and axe finds nothing.

        `picture` is of what screenshots are taken, where they are wanted: elements of the page, from first to last.
        """
        self.show()
        if not AXE.exists():
            pytest.skip("not run: axe-core is missing; `make test-all` gets it by npm")
        self.driver.execute_script(AXE.read_text(encoding="utf-8"))
        for size in SIZES:
            for scheme in SCHEMES:
                self.look(size, scheme)
                self.until(IS_DRAWN, 20)
                faults = self.driver.execute_script(FAULTS) + self.driver.execute_async_script(VIOLATIONS)
                assert not faults, f"{name} at {size}, {scheme}: {faults}"
                if picture is not None and IMAGES is not None:
                    shot = self._photograph(picture)
                    IMAGES.mkdir(exist_ok=True)
                    (IMAGES / f"live-{name}-{SIZES[size][0]}-{scheme}.png").write_bytes(shot)
        self.look("wide")

    def _photograph(self, picture: str) -> bytes:
        """A PNG of the elements there, over the whole width of the page."""
        top, bottom = self.ask(
            """((boxes) => [Math.min(...boxes.map(({ top }) => top)), Math.max(...boxes.map(({ bottom }) => bottom))])
            ([...document.querySelectorAll(arguments[0])].map((one) => one.getBoundingClientRect()))""",
            picture,
        )
        scrolled, width = self.ask("[scrollY, innerWidth]")
        clip = {"x": 0, "y": max(0, top + scrolled - 12), "width": width, "height": bottom - top + 24, "scale": 1}
        wanted = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        return base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", wanted)["data"])

    def has_no_complaint(self) -> None:
        """The console is empty, and nobody but the page's own server was asked for anything."""
        asked: list[str] = self.ask("performance.getEntriesByType('resource').map(({ name }) => name)")
        assert asked
        assert {urlsplit(one).netloc for one in asked} == {urlsplit(self.url).netloc}
        complaints: list[dict[str, Any]] = self.driver.get_log("browser")
        assert [complaint["message"] for complaint in complaints] == []
