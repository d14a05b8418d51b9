"""What pages go through in a real Chromium: reloads, second tabs, copies, the back button, being frozen."""

import pytest
from chromium import Page, either_scheme

pytestmark = pytest.mark.browser

SUPERSEDED = 4001
LIVES = 15
# In milliseconds: the longest wait before the first attempt to come back, and some for a busy machine.
FIRST_DELAY, SLACK = 1500, 1000


def end_of_talk(page, timeout=20):
    """Both sides stop talking, and all arrives: how many messages each has sent."""
    page.ask("page.enough()")
    count = page.until_event("enough", timeout)["count"]
    sent = page.ask("page.hush()")
    page.until_all_is_handled(timeout)
    return count, sent


@either_scheme
def test_reloads_in_the_middle_of_a_conversation_lose_nothing(browser, page_server, tls):
    """Sixteen lives of a page, both sides talking all the time: one session, everything once and in order."""
    server = page_server(tls=tls, interval=1.0)
    page = Page(browser(*server.trust), server)
    page.until_open()
    page.ask("page.listen(5)")
    for _ in range(LIVES):
        page.ask("page.talk(5)")
        page.until("page.handled.length >= 20", 15)
        # Twenty more of which no answer can have come: the page ends in the same turn.
        page.reload("for (let n = 0; n < 20; n++) page.say()")
    page.ask("page.talk(5)")
    page.until_open()
    count, sent = end_of_talk(page)

    assert count > 100
    assert page.ask("page.words") == list(range(1, count + 1))
    assert sent >= LIVES * 40
    assert server.has_handled(sent)
    assert len({event["sid"] for event in server.events("handled")}) == 1
    assert server.events("lost", "refused") == []
    assert page.diary("lost") == []
    page.has_no_complaint()


def test_a_reload_without_a_link_keeps_what_was_sent_before_it(browser, page_server):
    """Said while the server stood still, by a page that is gone since: it arrives all the same."""
    pages = page_server()
    server = page_server(interval=1.0, origins=[pages.url.removesuffix("/")])
    page = Page(browser(), pages, url=server.ws)
    page.until_open()
    server.program.pause()
    page.reload("for (let n = 0; n < 50; n++) page.say()")
    assert page.ask("page.client.unconfirmed") == 50
    server.program.resume()
    page.until_open()
    page.ask("page.say()")
    page.until_all_is_handled()
    assert server.has_handled(51)
    page.has_no_complaint()


@either_scheme
def test_two_tabs_are_two_connections_of_one_client_without_a_fight(browser, page_server, tls):
    """Each has a session of its own; a close of one is no leave of the client."""
    server = page_server(tls=tls, interval=1.0)
    driver = browser(*server.trust)
    first = Page(driver, server, options={"client_id": "alice"})
    first.until_open()
    driver.switch_to.new_window("tab")
    second = Page(driver, server, options={"client_id": "alice"})
    second.until_open()
    server.until(lambda: server.events("present", clients=1, connections={"alice": 2}), 10)
    for tab, who in ((first, "first"), (second, "second")):
        for _ in range(5):
            tab.ask("page.say({who: arguments[0]})", who)
        tab.until_all_is_handled()
        tab.until("page.handled.length === 5", 5)
    server.until(lambda: len(server.handled()) == 10, 10)
    assert server.handled(who="first") == server.handled(who="second") == [1, 2, 3, 4, 5]
    assert len({event["sid"] for event in server.events("handled")}) == 2
    assert server.events("closed") == []
    driver.close()
    driver.switch_to.window(first.handle)
    # The first was hidden, and away: it is active again with its second beat.
    alone = {"standings": {"alice": "active"}, "connections": {"alice": 1}}
    server.until(lambda: alone.items() <= server.events("present")[-1].items(), 10)
    assert first.events() == ["open"]
    first.has_no_complaint()


