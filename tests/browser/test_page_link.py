"""A page with heartbeat.js in a real Chromium: it connects, notices that the line is dead, and loses nothing."""

import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from chromium import Page, either_scheme, is_online
from processes import Program

pytestmark = pytest.mark.browser

PLAIN_SERVER = Path(__file__).parents[1] / "serve" / "plain_server.py"


@either_scheme
def test_offline_for_20_s_is_suspected_convicted_and_mended_and_nothing_is_lost(browser, page_server, tls):
    """Suspect, dead, reconnected; what both sides sent before, during and after is there once, in order."""
    server = page_server(tls=tls, interval=1.0)
    driver = browser(*server.trust)
    driver.execute_cdp_cmd("Network.enable", {})
    page = Page(driver, server)
    page.until_open()
    page.ask("page.listen(100)")
    page.ask("page.talk(100)")
    page.until("page.handled.length >= 10 && page.words.length >= 10", 15)

    went = page.now
    is_online(driver, False)
    # That the line is dead, and the page was told nothing that its socket would tell.
    page.until_event("suspect", 10, went)
    page.until_event("dead", 10, went)
    heard = len(page.ask("page.words"))
    page.until("performance.now() - arguments[0] >= 20000", 25, went)
    assert len(page.ask("page.words")) == heard
    unconfirmed = page.ask("page.client.unconfirmed")
    assert unconfirmed > 100
    mended = page.now
    is_online(driver, True)
    back = page.until_event("open", 10, mended)["at"]
    assert back - mended <= 2000, "the browser said that it is online, and the client waited all the same"

    page.until_event("pong", 10, back)
    page.until("page.handled.includes(arguments[0])", 10, page.ask("page.say()"))
    page.ask("page.enough()")
    count = page.until_event("enough", 10)["count"]
    sent = page.ask("page.hush()")
    page.until_all_is_handled()

    assert count > max(200, heard)
    assert page.ask("page.words") == list(range(1, count + 1))
    assert sent > max(200, unconfirmed)
    assert server.has_handled(sent)
    assert sorted(page.ask("page.handled")) == list(range(1, sent + 1))
    assert page.ask("page.failed") == []
    events = page.events()
    # A straggler that is let through as the browser goes offline ends a suspicion, which comes again.
    while events[1:3] == ["suspect", "waiting"]:
        del events[1:3]
    assert events[:4] == ["open", "suspect", "dead", "reconnecting"]
    assert events[-1] == "open"
    assert events.count("open") == 2
    assert page.diary("lost") == []
    page.has_no_complaint()


@either_scheme
def test_a_page_of_the_servers_own_connects_sends_and_receives(browser, server, tls):
    """The module from /heartbeat.js under the page's own policy: open, a pong, a chat with itself, delivered."""
    running = server("--messages", "chat", "--interval", "0.5", tls=tls)
    driver = browser(*running.trust)
    driver.get(running.url)
    driver.set_script_timeout(20)
    talk = """
        const [url, done] = arguments;
        import("/heartbeat.js").then(({ HeartbeatClient }) => {
            const told = [];
            let rtt_ms = null;
            const client = new HeartbeatClient(url, {
                key: "a test",
                client_id: "alice",
                pongReceived: (ms) => (rtt_ms = ms),
                messageReceived: (message) => {
                    told.push(message.status ?? message.text);
                    if (message.status === "delivered") chat("nobody");
                    if (message.status === "unknown") done({ ...client.status, told, rtt_ms });
                },
            });
            const chat = (to) => client.send({ type: "onchat", id: `to ${to}`, to, text: "hi" });
            chat("alice");
        }).catch((error) => done({ error: `${error}` }));
    """
    found = driver.execute_async_script(talk, running.ws)
    assert found.get("error") is None
    assert found["told"] == ["hi", "queued", "delivered", "unknown"]
    assert 0 < found["rtt_ms"] < 3000
    assert (found["state"], found["level"], found["client_id"]) == ("acknowledged", 1, "alice")


def test_a_plain_server_is_met_without_a_session(browser, page_server):
    """It only echoes pings: level 0, acknowledged, and `send` resolves when the message was written."""
    server = page_server()
    with Program([sys.executable, PLAIN_SERVER]) as plain:
        page = Page(browser(), server, url=plain.url(), options={"interval_ms": 200})
        page.until_open()
        page.ask("page.say()")
        page.until("page.handled.length === 1", 5)
        page.until("page.diary.filter(({event}) => event === 'pong').length >= 5", 10)
        assert page.ask("page.client.status.level") == 0
        assert page.events() == ["open"]
        assert page.ask("sessionStorage.length") == 1, "nothing but the ledger"
        page.has_no_complaint()


