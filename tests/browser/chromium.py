"""A real Chromium without a screen, driven by chromedriver; both are the machine's own and never downloaded.

`Page` is a tab with one of our pages in it, `Server` a server that tells what reaches it.
"""

import base64
import hashlib
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from processes import Program
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

__all__ = ["SLOW_AFTER_10_S", "Page", "Server", "Tab", "either_scheme", "is_online", "options_that_trust", "start"]

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)

#: An option: hidden tabs get their timers once a minute after 10 s, which otherwise takes five minutes.
SLOW_AFTER_10_S = "--enable-features=IntensiveWakeUpThrottling:grace_period_seconds/10"

LINK_EVENTS = ("open", "waiting", "suspect", "acknowledged", "dead", "closed", "reconnecting", "unreachable")

#: A parameter `tls`: the test is run over `ws://` and over `wss://`.
either_scheme = pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])

# What chromedriver switches off by itself, and people's browsers have: the throttling of hidden tabs above all.
AS_AT_HOME = ("disable-background-timer-throttling", "disable-backgrounding-occluded-windows")


def start(profile: Path, *options: str) -> webdriver.Chrome:
    """A Chromium with a profile of its own; skips the test where the machine has none."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("not run: the tests in a browser need Debian's packages chromium and chromium-driver")
    chosen = webdriver.ChromeOptions()
    chosen.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}", *options):
        chosen.add_argument(flag)
    chosen.add_experimental_option("excludeSwitches", list(AS_AT_HOME))
    chosen.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With both paths given, selenium asks nobody where a browser could be downloaded.
    return webdriver.Chrome(options=chosen, service=Service(driver))


def options_that_trust(chain: Path) -> tuple[str, ...]:
    """Options for a Chromium that takes the certificate in this file, and no other that it would not."""
    certificate = x509.load_pem_x509_certificates(chain.read_bytes())[0]
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = base64.b64encode(hashlib.sha256(key).digest()).decode()
    return (f"--ignore-certificate-errors-spki-list={digest}",)


def is_online(driver: webdriver.Chrome, online: bool) -> None:
    """What DevTools call offline: open WebSockets stall both ways without closing, new ones fail at once.

    Only for tabs whose sockets were opened after `driver.execute_cdp_cmd("Network.enable", {})`.
    """
    conditions = {"offline": not online, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)


@dataclass
class Server:
    """A running server: where its pages and its WebSocket are, and the options for a Chromium that trusts it.

    `told` are the events that it has printed as JSON, as far as they were read.
    """

    program: Program
    trust: tuple[str, ...] = ()
    told: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ws = self.program.url()
        self.url = self.ws.replace("ws", "http", 1).removesuffix("ws")

    def events(self, *names: str, **members: Any) -> list[dict[str, Any]]:
        """The events of these names that hold these members, of all that it has told by now."""
        for line in self.program.rest():
            self._hear(line)
        return [e for e in self.told if e["event"] in names and members.items() <= e.items()]

    def until(self, has_told: Any, timeout: float) -> None:
        """Read what it tells until `has_told()`; fails when that takes too long."""
        deadline = time.monotonic() + timeout
        self.events()
        while not has_told():
            line = self.program.line(deadline - time.monotonic())
            assert line is not None, "the server has ended:\n" + "\n".join(self.program.seen)
            self._hear(line)

    def until_event(self, name: str, timeout: float, **members: Any) -> dict[str, Any]:
        """The first event of this name that holds these members."""
        self.until(lambda: self.events(name, **members), timeout)
        return self.events(name, **members)[0]

    def has_lost_nobody(self) -> bool:
        """Whether every connection that it has had is still there; fails otherwise, with all that it said."""
        assert not self.events("dead", "closed"), "\n".join(self.program.seen[-60:])
        return True

    def handled(self, **members: Any) -> list[int]:
        """The numbers of the notes that were handled, in that order."""
        return [event["n"] for event in self.events("handled", **members)]

    def has_handled(self, count: int) -> bool:
        """Whether the notes to this one were handled, each once, in order; what it is about to tell is waited for."""
        self.until(lambda: len(self.handled()) >= count, 10)
        return self.handled() == list(range(1, count + 1))

    def _hear(self, line: str) -> None:
        if line.startswith("{"):
            self.told.append(json.loads(line))


class Tab:
    """A tab of a browser, shown whenever it is asked something."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.handle = driver.current_window_handle

    def show(self) -> None:
        """Have it be the one that is seen; all others of its window are hidden."""
        if self.driver.current_window_handle != self.handle:
            self.driver.switch_to.window(self.handle)

    def ask(self, expression: str, *arguments: Any) -> Any:
        """The value of a JavaScript expression in it."""
        self.show()
        return self.driver.execute_script(f"return ({expression})", *arguments)

    def until(self, condition: str, timeout: float, *arguments: Any) -> Any:
        """The value of an expression as soon as it is true; fails with all that the page knows when it never is."""
        self.show()
        try:
            return WebDriverWait(self.driver, timeout, 0.1).until(lambda _: self.ask(condition, *arguments))
        except TimeoutException:
            raise AssertionError(f"never within {timeout} s: {condition}\n{self.knows()}") from None

    def knows(self) -> str:
        """The end of its diary, for whoever reads of a failure."""
        entries = self.ask("window.page && (page.diary ?? [page])") or ["nothing: the page's script has failed"]
        return "\n".join(json.dumps(entry) for entry in entries[-30:])


