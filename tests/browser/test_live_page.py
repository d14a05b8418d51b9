"""The live page in a real Chromium: every state is seen, told and survived, and it is fit to be looked at."""

import gzip
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from chromium import is_online
from live_page import LivePage
from processes import Program
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

pytestmark = pytest.mark.browser

HERE = Path(__file__).parent
AI_SERVER = HERE.parent / "serve" / "ai_server.py"
PAGE = HERE.parents[1] / "heartbeat" / "web" / "page"

#: Of what there are pictures.
ALL, LINK, TALKS = "header, footer", "header, #now, #trips", "#talk"

#: What the page may weigh without heartbeat.js, minified and gzipped.
LIMIT = 12 * 1024

TALK = ("--interval", "1", "--messages", "chat,group")


@pytest.fixture
def live(browser, server):
    """A factory: `live(*twistd_options)` is the live page of a new server."""

    def make(*options, name=None):
        started = server(*options)
        page = LivePage(browser(), started.url, name)
        page.server = started
        return page

    return make


@pytest.fixture
def pair(live):
    """The pages of alice and of bob, in two windows of one browser, in the group `room`."""
    alice = live(*TALK, name="alice")
    alice.driver.switch_to.new_window("window")
    bob = LivePage(alice.driver, alice.url, "bob")
    for page in (alice, bob):
        page.fill("#group [name=group]", "room")
        page.until("document.querySelector('#group output').textContent.includes('member')", 10)
    return alice, bob


@pytest.mark.slow
def test_a_link_that_is_cut_is_shown_in_every_state_until_it_is_back(live):
    """Waiting, suspect, dead, three attempts with their countdown, unreachable; tried in vain; mended, and back."""
    page = live(*TALK, name="alice")
    page.until("Number(document.querySelector('#answered').textContent) >= 8", 20)
    with page.held("acknowledged", 5):
        assert page.text("#sentence").startswith("The last ping was answered after ")
        assert page.ask("document.title").startswith("✓ Acknowledged")
        page.is_fine("acknowledged", ALL)

    page.press("#cut")
    assert page.text("#cut") == "Mend the link"
    with page.held("waiting", 5):
        page.is_fine("waiting", LINK)
    page.until("/not answered for [12]\\.[0-9] s/.test(document.querySelector('#sentence').textContent)", 5)
    with page.held("suspect", 10):
        assert page.text("#said").startswith("Suspect. Nothing was heard for ")
        page.is_fine("suspect", LINK)
    with page.held("dead", 10):
        assert page.text("#said").startswith("Dead. Nothing was heard for ")
        page.is_fine("dead", LINK)
    assert page.number("lost") == 2
    with page.held("reconnecting", 10):
        # Both pings are marked, and that there is no link.
        assert page.ask("document.querySelector('#chart .lost').getAttribute('d').match(/M/g).length") == 2
        assert page.ask("document.querySelector('#chart .gap').getAttribute('d')") != ""
        page.is_fine("reconnecting", LINK)

    seen = page.until("/^Attempt 2 of 3 in (.*) s$/.exec(document.querySelector('#attempt').textContent)?.[1]", 20)
    page.until("Number(document.querySelector('#attempt').textContent.split(' ')[5]) < arguments[0]", 5, float(seen))
    assert page.text("#retry") == "Try now"
    page.until_text("#attempt", "Attempt 3 of 3 is being made", 30)

    with page.held("unreachable", 15):
        assert page.ask("document.title").startswith("⊘ Unreachable")
        page.is_fine("unreachable", LINK)
    page.press("#retry")
    page.until_state("connecting")
    page.until_state("reconnecting")

    page.press("#cut")
    page.until_state("acknowledged")
    assert page.text("#cut") == "Cut the link"
    assert page.text("#session") == "resumed"
    assert page.number("reconnects") == 1
    told = [word for word in page.trail() if word != "reconnecting"]
    assert told[-5:] == ["open", "suspect", "dead", "unreachable", "open"]
    page.has_no_complaint()