def test_without_a_session_a_link_that_is_lost_comes_back_too(browser, page_server):
    """A plain server that stands still is convicted; another of its kind at the same place is found."""
    server = page_server()
    with Program([sys.executable, PLAIN_SERVER]) as plain:
        page = Page(browser(), server, url=plain.url(), options={"interval_ms": 200})
        page.until_open()
        before = page.now
        plain.pause()
        page.until_event("suspect", 10, before)
        page.until_event("dead", 10, before)
        plain.resume()
        page.until_event("pong", 20, page.until_event("open", 20, before)["at"])
        assert page.ask("page.client.status.level") == 0


def test_a_link_that_is_lost_while_messages_wait_for_their_handlers(browser, page_server):
    """What had arrived and was not handled comes again, and is handled once."""
    server = page_server(interval=1.0)
    page = Page(browser(), server, holds=True)
    page.until_open()
    page.ask("page.listen(10)")
    for n in range(1, 4):
        page.until("page.waiting >= arguments[0]", 15, 20 * n)
        page.ask("page.client.send({type: 'hangup'}, {volatile: true})")
        page.until("page.diary.filter(({event}) => event === 'closed').length >= arguments[0]", 10, n)
        page.ask("page.client.retry()")
        page.until_open()
    assert page.ask("page.words") == []
    page.ask("page.release()")
    page.ask("page.enough()")
    count = page.until_event("enough", 15)["count"]
    assert count >= 60
    assert page.ask("page.words") == list(range(1, count + 1))
    assert page.events() == ["open"] + 3 * ["closed", "reconnecting", "open"]
    page.has_no_complaint()


FULL = """
    (() => {
        let size = 1 << 22;
        for (let n = 0; size >= 1; n++) {
            try { sessionStorage.setItem(`ballast ${n}`, "x".repeat(size)); } catch { size >>= 1; }
        }
        return true;
    })()
"""


def test_a_storage_that_fills_up_costs_only_the_reload(browser, page_server):
    """The link and the session go on in memory, nothing is lost, and a complaint says what no longer holds."""
    server = page_server(interval=1.0)
    page = Page(browser(), server)
    page.until_open()
    page.ask("page.say()")
    page.until("page.handled.length === 1", 5)
    page.ask(FULL)
    for _ in range(20):
        page.ask("page.say()")
    page.until("page.handled.length === 21", 10)
    assert server.has_handled(21)
    assert page.diary("uncaught", "lost") == []
    assert "in memory only" in page.diary("complaint")[0]["detail"]
    assert page.events() == ["open"]


def test_a_storage_that_is_forbidden_costs_only_the_reload(browser, page_server):
    """A page in a sandbox may not even read the property; its client has a session in memory."""
    server = page_server(interval=1.0, origins=["null"])
    page = Page(browser(), server, path="client.html?csp=sandbox%20allow-scripts", url=server.ws)
    page.until_open()
    assert page.ask("(() => { try { sessionStorage; } catch ({ name }) { return name; } })()") == "SecurityError"
    page.ask("page.listen(50)")
    page.until("page.words.length >= 5", 10)
    for n in range(1, 6):
        assert page.ask("page.say()") == n
    page.until("page.handled.length === 5", 10)
    assert server.has_handled(5)
    assert page.ask("page.client.status.level") == 1
    assert page.diary("uncaught") == []


POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'; worker-src '{worker}'"


@pytest.mark.parametrize("worker", ["self", "none"])
def test_a_strict_policy_costs_the_worker_at_most(browser, page_server, worker):
    """Where the policy allows the worker it keeps the time; where not, the page does."""
    server = page_server()
    path = f"client.html?csp={quote(POLICY.format(worker=worker))}"
    page = Page(browser(), server, path=path, options={"worker": True, "interval_ms": 200})
    page.until_open()
    page.until("page.diary.filter(({event}) => event === 'pong').length >= 10", 20)
    assert page.events() == ["open"]
    assert page.diary("uncaught") == []
    if worker == "self":
        # A Worker begins when the browser gets round to it; until then the page's own timer did the beats.
        page.until("page.beats >= 5", 20)
        page.has_no_complaint()
    else:
        assert page.ask("page.beats") == 0
        assert page.diary("violation")[0]["detail"] == "worker-src"
