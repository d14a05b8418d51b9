"""Refusals are counted by their reason, and told to the log as often as somebody can read."""

import pytest

from heartbeat.refusals import QUIET, Refusals, readable


@pytest.fixture
def refusals():
    return Refusals()


def lines(log):
    """What was said."""
    return [event["log_format"].format(**event) for event in log if event.get("log_namespace") == "heartbeat.refusals"]


def test_the_first_of_a_kind_is_told_with_its_peer_and_the_others_are_counted(refusals, log):
    """A thousand of one kind, and one of another: two lines."""
    for n in range(1000):
        refusals.refused("max_connections", f"192.0.2.{n % 256}", "no room", 1.0)
    refusals.refused("origins", "192.0.2.7", "pages of x are not served here", 1.0)

    assert refusals.counts == {"max_connections": 1000, "origins": 1}
    assert lines(log) == ["192.0.2.0: no room", "192.0.2.7: pages of x are not served here"]


def test_once_a_minute_it_is_told_how_many_more_there_were(refusals, log):
    """Nothing before the minute is over; then the number, and nothing again where there were none."""
    for _ in range(4):
        refusals.refused("handshake_rate", "192.0.2.1", "too many handshakes", 10.0)
    refusals.ticked(10.0 + QUIET - 0.1)
    assert len(lines(log)) == 1

    refusals.ticked(10.0 + QUIET)
    assert lines(log)[1:] == ["refused 3 more since then: handshake_rate"]

    refusals.refused("handshake_rate", "192.0.2.1", "too many handshakes", 71.0)
    refusals.ticked(10.0 + 2 * QUIET)
    refusals.ticked(10.0 + 3 * QUIET)
    refusals.ticked(10.0 + 4 * QUIET)
    assert lines(log)[2:] == ["refused 1 more since then: handshake_rate"]

    refusals.refused("handshake_rate", "192.0.2.9", "too many handshakes", 1000.0)
    assert lines(log)[3:] == ["192.0.2.9: too many handshakes"]
    assert refusals.counts == {"handshake_rate": 6}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("pages of https://example.org are not served", "pages of https://example.org are not served"),
        ("one\r\nlog: [heartbeat] two", "one\\r\\nlog: [heartbeat] two"),
        ("\x1b[2Jgone \x00\u2028 \ud800", "\\x1b[2Jgone \\x00\\u2028 \\ud800"),
        ("grün 的", "grün 的"),
        ("x" * 1000, "x" * 200 + "…"),
        (None, "None"),
    ],
)
def test_what_a_peer_wrote_is_one_short_line_of_visible_characters(text, shown):
    """No line end of his makes a line of ours, nor does he paint on a terminal."""
    assert readable(text) == shown


def test_a_line_of_the_log_is_one_line_whatever_the_peer_is_called(refusals, log):
    """X-Forwarded-For is a peer's to write where a proxy passes it on."""
    refusals.refused("protocol", "192.0.2.1\n2026-11-28 [heartbeat] all is well {x}", "bad\r\n{y}", 0.0)

    assert lines(log) == ["192.0.2.1\\n2026-11-28 [heartbeat] all is well {x}: bad\\r\\n{y}"]


def test_where_nobody_is_connected_each_is_told_with_its_peer(refusals, log):
    """No tick passes there: an hour later it is the first again, and those of the hour are told of before."""
    refusals.refused("unauthorized", "192.0.2.1", "no token", 0.0)
    refusals.refused("unauthorized", "192.0.2.2", "no token", 1.0)
    refusals.refused("unauthorized", "192.0.2.3", "no token", 3600.0)
    refusals.refused("unauthorized", "192.0.2.4", "no token", 7200.0)
    refusals.refused("unauthorized", "192.0.2.5", "no token", 7300.0)

    assert lines(log) == [
        "192.0.2.1: no token",
        "refused 1 more since then: unauthorized",
        "192.0.2.3: no token",
        "192.0.2.4: no token",
        "192.0.2.5: no token",
    ]


def test_a_page_that_is_not_served_is_counted(serve, connect):
    """By the setting that says so."""
    factory = serve(level0="refuse")
    page = connect().open()
    page.say({"type": "ping"})

    assert page.closed_with == 4401
    assert factory.refused == {"level0": 1}