@either_scheme
def test_a_duplicated_tab_ends_up_with_a_session_of_its_own(browser, page_server, tls):
    """It begins with a copy of the other's sessionStorage, the session in it: one 4001, and two tabs that work."""
    server = page_server(tls=tls, interval=1.0)
    driver = browser(*server.trust)
    first = Page(driver, server)
    first.until_open()
    first.ask("page.say({who: 'first'})")
    first.until_all_is_handled()
    first.ask("window.open(location.href) !== null")
    (copied,) = set(driver.window_handles) - {first.handle}
    driver.switch_to.window(copied)
    copy = Page.there(driver)
    copy.until_open()
    assert copy.ask("page.sent") == 1, "the storage was not copied, so there was nothing to fight for"

    server.until_event("closed", 10, closed_with=SUPERSEDED)
    first.until("page.diary.filter(({event}) => event === 'open').length === 2", 10)
    # Nobody is thrown out any more, not even by what they send: both are there for longer than either would fight.
    for tab, who in ((first, "first"), (copy, "copy")):
        beats = len(tab.diary("pong"))
        for _ in range(5):
            tab.ask("page.say({who: arguments[0]})", who)
        tab.until_all_is_handled()
        tab.until("page.diary.filter(({event}) => event === 'pong').length >= arguments[0]", 15, beats + 5)
        assert tab.ask("page.client.status.state") in ("acknowledged", "waiting")
    assert server.handled(who="first") == [1, 2, 3, 4, 5, 6]
    assert server.handled(who="copy") == [2, 3, 4, 5, 6]
    assert len({event["sid"] for event in server.events("handled", who="copy")}) == 1
    last = {who: server.events("handled", who=who)[-1]["sid"] for who in ("first", "copy")}
    assert last["first"] != last["copy"]
    assert len(server.events("closed", closed_with=SUPERSEDED)) == 1
    assert copy.events() == ["open"]
    assert first.events() == ["open", "closed", "reconnecting", "open"]
    first.has_no_complaint()
    copy.has_no_complaint()


def test_the_back_button_brings_a_page_back_into_its_session(browser, page_server):
    """Out of the browser's cache, its socket gone: it resumes, though another page went on in the session meanwhile.

    That page writes until it goes; what it wrote last may reach the returning one a moment after `pageshow`.
    """
    server = page_server(interval=1.0)
    driver = browser()
    page = Page(driver, server)
    page.until_open()
    page.ask("page.listen(5)")
    page.until("page.words.length >= 20", 15)
    page.ask("page.is_the_first = true")
    for n in range(1, 11):
        # Each goes in the same turn in which it sends twenty more.
        driver.execute_script("for (let n = 0; n < 20; n++) page.say(); location.href = '?other'")
        page.until("window.page && !page.is_the_first", 15)
        other = Page.there(driver)
        other.until_open()
        other.ask("page.talk(2)")
        other.until("page.handled.length >= 40", 15)
        driver.execute_script("for (let n = 0; n < 20; n++) page.say(); history.back()")
        page.until("window.page && page.is_the_first", 15)
        returns = "page.diary.filter(({event, persisted}) => event === 'pageshow' && persisted)"
        page.until(f"{returns}.length === arguments[0]", 10, n)
        page.until_event("pong", 15, page.ask(f"{returns}.at(-1).at"))
        page.until("page.handled.includes(arguments[0])", 15, page.ask("page.say()"))
    count, sent = end_of_talk(page)

    assert page.ask("page.words") == list(range(1, count + 1))
    assert server.has_handled(sent)
    assert len({event["sid"] for event in server.events("handled")}) == 1
    # Those that were under way when it went had become the other page's.
    assert {reason for _, reason in page.ask("page.failed")} <= {"superseded"}
    assert server.events("closed", closed_with=SUPERSEDED) == []
    page.has_no_complaint()


def test_a_frozen_page_is_away_and_thaws_into_its_session(browser, page_server):
    """Never killed, however long. Chromium took its socket, which it learns when it thaws, and nothing is lost."""
    server = page_server(interval=1.0, timeout_max=3.0)
    driver = browser()
    page = Page(driver, server, options={"client_id": "alice"})
    page.until_open()
    page.ask("page.listen(100)")
    page.ask("page.talk(50)")
    page.until("page.handled.length >= 10 && page.words.length >= 5", 15)
    driver.execute_cdp_cmd("Page.setWebLifecycleState", {"state": "frozen"})
    frozen = page.ask("page.sent")
    driver.switch_to.new_window("tab")
    server.until(lambda: server.events("present", standings={"alice": "away"}), 15)
    server.until(lambda: len(server.events("suspect")) >= 2, 30)
    assert server.events("dead", "closed") == []
    assert len(server.handled()) <= frozen, "it was not frozen"
    page.show()
    driver.execute_cdp_cmd("Page.setWebLifecycleState", {"state": "active"})

    back = page.until_event("resume", 10)["at"]
    assert page.until_event("pong", 10, back)["at"] - back <= FIRST_DELAY + SLACK
    server.until(lambda: server.events("present")[-1]["standings"] == {"alice": "active"}, 10)
    count, sent = end_of_talk(page)
    assert page.ask("page.words") == list(range(1, count + 1))
    assert server.has_handled(sent)
    assert len({event["sid"] for event in server.events("handled")}) == 1
    assert server.events("dead") == []
    assert "dead" not in page.events()
    page.has_no_complaint()