class Page(Tab):
    """A tab with `client.html`."""

    def __init__(self, driver: webdriver.Chrome, server: Server, *, path: str = "client.html", **wishes: Any) -> None:
        """Open it; `wishes` are `options` of its client and `url` of another server than its own."""
        super().__init__(driver)
        driver.get(f"{server.url}{path}#{quote(json.dumps(wishes))}")
        self.until("window.page !== undefined", 30)

    @classmethod
    def there(cls, driver: webdriver.Chrome) -> Self:
        """The page that is open in the present tab already."""
        page = cls.__new__(cls)
        Tab.__init__(page, driver)
        page.until("window.page !== undefined", 30)
        return page

    def reload(self, last: str) -> None:
        """Take a last step in it, and have it loaded anew in the same turn."""
        self.driver.execute_script(f"{last}; page.is_old = true; location.reload();")
        self.until("window.page && !page.is_old", 15)

    def until_open(self, timeout: float = 15) -> None:
        """Wait until its client has a link that is answered."""
        is_answered = "page.diary.some(({event}) => event === 'pong') && page.client.status.state === 'acknowledged'"
        self.until(is_answered, timeout)

    def diary(self, *names: str) -> list[dict[str, Any]]:
        """What its client and its window have told, of these names."""
        return [entry for entry in self.ask("page.diary") if not names or entry["event"] in names]

    def events(self) -> list[str]:
        """The names of all that its client has told of its link, without the beats."""
        return [entry["event"] for entry in self.diary(*LINK_EVENTS)]

    def until_event(self, name: str, timeout: float, after: float = 0.0) -> dict[str, Any]:
        """The first entry of this name in its diary that is later than `after` (the page's milliseconds)."""
        find = "page.diary.find((entry) => entry.event === arguments[0] && entry.at > arguments[1])"
        return self.until(find, timeout, name, after)

    @property
    def now(self) -> float:
        """The page's time, in milliseconds."""
        return self.ask("performance.now()")

    def until_all_is_handled(self, timeout: float = 20) -> None:
        """Wait until the server has handled all that this page has sent."""
        self.until("page.client.unconfirmed === 0 && page.client.status.state !== null", timeout)

    def has_no_complaint(self) -> None:
        """Nothing went wrong that nobody caught."""
        assert self.diary("uncaught", "violation", "complaint") == []
