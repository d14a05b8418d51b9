"""The operator's page in a real Chromium: what it shows of a server, and what can be done by it."""

import base64
import json
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
import redis_server
from chromium import Tab
from live_page import AXE, FAULTS, IMAGES, SCHEMES, SIZES, VIOLATIONS
from processes import client
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.browser

TOKEN = "0123456789abcdef-of-an-operator"
#: A client id may be any visible ASCII.
HOSTILE = "<img/src=x/onerror=document.title='mine'>"


def goes_on(client):
    """Whether it has lost nothing so far, and is answered once more."""
    told = [json.loads(line)["event"] for line in client.rest() if line.startswith("{")]
    return not {"closed", "dead", "reconnecting"}.intersection(told) and client.event("pong", 15)


class WatchPage(Tab):
    """A tab with the operator's page."""

    def __init__(self, driver, url):
        super().__init__(driver)
        self.url = url
        driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        self.look("wide")
        driver.get(url)

    def knows(self):
        return self.ask("`${document.title}\\n${document.body.innerText}`")

    def look(self, size, scheme="light"):
        width, height = SIZES[size]
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def text(self, selector):
        return self.ask("document.querySelector(arguments[0]).textContent", selector)

    def until_text(self, selector, text, timeout=15):
        self.until("document.querySelector(arguments[0]).textContent === arguments[1]", timeout, selector, text)

    def names(self):
        """The clients in the table."""
        return self.ask("[...document.querySelectorAll('#rows td:first-child')].map((one) => one.textContent)")

    def until_names(self, *names, timeout=15):
        wanted = "[...document.querySelectorAll('#rows td:first-child')].map((one) => one.textContent).join(' ')"
        self.until(f"{wanted} === arguments[0]", timeout, " ".join(names))

    def press(self, selector):
        self.driver.find_element(By.CSS_SELECTOR, selector).send_keys(Keys.SPACE)

    def give_token(self, token=TOKEN):
        self.driver.find_element(By.ID, "token").send_keys(token, Keys.ENTER)
        self.until("!document.querySelector('#drain').hidden", 5)

    def kick(self, name):
        """Press a client's button, and once more."""
        button = next(
            one for one in self.driver.find_elements(By.CSS_SELECTOR, "#rows button") if name in one.accessible_name
        )
        button.send_keys(Keys.SPACE)
        assert button.text == "Really?"
        button.send_keys(Keys.SPACE)

    def is_fine(self, name, *, is_pictured=False):
        """On a phone and on a desk, light and dark: nothing is cut off or overlaps, and axe finds nothing."""
        if not AXE.exists():
            pytest.skip("not run: axe-core is missing; `make test-all` gets it by npm")
        self.driver.execute_script(AXE.read_text(encoding="utf-8"))
        for size in SIZES:
            for scheme in SCHEMES:
                self.look(size, scheme)
                faults = self.driver.execute_script(FAULTS) + self.driver.execute_async_script(VIOLATIONS)
                assert not faults, f"{name} at {size}, {scheme}: {faults}"
                if is_pictured and IMAGES is not None:
                    IMAGES.mkdir(exist_ok=True)
                    shot = self.driver.execute_cdp_cmd(
                        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True}
                    )
                    (IMAGES / f"watch-{name}-{SIZES[size][0]}-{scheme}.png").write_bytes(base64.b64decode(shot["data"]))
        self.look("wide")

    def has_no_complaint(self):
        """The console is empty, and nobody but this server was asked for anything."""
        asked = self.ask("performance.getEntriesByType('resource').map(({ name }) => name)")
        assert {urlsplit(one).netloc for one in asked} == {urlsplit(self.url).netloc}
        assert [complaint["message"] for complaint in self.driver.get_log("browser")] == []