def test_a_line_that_is_cut_neither_carries_nor_closes_anything(live):
    """The fault is a true one: nobody is told, new sockets wait, and what was open stays dead when it is mended."""
    page = live(*TALK)
    told = page.driver.execute_async_script("""
        const tell = arguments[arguments.length - 1];
        const url = new URL("/ws", location.href.replace("http", "ws"));
        const told = [];
        let arrived;
        window.WebSocket = class extends WebSocket {
            constructor(url, protocols) {
                super(url, protocols);
                // After whoever else listens to it.
                this.addEventListener("message", () => setTimeout(() => arrived?.()));
            }
            send(text) {
                told.push(`sent ${JSON.parse(text).id}`);
                super.send(text);
            }
            close(...why) {
                told.push(`closed ${why}`);
                super.close(...why);
            }
        };
        (async () => {
            const { Wire } = await import("/faults.js");
            let heard;
            const received = (text) => {
                told.push(`heard ${JSON.parse(text).id}`);
                heard();
            };
            const wire = new Wire({ sent() {}, received, connecting: () => told.push("connecting") });
            const opened = (socket) => new Promise((then) => (socket.onopen = then));
            const answered = () => new Promise((then) => (heard = then));
            const ping = (socket, id) => socket.send(JSON.stringify({ type: "ping", id }));

            const old = new wire.WebSocket(url);
            old.onclose = () => told.push("told");
            await opened(old);
            ping(old, 1);
            await answered();
            wire.cut();
            ping(old, 2);
            const next = new wire.WebSocket(url);
            next.onopen = () => told.push("opened");
            old.close(4000, "silent");
            told.push("mended");
            wire.mend();
            await opened(next);
            wire.delay_ms = 300;
            const asked_at = performance.now();
            ping(next, 3);
            await answered();
            told.push(performance.now() - asked_at >= 300 ? "late" : "at once");
            ping(next, 4);
            await new Promise((then) => (arrived = then));
            told.push("arrived");
            wire.delay_ms = 0;
            ping(next, 5);
            await answered();
            await answered();
            next.close(1000, "done");
            tell(told);
        })().catch((error) => tell(`${error}`));
    """)
    assert told == [
        "connecting", "sent 1", "heard 1", "connecting", "mended", "closed 4000,silent",
        "sent 3", "heard 3", "late", "sent 4", "arrived", "sent 5", "heard 4", "heard 5", "closed 1000,done",
    ]  # fmt: skip


def test_answers_that_come_late_are_suspected_and_acknowledged(live):
    """A line that is slow is not dead: the late pong is marked, nothing is lost, and nobody reconnects."""
    page = live(*TALK)
    page.press("#delay")
    assert page.find("#delay").get_attribute("aria-pressed") == "true"
    page.until_told("suspect", "acknowledged")
    assert page.trail() == ["open", "suspect", "acknowledged"]
    assert page.number("late") == 1
    page.until("document.querySelector('#chart .late').getAttribute('d') !== ''", 5)
    # By now the deadline knows how slow the line is.
    count = page.number("answered")
    page.until("Number(document.querySelector('#answered').textContent) >= arguments[0]", 25, count + 2)
    assert page.text("#rtt-last").startswith("4.")
    assert page.trail() == ["open", "suspect", "acknowledged"]
    page.press("#delay")
    page.until("document.querySelector('#rtt-last').textContent.endsWith(' ms')", 15)
    assert (page.number("lost"), page.number("reconnects")) == (0, 0)
    page.has_no_complaint()


def test_a_server_that_goes_is_shown_to_have_closed_and_to_be_waited_for(live):
    """Closed, with its sentence; then a countdown that is no attempt of ours."""
    # So late that the attempt does not come while it is looked at.
    page = live(*TALK, "--drain-after", "20")
    with page.held("closed", 5, page.server.program.stop):
        assert "1012" in page.text("#sentence")
        page.is_fine("closed", LINK)
    page.until_state("reconnecting")
    page.until("/^The next attempt in [0-9.]+ s$/.test(document.querySelector('#attempt').textContent)", 5)
    assert page.trail() == ["open", "closed", "reconnecting"]


def test_offline_by_the_browser_is_seen_like_any_dead_line(browser, server):
    """The page's own fault is no special case: DevTools' offline leads to the same states."""
    started = server(*TALK)
    driver = browser()
    driver.execute_cdp_cmd("Network.enable", {})
    page = LivePage(driver, started.url)
    is_online(driver, False)
    page.until_told("dead")
    is_online(driver, True)
    page.until_state("acknowledged")
    assert page.text("#session") == "resumed"


