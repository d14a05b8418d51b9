"""Tabs that are really hidden, their timers slowed to one a minute: away, never dead, and back at once."""

import time
from itertools import pairwise
from statistics import median

import pytest
from chromium import SLOW_AFTER_10_S, Page, either_scheme

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# In seconds: how long nobody looks; the interval, and how much later a beat may come on a busy machine.
HIDDEN, INTERVAL, SLACK = 180.0, 3.0, 2.5


def was_throttled(times_ms):
    """Whether a timer that was to come every second or so came once a minute; the control of these tests."""
    return max((later - sooner for sooner, later in pairwise(times_ms)), default=0) >= 50_000


@either_scheme
def test_hidden_for_three_minutes_is_away_and_back_at_once(browser, page_server, tls):
    """With a Worker's clock and without: beats at the interval, is never suspected, and acknowledged once looked at."""
    server = page_server(tls=tls, interval=INTERVAL)
    driver = browser(SLOW_AFTER_10_S, *server.trust)
    tabs = {}
    for name, worker in (("without", False), ("with", True)):
        if tabs:
            driver.switch_to.new_window("tab")
        tabs[name] = Page(driver, server, options={"client_id": name, "worker": worker})
        tabs[name].until_open()
    driver.switch_to.new_window("tab")
    hidden = time.monotonic()

    def both_away():
        return server.events("present")[-1]["standings"] == {"without": "away", "with": "away"}

    server.until(both_away, 10)

    def nobody_has_looked_for_long_enough():
        assert server.events("suspect", "dead", "closed") == []
        assert both_away()
        return time.monotonic() - hidden >= HIDDEN

    server.until(nobody_has_looked_for_long_enough, HIDDEN + INTERVAL + SLACK)

    for name, usual in (("with", INTERVAL + 0.4), ("without", INTERVAL + 1.4)):
        beats = [event["at"] for event in server.events("ping", client=name, away=True)]
        gaps = [later - sooner for sooner, later in pairwise(beats)]
        assert beats[-1] - beats[0] >= HIDDEN - 2 * INTERVAL
        assert max(gaps) <= usual + SLACK
        # A hidden page's own timers, where they are spared, still come on the full second only.
        assert median(gaps) <= usual
    for name, page in tabs.items():
        page.show()
        assert was_throttled(page.ask("page.ticks")), "its timers were not slowed down, so nothing was shown"
        assert [entry["visible"] for entry in page.diary("visibilitychange")][-2:] == [False, True]
        shown = page.diary("visibilitychange")[-1]["at"]
        pong = page.until_event("pong", 10, shown)
        assert pong["at"] - shown <= 1000
        assert pong["state"] == "acknowledged"
        server.until(lambda name=name: server.events("present")[-1]["standings"][name] == "active", INTERVAL + SLACK)
        page.ask("page.say({who: arguments[0]})", name)
        page.until_all_is_handled()
        assert server.handled(who=name) == [1]
        assert page.events() == ["open"]
        page.has_no_complaint()
    assert server.events("suspect", "dead", "closed") == []