@pytest.fixture
def watched(browser, server, tmp_path):
    """A factory: `watched(*twistd_options)` is a server, its page for operators, and a way to have clients."""
    with ExitStack() as stack:

        def make(*options):
            path = tmp_path / "token"
            path.write_text(TOKEN + "\n")
            admin = ("--admin", "tcp:0:interface=127.0.0.1", "--admin-token", str(path))
            # Who is watched is told before where it listens.
            started = server("--interval", "0.5", *admin, *options)
            url = started.program.line_with("watched at ", 15).split("watched at ")[1].split()[0]
            page = WatchPage(browser(), url)
            page.server = started

            def come(client_id, *more):
                program = stack.enter_context(client(started.ws, "--client-id", client_id, *more))
                program.event("open", 15)
                return program

            page.come = come
            page.until_text("#word", "Ready")
            return page

        yield make


def test_who_is_there_is_shown_with_round_trips_and_as_text_whatever_the_name(watched):
    """Clients come into the table with their state, a line of round trips and their queue; a name is never HTML."""
    page = watched("--beats", "both")
    page.come("alice")
    page.come(HOSTILE)
    page.until_names(HOSTILE, "alice")
    page.until_text("#active", "2")
    page.until("document.querySelectorAll('#rows polyline[points*=\" \"]').length === 2", 20)
    assert page.ask("document.querySelectorAll('#rows img').length") == 0
    assert page.ask("document.title").startswith("Ready ")
    cells = page.ask("[...document.querySelectorAll('#rows tr:last-child td')].map((one) => one.innerText)")
    assert cells[:2] == ["alice", "active"]
    assert cells[2] in ("acknowledged", "waiting")
    assert cells[6] == "0 B"
    page.is_fine("clients", is_pictured=True)
    page.has_no_complaint()


def test_a_client_that_freezes_is_shown_to_be_suspect_and_then_among_the_dead(watched):
    """The verdict stands there with its evidence, when the server has come to it."""
    page = watched()
    frozen = page.come("frozen")
    page.until_names("frozen")
    frozen.pause()
    page.until_text("#suspicions", "1", 30)
    page.until("document.querySelector('#deaths li')", 30)
    said = page.text("#deaths li")
    assert "frozen was silent: nothing received for " in said
    assert "level 1" in said
    page.until_text("#convictions", "1")
    page.until("document.querySelector('#rows td:nth-child(2)').textContent === 'detached'", 15)
    page.is_fine("deaths", is_pictured=True)


def test_a_client_is_kicked_with_the_token_and_not_without_or_by_one_press(watched):
    """1008: the client is told, and does not come back by itself."""
    page = watched()
    alice, bob = page.come("alice"), page.come("bob")
    page.until_names("alice", "bob")
    page.press("#rows button")
    assert page.text("#note") == "This needs the token."
    assert page.ask("document.activeElement.id") == "token"

    page.give_token("a-token-that-is-not-known-here")
    page.kick("alice")
    page.until("document.querySelector('#note').textContent.startsWith('Kick: this needs the token')", 10)
    page.give_token()
    page.kick("alice")
    page.until_text("#note", "Kicked alice: 1 connection.")
    closed = alice.event("closed", 10)
    assert closed["code"] == 1008
    assert alice.wait(15) == 2
    page.until("document.querySelector('#rows tr:first-child td:nth-child(2)').textContent === 'detached'", 15)
    assert goes_on(bob)
    page.until_text("#active", "1")
    assert page.ask("JSON.stringify({ ...localStorage, ...sessionStorage })") == "{}"


def test_a_server_is_drained_by_two_presses_and_can_still_be_watched(watched):
    """Clients are asked to come back later; the page says that nobody should be sent here."""
    page = watched()
    alice = page.come("alice", "--attempts", "1")
    page.until_names("alice")
    page.give_token()
    page.press("#drain")
    page.until_text("#drain", "Really?")
    page.press("#drain")
    page.until_text("#word", "Not ready")
    assert page.text("#sentence") == "The server is on its way out."
    assert alice.event("closed", 15)["code"] == 1012
    page.until_text("#connections", "0")
    page.is_fine("drained")
    page.server.program.stop()
    page.until_text("#word", "No answer")