def test_a_chat_loses_nothing_across_a_cut_and_a_reload(pair):
    """What is written on both sides of a cut waits, and arrives once, in order; it is still there after a reload."""
    alice, bob = pair
    alice.chat("bob", "before 1")
    alice.until_lines("chat", 1, "delivered")
    bob.chat("alice", "before 2")
    bob.until_lines("chat", 1, "delivered")

    alice.press("#cut")
    for number in range(3):
        alice.chat("bob", f"of alice {number}")
        bob.chat("alice", f"of bob {number}")
    alice.fill("#group [name=text]", "alice to all")
    bob.fill("#group [name=text]", "bob to all")
    bob.until_lines("chat", 3, "queued")
    alice.until_lines("chat", 3, "waiting")
    assert alice.number("unconfirmed") == 4
    assert alice.lines("chat") == ["before 1", "before 2", "of alice 0", "of alice 1", "of alice 2"]

    alice.until_told("dead")
    alice.press("#cut")
    alice.until_lines("chat", 4, "delivered")
    bob.until_lines("chat", 4, "delivered")
    alice.until_lines("group", 1, "said")
    # What waited stands below what came meanwhile: that is the order in which the server had it.
    assert alice.lines("chat") == [
        "before 1", "before 2", "of bob 0", "of bob 1", "of bob 2", "of alice 0", "of alice 1", "of alice 2",
    ]  # fmt: skip
    assert bob.lines("chat") == [
        "before 1", "before 2", "of bob 0", "of bob 1", "of bob 2", "of alice 0", "of alice 1", "of alice 2",
    ]  # fmt: skip
    said = ["bob to all", "alice to all"]
    assert [line for line in alice.lines("group") if line in said] == said
    assert [line for line in bob.lines("group") if line in said] == said
    assert alice.text("#session") == "resumed"
    assert alice.number("unconfirmed") == 0

    before = alice.lines("chat"), alice.lines("group")
    alice.show()
    alice.driver.refresh()
    alice.until_state("acknowledged")
    assert (alice.lines("chat"), alice.lines("group")) == before
    assert alice.text("#client-id") == "alice"
    assert alice.text("#session") == "resumed"
    # Its session is a member still.
    bob.fill("#group [name=text]", "after the reload")
    alice.until("[...document.querySelectorAll('#group .text')].at(-1).textContent === 'after the reload'", 10)
    alice.is_fine("chat", TALKS)
    alice.has_no_complaint()
    bob.has_no_complaint()


def test_a_reload_while_the_link_is_cut_loses_nothing(pair):
    """What waited in the page before is sent by the page after it, and its fate is told there."""
    alice, bob = pair
    alice.press("#cut")
    for number in range(3):
        alice.chat("bob", f"{number}")
    alice.until_lines("chat", 3, "waiting")
    alice.driver.refresh()
    alice.until_lines("chat", 3, "delivered")
    assert bob.lines("chat") == ["0", "1", "2"]


def test_a_group_is_joined_and_left_and_says_how_many_it_has(pair):
    """Members are counted, what they do is told, and whoever has left can say nothing."""
    alice, bob = pair
    alice.until_text("#group output", "2 members")
    assert not alice.find("#group form:nth-of-type(2) input").get_attribute("disabled")
    bob.find("#group form:nth-of-type(1) button").click()
    alice.until_text("#group output", "1 member")
    assert alice.lines("group") == ["alice joined room", "bob joined room", "bob left room"]
    assert bob.find("#group form:nth-of-type(2) input").get_attribute("disabled")
    assert bob.text("#group output") == ""


#: Counts in `kept` how often the lines of a group are put away.
COUNT_KEPT = """
window.kept = 0;
const put = Storage.prototype.setItem;
Storage.prototype.setItem = function (name, value) {
    kept += /lines of ongroupchat/.test(name);
    put.call(this, name, value);
};
"""

#: What is put away of the group when the page is left in the moment in which this is its last line.
PUT_AWAY_AT = """
const [wanted, told] = arguments;
const look = () => {
    const last = [...document.querySelectorAll("#group .text")].at(-1);
    if (last?.textContent !== wanted) return;
    dispatchEvent(new Event("pagehide"));
    told(sessionStorage.getItem("page lines of ongroupchat"));
};
new MutationObserver(look).observe(document.querySelector("#group"), { subtree: true, childList: true });
look();
"""


