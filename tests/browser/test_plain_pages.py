"""Pages as people have them, without a library, opened from a file: they work unchanged, and never reconnect."""

import time
from itertools import pairwise
from pathlib import Path

import pytest
from chromium import SLOW_AFTER_10_S, Tab, either_scheme

pytestmark = pytest.mark.browser

PAGE = (Path(__file__).parent / "pages" / "plain.html").as_uri()

# In seconds: how long they are watched, and no stop begins so near its end. In milliseconds: how long the server stands
# still; they would go after 10 s.
WATCHED, LAST_STOP, STOPPED = 180.0, 30.0, 8000


def opened(driver, server):
    driver.get(f"{PAGE}#{server.ws}")
    tab = Tab(driver)
    tab.until("page.pongs.length >= 1", 15)
    return tab


@pytest.mark.slow
@either_scheme
def test_plain_pages_stay_for_three_minutes_beside_a_server_that_is_stopped_and_continued(browser, page_server, tls):
    """One is seen, one hidden and throttled: each has one connection, is sent no ping without a status, and stays."""
    server = page_server(tls=tls, origins=["null"])
    driver = browser(SLOW_AFTER_10_S, *server.trust)
    hidden = opened(driver, server)
    driver.switch_to.new_window("tab")
    seen = opened(driver, server)
    began = time.monotonic()
    stops = 0
    while time.monotonic() - began < WATCHED - LAST_STOP:
        pongs = seen.ask("page.pongs.length")
        server.program.pause()
        seen.until("performance.now() > arguments[0]", 20, seen.ask("performance.now()") + STOPPED)
        assert seen.ask("page.waiting_since !== null"), "the server did not stand still"
        server.program.resume()
        stops += 1
        seen.until("page.waiting_since === null", 10)
        seen.until("page.pongs.length >= arguments[0]", 60, pongs + 4)
        assert server.has_lost_nobody()
    seen.until("performance.now() > arguments[0]", LAST_STOP, 1000 * WATCHED)
    assert server.has_lost_nobody()
    assert stops >= 6
    # What is read of the hidden one is read when it is shown.
    kept = {"seen": seen.ask("page"), "hidden": hidden.ask("page")}
    assert (kept["seen"]["seen"], kept["hidden"]["seen"]) == ([], ["hidden", "visible"])
    pings = kept["hidden"]["pings"]
    assert max(later - sooner for sooner, later in pairwise(pings)) >= 50_000, (
        f"its timers were not slowed down: {pings}"
    )
    assert any("away" in event["standings"].values() for event in server.events("present"))
    for page in kept.values():
        assert (page["opens"], page["reconnects"], page["closes"], page["asked"]) == (1, [], [], [])
        # Every ping but perhaps the latest has its answer.
        assert len(page["pings"]) - len(page["pongs"]) <= 1


def test_a_page_from_a_file_is_served_where_null_is_named(browser, server):
    """`--origin null`, by the server as it is started; without it the page is told why not."""
    opened(browser(), server("--origin", "null"))
    refusing = server()
    driver = browser()
    driver.get(f"{PAGE}#{refusing.ws}")
    code, reason = Tab(driver).until("page.closes[0]", 10)
    assert code == 4403
    assert "setting origins: null" in reason