def test_many_clients_are_turned_over_a_page_at_a_time(watched):
    """Fifty at a time, in the order of their ids, from any of them on, and by their standing."""
    page = watched()
    # The operator's page may connect to nobody else, so another one does.
    page.driver.switch_to.new_window("tab")
    page.driver.get(page.server.url)
    page.driver.execute_script(
        """
        const [url] = arguments;
        window.sockets = Array.from({ length: 120 }, (_, number) => {
            const socket = new WebSocket(url);
            const client_id = `n${String(number).padStart(3, "0")}`;
            socket.onopen = () => socket.send(JSON.stringify({ type: "onopen", v: 1, client_id, beats: "none" }));
            return socket;
        });
        """,
        page.server.ws,
    )
    page.until("document.querySelector('#connections').textContent === '121'", 30)
    page.driver.find_element(By.ID, "after").send_keys("n", Keys.ENTER)
    page.until("document.querySelector('#rows td').textContent === 'n000'", 10)
    assert page.names() == [f"n{number:03}" for number in range(50)]
    page.press("#next")
    page.until("document.querySelector('#rows td').textContent === 'n050'", 10)
    page.press("#next")
    page.until_text("#next", "From the first")
    assert page.names() == [f"n{number:03}" for number in range(100, 120)]
    page.press("#next")
    # The page that had them come is a client too, and has been given its name.
    page.until("document.querySelector('#rows td').textContent.startsWith('c-')", 10)
    page.driver.find_element(By.ID, "after").clear()
    page.driver.find_element(By.ID, "after").send_keys("n117", Keys.ENTER)
    page.until_names("n118", "n119")


@redis_server.needs_redis
def test_a_fleet_is_watched_from_any_of_its_servers(watched, tmp_path):
    """All servers stand there with their numbers, and all clients; one that is drained or killed is seen to be so."""
    with redis_server.RedisServer(tmp_path) as redis:
        other = watched("--cluster", redis.url)
        page = watched("--cluster", redis.url)
        here, there = page.come("alice"), other.come("bob")
        page.until("document.querySelectorAll('#nodes tr').length === 2", 20)
        page.until_names("alice", "bob", timeout=20)
        page.until_text("#what", "fleet")
        page.until_text("#active", "2")
        page.until_text("#word", "Ready")
        peers = page.ask("[...document.querySelectorAll('#rows td:nth-child(8)')].map((one) => one.textContent)")
        names = page.ask("[...document.querySelectorAll('#nodes td:first-child')].map((one) => one.title)")
        by_process = {name.rpartition(":")[2]: name for name in names}
        own, its = (by_process[str(one.server.program.pid)] for one in (page, other))
        assert [peer.partition(", at ")[2] for peer in peers] == [own, its]
        page.is_fine("fleet", is_pictured=True)

        page.give_token()
        page.kick("bob")
        page.until_text("#note", "Kicked bob: 1 connection.")
        assert there.event("closed", 10)["code"] == 1008
        assert goes_on(here)

        state = f"document.querySelector('#nodes td[title=\"{its}\"] + td').textContent"
        button = page.driver.find_element(By.CSS_SELECTOR, f"#nodes button[aria-label='Drain {its}']")
        for _ in range(2):
            button.send_keys(Keys.SPACE)
        page.until_text("#word", "Partly ready")
        page.until(f"{state} === 'the server is on its way out'", 10)
        assert page.text("#sentence") == "1 of 2 servers are ready."
        assert goes_on(here)

        other.server.program.kill()
        page.until(f"{state} === 'no answer'", 15)
        page.is_fine("fleet-with-one-dead")
        # Its lease ends.
        page.until("document.querySelectorAll('#nodes tr').length === 1", 40)
        page.until_text("#word", "Ready")
        page.has_no_complaint()
        redis.kill()
        page.until_text("#word", "Alone", 20)