def say_in_room(url, numbers):
    """Join the group, say these numbers, hear the last, and be gone; by no browser, which may take a minute for it."""
    parts = urlsplit(url)

    def frame(**message):
        payload = json.dumps({"type": "ongroupchat", "group": "room", **message}).encode()
        return bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload

    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        said = b"".join(frame(action="say", text=f"{number}") for number in numbers)
        connection.sendall(frame(action="join") + said)
        heard = b""
        while f'"text":"{numbers[-1]}"'.encode() not in heard:
            more = connection.recv(65536)
            assert more, "the server has closed"
            heard = heard[-100:] + more


@pytest.mark.slow
def test_what_a_group_had_no_room_for_is_counted(pair):
    """A member that cannot be reached misses what goes beyond its bound, is told how much, and keeps 200 lines."""
    alice, bob = pair
    # A thousand lines are shown one after the other, and on a machine that has other pages to show that takes a while.
    bob.driver.set_script_timeout(120)
    bob.show()
    bob.driver.execute_script(COUNT_KEPT)
    bob.press("#cut")
    say_in_room(alice.url, range(1, 1101))
    bob.until_told("dead", timeout=60)
    bob.press("#cut")
    bob.until_state("acknowledged", 120)
    # It is told before the next that there is room for.
    alice.fill("#group [name=text]", "and then?")
    bob.until("[...document.querySelectorAll('#group .text')].at(-1).textContent === 'and then?'", 120)
    lines = bob.lines("group")
    assert len(lines) == 200
    numbers = [int(line) for line in lines if line.isdigit()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    # And that he who said all this has gone.
    assert lines[-2:] == [f"{1100 - numbers[-1] + 1} messages of room missed", "and then?"]
    # They were not put away one by one; but whenever the page is left, all that are shown are there after it.
    assert 0 < bob.ask("kept") <= 400
    alice.fill("#group [name=text]", "the last")
    bob.show()
    put_away = json.loads(bob.driver.execute_async_script(PUT_AWAY_AT, "the last"))
    assert [line["text"] for line in put_away] == [*lines[1:], "the last"]
    bob.driver.refresh()
    bob.until_state("acknowledged", 120)
    assert bob.lines("group") == [*lines[1:], "the last"]


def test_a_message_to_nobody_and_a_group_that_is_not_ours_are_said_to_be_so(live):
    """The server's refusals stand beside what they are about."""
    page = live(*TALK, name="alice")
    page.chat("nobody", "hello?")
    page.until_lines("chat", 1, "unknown")
    assert page.text("#chat li .fate").endswith("unknown: there is no such client")
    # A server that was restarted has forgotten who was in which group.
    page.ask("sessionStorage.setItem('page is member', 'true'), sessionStorage.setItem('page group', '\"room\"'), 1")
    page.driver.refresh()
    page.until_state("acknowledged")
    page.fill("#group [name=text]", "hello?")
    page.until_lines("group", 1, "refused")
    assert "join the group first" in page.text("#group li .fate")
    assert page.text("#group form button") == "Join"
    page.has_no_complaint()


def test_a_session_that_is_lost_says_so_beside_what_it_had_not_confirmed(live):
    """A server that has forgotten everything: what waited is unconfirmed, and the group is joined anew."""
    page = live(*TALK, name="alice")
    page.fill("#group [name=group]", "room")
    page.until_text("#group output", "1 member")
    page.press("#cut")
    page.chat("bob", "into the void")
    page.until_lines("chat", 1, "waiting")
    # As after a restart with another store: the epoch of the session is not the server's.
    page.driver.execute_script("""
        for (const [key, value] of Object.entries(sessionStorage)) {
            sessionStorage.setItem(key, value.replace(/"epoch":"[^"]*"/, '"epoch":"e-0"'));
        }
    """)
    page.driver.refresh()
    page.until_lines("chat", 1, "unconfirmed")
    page.until_text("#group output", "1 member")
    assert page.lines("group") == ["alice joined room", "alice joined room"]
    assert page.text("#session") == "new"


def test_a_model_is_asked_and_answers_bit_by_bit(browser, server):
    """A question, and its answer as it comes; an answer that breaks off is said to have failed."""
    with Program([sys.executable, AI_SERVER]) as model:
        options = ("--messages", "ai", "--ai-url", model.url(), "--ai-model", "a-model")
        page = LivePage(browser(), server(*options).url)
        assert page.ask("['chat', 'group', 'ai'].map((id) => document.getElementById(id).hidden)") == [
            True,
            True,
            False,
        ]
        page.fill("#ai [name=text]", "count 30")
        page.until("document.querySelector('#ai [data-fate=done]')", 10)
        assert page.lines("ai") == ["count 30", "".join(f"{number} " for number in range(30))]
        page.fill("#ai [name=text]", "break")
        page.until("document.querySelector('#ai .other[data-fate=failed]')", 10)
        assert page.lines("ai")[2:] == ["break", "thinking"]
        page.is_fine("ai", TALKS)
        page.has_no_complaint()


def test_all_can_be_done_with_the_keyboard(live):
    """Tab goes through everything in the order in which it is seen, and shows where it is; focus is never lost."""
    page = live(*TALK, name="alice")
    page.driver.refresh()
    page.until_state("acknowledged")
    seen = []
    while len(seen) < 30:
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        where = page.ask("""(() => {
            const { activeElement: element } = document;
            const { outlineStyle, outlineWidth } = getComputedStyle(element);
            const is_shown = outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
            const said = element.textContent.trim().split("\\n")[0];
            return element !== document.body && [element.id || element.name || said, is_shown];
        })()""")
        if not where:
            break
        seen.append(where)
    assert [name for name, is_shown in seen if not is_shown] == []
    assert [name for name, _ in seen] == [
        "cut", "delay", "events", "name", "Use this name", "Nothing was said yet.", "to", "text", "Send",
        "group", "Join", "Join a group to hear what is said in it.",
    ]  # fmt: skip

    page.find("#cut").send_keys(Keys.ENTER)
    # The last countdown is the longest: 8 s at least.
    page.until("/^Attempt 3 of 3 in/.test(document.querySelector('#attempt').textContent)", 40)
    page.find("#retry").send_keys(Keys.ENTER)
    page.until("document.querySelector('#retry').hidden", 5)
    assert page.ask("document.activeElement.id") == "cut"
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.until_state("acknowledged")


def test_a_reader_of_the_screen_is_told_what_has_changed_and_no_beats(live):
    """The live region speaks of changes alone; the chart has a text; what moves by itself can be kept still."""
    page = live(*TALK)
    page.driver.execute_script("""
        window.told = [];
        window.shown = [];
        // Which state was shown when the chart first showed a ping that is not answered yet.
        window.while_pending = [];
        const pending = document.querySelector("#chart .pending");
        const state = () => document.querySelector("#now").dataset.state;
        const drawn = () => pending.getAttribute("d") && while_pending.push(state());
        new MutationObserver(drawn).observe(pending, { attributeFilter: ["d"] });
        new MutationObserver(() => shown.push(state()))
            .observe(document.querySelector("#now"), { attributeFilter: ["data-state"] });
        new MutationObserver(() => told.push(document.querySelector("#said").textContent))
            .observe(document.querySelector("#said"), { childList: true, characterData: true, subtree: true });
    """)
    count = page.number("answered")
    page.until("Number(document.querySelector('#answered').textContent) >= arguments[0]", 10, count + 3)
    # An answer may take its time before anybody is told to wait for it.
    page.server.program.pause()
    page.until("while_pending.length", 10)
    page.server.program.resume()
    assert page.ask("while_pending[0]") == "acknowledged"
    page.until("document.querySelector('#chart .pending').getAttribute('d') === ''", 10)
    assert page.ask("told") == []
    assert re.fullmatch(
        r"Round trips of the last 3 minutes: \d+ answers?.*, 0 late, 0 lost\.",
        page.ask("document.querySelector('#chart').getAttribute('aria-label')"),
    )
    page.press("#cut")
    page.until("told.length >= 2", 15)
    assert [text.split(".")[0] for text in page.ask("told.slice(0, 2)")] == ["Suspect", "Dead"]
    # What comes after it may be shown by now.
    page.until("shown.includes('dead')", 10)
    assert page.ask("shown.slice(0, shown.indexOf('dead') + 1).slice(-3)") == ["waiting", "suspect", "dead"]


def test_a_worker_keeps_the_time(live):
    """Whoever looks away from the page does not stop its beat: a hidden tab's own timers are slowed."""
    page = live(*TALK)

    def workers(driver):
        targets = driver.execute_cdp_cmd("Target.getTargets", {"filter": [{}]})["targetInfos"]
        return [target["url"] for target in targets if target["type"] == "worker"]

    # It begins when the browser gets round to it.
    assert WebDriverWait(page.driver, 20, 0.1).until(workers) == [f"{page.url}heartbeat.js"]


def test_nothing_moves_where_no_motion_is_wanted(browser, server):
    """Between two beats the chart is drawn again and again; not for who prefers reduced motion."""
    page = LivePage(browser(), server("--interval", "6").url)
    redraws = """
        const tell = arguments[arguments.length - 1];
        let count = 0;
        const watcher = new MutationObserver(() => count++);
        watcher.observe(document.querySelector("#chart .dots"), { attributes: true });
        const begun = performance.now();
        const frame = () => (performance.now() - begun < 1000 ? requestAnimationFrame(frame) : tell(count));
        frame();
    """
    moving = page.driver.execute_async_script(redraws)
    assert 3 <= moving <= 11
    feature = {"name": "prefers-reduced-motion", "value": "reduce"}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    count = page.number("answered")
    page.until("Number(document.querySelector('#answered').textContent) > arguments[0]", 10, count)
    page.driver.execute_async_script(redraws)
    assert page.driver.execute_async_script(redraws) == 0
    assert page.ask("getComputedStyle(document.querySelector('#beat')).animationName") == "none"


def test_a_name_that_is_not_honoured_is_said_to_be_so(browser, server):
    """Under a host name that is not this machine's the server gives names itself; the page works all the same."""
    started = server(*TALK)
    url = started.url.replace("127.0.0.1", "shop.test")
    page = LivePage(browser("--host-resolver-rules=MAP shop.test 127.0.0.1"), url)
    page.fill("#you [name=name]", "alice")
    page.until("document.querySelector('#name-note').textContent.startsWith('The server calls you c-')", 10)
    assert page.text("#client-id").startswith("c-")
    page.has_no_complaint()


def test_without_messages_the_page_says_how_to_have_them(live):
    """A server that serves none is no reason to show what would not work."""
    page = live("--interval", "1")
    assert page.ask("[...document.querySelectorAll('article')].every(({ hidden }) => hidden)")
    assert "--messages chat,group" in page.text("#talk-hint")
    page.is_fine("plain")
    page.has_no_complaint()


def test_a_change_of_name_begins_a_session_of_its_own(live):
    """The old one ends with its name; the numbers begin anew, and what was said stays."""
    page = live(*TALK, name="alice")
    page.chat("alice", "to myself")
    page.until_lines("chat", 1, "delivered")
    page.fill("#you [name=name]", "carol")
    page.until_text("#client-id", "carol")
    assert page.text("#session") == "new"
    assert page.number("clients") == 1
    assert page.number("reconnects") == 0
    assert page.lines("chat") == ["to myself", "to myself"]
    page.has_no_complaint()


def test_the_page_is_small(capsys):
    """All of it, without the client, which every other page has too."""
    esbuild = HERE / "node_modules" / ".bin" / "esbuild"
    if not esbuild.exists():
        pytest.skip("not run: esbuild is missing; `make test-all` gets it by npm")

    def packed(name, *options):
        command = [esbuild, "--minify", *options, PAGE / name]
        return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout

    script = packed("page.js", "--bundle", "--external:./heartbeat.js", "--format=esm")
    rest = [(PAGE / name).read_bytes() for name in ("index.html", "favicon.svg")]
    weights = [len(gzip.compress(one, 9)) for one in (script, packed("page.css"), *rest)]
    served = sum(len(gzip.compress(path.read_bytes(), 9)) for path in PAGE.iterdir())
    with capsys.disabled():
        print(f"\nthe live page: {sum(weights)} bytes minified and gzipped, at most {LIMIT}; {served} as it is served")
    assert sum(weights) <= LIMIT
