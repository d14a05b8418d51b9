"""The client's end: opens, beats as the server declares, and takes a plain server as it is."""

import json
from math import inf

import pytest

from heartbeat.core.client_link import ClientLink
from heartbeat.core.link import (
    Abort,
    Answered,
    Asked,
    Confirmed,
    Deliver,
    Drain,
    LinkStatus,
    Opened,
    PingFrame,
    Refused,
    Report,
    Run,
    Turn,
)
from heartbeat.core.monitor import QUIET, State
from heartbeat.core.opening import Declared
from heartbeat.core.running import RunningTime
from heartbeat.core.session import Bounds, Session
from heartbeat.core.settings import Settings

ACKNOWLEDGED, WAITING, SUSPECT, DEAD = State.ACKNOWLEDGED, State.WAITING, State.SUSPECT, State.DEAD

PING_1 = b'{"type":"ping","id":1}'
PONG_1 = b'{"type":"ping","id":1,"status":"pong","clients":3}'


def client(**settings):
    """A client's end whose WebSocket opened at 0; its `onopen` and its ping 1 are out."""
    link = ClientLink(Settings(**settings), RunningTime(0.2, 0.0), 0.0)
    link.open(0.0)
    return link


def says(link, payload, now):
    """What the link does when this frame arrives."""
    return link.heard(now) + link.receive(payload, False, now)


def answer(**members):
    """A server's answer to an opening of level 1."""
    return json.dumps({"type": "onopen", "status": "ok", "v": 1, "client_id": "alice", **members}).encode()


def session(*, kept=0, **numbers):
    """A session of alice's, in which so many messages more were sent than confirmed."""
    confirmed = numbers.get("confirmed", 0)
    hello = b'{"type":"hello"}'
    numbers |= {"sent": confirmed + kept, "kept": (hello,) * kept}
    return Session("s-1", "e-1", "alice", Bounds(1000, 1_048_576), **numbers)


def declaring(**members):
    """A server's answer to an opening of level 1, with a session."""
    return answer(sid="s-1", epoch="e-1", **members)


def admitted(running):
    """A client at level 1, answered at 1, its ping 1 too, with this session."""
    link = client()
    says(link, declaring(), 1.0)
    link.admitted(running, 1.0)
    says(link, PONG_1, 1.0)
    return link


def opened(**declared):
    """A client at level 1, answered at 1, its ping 1 too."""
    link = client()
    says(link, answer(**declared), 1.0)
    says(link, PONG_1, 1.0)
    return link


def opened_plainly(**settings):
    """A client at level 0, opened by a plain pong at 1."""
    link = client(**settings)
    says(link, PONG_1, 1.0)
    return link


def looks(link):
    """Whether it is open, at which level, the heartbeat's state, and when the link wants to be looked at."""
    return (link.opened, link.level, link.monitor.state, link.next_at)


# Opening


def test_an_open_websocket_says_who_we_are_what_we_wish_and_pings_at_once():
    link = ClientLink(Settings(), RunningTime(0.2, 0.0), 0.0)

    assert link.open(0.0) == (
        b'{"type":"onopen","v":1,"beats":"client","session":null}',
        PING_1,
    )

    assert looks(link) == (False, 0, WAITING, 10.0)


def test_what_we_wish_follows_the_settings():
    settings = Settings(beats="both", interval=2.5, client_id="alice", token="secret")  # nobody's

    opening, ping = ClientLink(settings, RunningTime(0.2, 0.0), 0.0).open(0.0)

    assert opening == (
        b'{"type":"onopen","v":1,"beats":"both","interval_ms":2500,"session":null,"client_id":"alice","token":"secret"}'
    )
    assert ping == PING_1


def test_who_comes_back_names_its_session_and_what_it_has_handled_and_sent():
    running = session(kept=2, confirmed=15, handled=41, attempt=2)
    link = ClientLink(Settings(client_id="alice"), RunningTime(0.2, 0.0), 0.0, resuming=running)

    assert link.open(0.0) == (
        (
            b'{"type":"onopen","v":1,"beats":"client",'
            b'"session":{"sid":"s-1","epoch":"e-1","last":41,"sent":17,"try":2},"client_id":"alice"}'
        ),
        PING_1,
    )

    assert (link.session, looks(link)) == (None, (False, 0, WAITING, 10.0))


def test_what_an_opening_says_was_handled_is_told():
    running = session()
    running.take(1, {"type": "hello"}, 16)
    running.next()
    running.finished()
    assert running.owes

    ClientLink(Settings(), RunningTime(0.2, 0.0), 0.0, resuming=running).open(0.0)

    assert not running.owes


@pytest.mark.parametrize("beats", [None, "client", "server", "both", "none"])
def test_the_first_ping_goes_out_whoever_is_to_send_the_later_ones(beats):
    assert ClientLink(Settings(beats=beats), RunningTime(0.2, 0.0), 0.0).open(0.0)[1] == PING_1


def test_an_attempt_without_an_answer_fails_once_after_its_time():
    link = client(open_timeout=4.0)
    assert link.heard(3.0) == ()
    assert looks(link) == (False, 0, WAITING, 4.0)
    assert link.check(3.9, QUIET) == ()

    assert link.check(4.0, QUIET) == (
        Abort(4000, "no-answer"),
        Report(
            LinkStatus(
                event="dead",
                state=DEAD,
                detail="the server never answered the opening",
                silent_for=1.0,
                reason="no-answer",
            )
        ),
    )

    assert looks(link) == (False, 0, DEAD, inf)
    assert link.check(1e9, QUIET) == ()


def test_until_it_is_open_a_sleep_changes_nothing():
    """Its own time limit judges it, and our running time leaves the sleep out."""
    link = client()

    assert link.woke(5.0, QUIET) == ()

    assert looks(link) == (False, 0, WAITING, 10.0)


@pytest.mark.parametrize("answered", [True, False])
def test_a_link_that_closes_before_it_is_open_has_nothing_to_judge(answered):
    link = client()
    if answered:
        says(link, b'{"type":"onopen","status":"busy"}', 1.0)

    link.close(2.0, 1013)

    assert looks(link) == (False, 0, WAITING, inf)
    assert link.check(1e9, QUIET) == ()


# A server that declares


def test_the_servers_answer_opens_the_link_at_level_1():
    link = client()

    assert says(link, answer(clients=3), 1.0) == (
        Opened(None),
        Report(
            LinkStatus(
                event="open",
                state=WAITING,
                detail="open as alice, beats: client every 6 s",
                unanswered_for=1.0,
                level=1,
                client_id="alice",
                clients=3,
            )
        ),
    )

    assert looks(link) == (True, 1, WAITING, 7.0)
    assert link.client_id == "alice"


def test_the_pong_after_the_servers_answer_is_an_ordinary_one():
    link = client()
    says(link, answer(), 1.0)

    assert says(link, PONG_1, 1.5) == (Answered(1.5, 3),)

    assert looks(link) == (True, 1, ACKNOWLEDGED, 7.5)


@pytest.mark.parametrize(
    ("beats", "next_at"),
    [("client", 7.0), ("both", 7.0), ("server", 13.0), ("none", 13.0)],
)
def test_who_pings_and_who_watches_is_as_the_server_declares(beats, next_at):
    link = opened(beats=beats)

    assert looks(link) == (True, 1, ACKNOWLEDGED, next_at)
    assert link.monitor.pings is (beats in ("client", "both"))
    assert link.monitor.watches is (beats in ("server", "none"))


def test_a_declared_timing_holds_from_then_on():
    link = client(interval=2.0)

    _, report = says(link, answer(interval_ms=1500, timeout_ms=[500, 4000], probe_ms=1000), 1.0)

    assert report.status.detail == "open as alice, beats: client every 1.5 s"
    assert looks(link) == (True, 1, WAITING, 5.0)
    timing = link.monitor.timing
    assert (timing.interval, timing.timeout_min, timing.timeout_max, timing.probe) == (1.5, 0.5, 4.0, 1.0)


@pytest.mark.parametrize("name", [None, 7, ["alice"]])
def test_a_client_id_that_is_no_text_is_none(name):
    link = client()

    says(link, answer(client_id=name), 1.0)

    assert link.client_id is None


@pytest.mark.parametrize("clients", [None, "3", 3.0, True])
def test_a_count_that_is_no_whole_number_is_none(clients):
    _, report = says(client(), answer(clients=clients), 1.0)

    assert report.status.clients is None


@pytest.mark.parametrize(
    ("members", "detail"),
    [
        ({"v": "1"}, "an onopen answer has a whole v, and beats is one of client, server, both, none"),
        ({"v": True}, "an onopen answer has a whole v, and beats is one of client, server, both, none"),
        ({"beats": "all"}, "an onopen answer has a whole v, and beats is one of client, server, both, none"),
        ({"beats": None}, "an onopen answer has a whole v, and beats is one of client, server, both, none"),
        ({"interval_ms": 0}, "interval_ms must be milliseconds from 1 to 86400000"),
        ({"timeout_ms": 3000}, "timeout_ms must be a pair of milliseconds"),
        ({"sid": ""}, "an answer with a sid has an epoch and a client_id"),
        ({"sid": "s-1"}, "an answer with a sid has an epoch and a client_id"),
        ({"sid": "s-1", "epoch": "e-1", "client_id": None}, "an answer with a sid has an epoch and a client_id"),
        ({"sid": "s-1", "epoch": "e-1", "last": -1}, "last must be a whole number from 0"),
        ({"sid": "s-1", "epoch": "e-1", "limits": {"kept": 0}}, "kept must be a whole number from 1"),
    ],
)
def test_an_answer_that_is_wrong_is_refused_in_our_log_only_and_opens_nothing(members, detail):
    link = client()

    (refused,) = says(link, answer(**members), 1.0)

    assert type(refused) is Refused
    assert (refused.error.code, refused.error.detail) == ("bad-message", detail)
    assert looks(link) == (False, 0, WAITING, 10.0)
    assert link.client_id is None


@pytest.mark.parametrize("status", [None, "busy", 200])
def test_an_answer_that_is_not_ok_opens_nothing(status):
    link = client()

    assert says(link, answer(status=status), 1.0) == ()

    assert looks(link) == (False, 0, WAITING, 10.0)


def test_a_second_answer_is_nothing():
    link = opened()

    assert says(link, answer(client_id="bob", interval_ms=1000), 2.0) == ()

    assert looks(link) == (True, 1, ACKNOWLEDGED, 7.0)
    assert link.client_id == "alice"


# A session


def test_a_declared_session_is_asked_for_and_told_before_the_link_is_open():
    link = client()

    asked, report = says(
        link, declaring(resumed=True, last=3, sent=4, window_ms=60_000, limits={"kept": 10, "kept_bytes": 9000}), 1.0
    )

    assert asked == Opened(
        Declared("s-1", "e-1", "alice", True, "unknown", last=3, sent=4, window=60.0, bounds=Bounds(10, 9000))
    )
    assert (report.status.event, report.status.level, report.status.client_id) == ("open", 1, "alice")
    assert (link.is_judging, link.session, looks(link)) == (True, None, (True, 1, WAITING, inf))


@pytest.mark.parametrize(
    ("settings", "bounds"),
    [
        ({}, Bounds(1000, 1_048_576)),
        ({"kept_limit": 50}, Bounds(50, 1_048_576)),
        ({"kept_bytes": 4096}, Bounds(1000, 4096)),
        ({"message_limit": 2048}, Bounds(1000, 1_048_576, 2048)),
    ],
)
def test_what_is_kept_is_never_more_than_our_own_settings_say(settings, bounds):
    link = client(**settings)

    asked, _ = says(link, declaring(limits={"kept": 1_000_000, "kept_bytes": 2**30}), 1.0)

    assert asked.declared.bounds == bounds


def test_until_the_session_is_there_what_arrives_waits_and_nothing_comes_due():
    link = client()
    says(link, declaring(), 1.0)

    assert says(link, b'{"type":"hello","seq":1,"ack":0}', 2.0) == ()
    assert says(link, PONG_1, 2.0) == ()
    assert link.check(1e9, QUIET) == ()

    assert looks(link) == (True, 1, WAITING, inf)


def test_what_waited_for_the_session_is_taken_in_its_order():
    running = session(kept=3)
    link = client()
    says(link, declaring(), 1.0)
    for payload in (
        b'{"type":"hello","seq":1,"ack":2}',
        b'{"type":"ping","id":9}',
        PONG_1,
        b"hello",
        b'{"type":"drain","min_ms":0,"max_ms":5000}',
        b'{"type":"hello","seq":2,"ack":2}',
    ):
        says(link, payload, 2.0)

    *effects, refused, drain, run = link.admitted(running, 3.0)

    assert effects == [
        Confirmed(2),
        Run(),
        b'{"type":"ping","id":9,"status":"pong","ack":0}',
        Asked(),
        Answered(3.0, 3),
    ]
    assert (type(refused), drain, run) == (Refused, Drain(0.0, 5.0), Run())
    assert (link.session, running.confirmed, running.received) == (running, 2, 2)
    assert looks(link) == (True, 1, ACKNOWLEDGED, 9.0)


def test_a_session_that_comes_after_the_end_is_not_taken():
    running = session()
    link = client()
    says(link, declaring(), 1.0)
    says(link, b'{"type":"hello","seq":1}', 1.0)
    says(link, PONG_1, 1.0)

    link.close(2.0, None)

    assert link.admitted(running, 3.0) == ()
    assert (link.session, running.received) == (None, 0)
    assert looks(link) == (True, 1, WAITING, inf)


def test_while_the_session_is_waited_for_a_sleep_probes_and_convicts_nobody():
    link = client()
    says(link, declaring(), 1.0)

    assert link.woke(2.0, QUIET)[0] == b'{"type":"ping","id":2}'

    assert looks(link) == (True, 1, SUSPECT, inf)
    assert link.check(1e9, QUIET) == ()


def test_a_server_without_sessions_leaves_the_link_without_one_and_holds_nothing():
    link = client()

    assert says(link, answer(), 1.0)[0] == Opened(None)

    assert (link.is_judging, link.session) == (False, None)
    assert says(link, PONG_1, 1.5) == (Answered(1.5, 3),)


def test_in_a_session_our_pings_and_probes_tell_what_we_have_handled():
    running = session()
    link = admitted(running)
    says(link, b'{"type":"hello","seq":1}', 2.0)
    running.next()
    running.finished()

    assert link.check(7.0, QUIET) == (b'{"type":"ping","id":2,"ack":1}',)
    assert not running.owes
    link.check(link.next_at, QUIET)
    assert link.confirm(10.0, QUIET)[0] == b'{"type":"ping","id":3,"ack":1}'


def test_in_a_session_a_servers_ping_is_answered_with_what_we_have_handled_instead_of_what_it_has():
    running = session(kept=3)
    link = admitted(running)
    says(link, b'{"type":"hello","seq":1}', 2.0)
    running.next()
    running.finished()

    assert says(link, b'{"type":"ping","id":9,"ack":2}', 2.0) == (
        Confirmed(2),
        b'{"type":"ping","id":9,"status":"pong","ack":1}',
        Asked(),
    )

    assert (running.confirmed, running.owes) == (2, False)


def test_in_a_session_what_cannot_be_taken_is_still_refused_in_our_log_only():
    running = session()

    (refused,) = says(admitted(running), b'{"type":"hello","seq":0}', 2.0)

    assert (type(refused), refused.error.code) == (Refused, "bad-message")
    assert (refused.error.detail, refused.error.re) == ("seq must be a whole number from 1", "hello")
    assert running.received == 0


# A plain server


def test_a_plain_answer_opens_the_link_at_level_0_with_our_own_timing():
    link = client()

    assert says(link, b'{"type":"onopen","status":"ok","client_id":"c-1","clients":2}', 1.0) == (
        Opened(None),
        Report(
            LinkStatus(
                event="open", state=WAITING, detail="open", unanswered_for=1.0, level=0, client_id="c-1", clients=2
            )
        ),
    )

    assert looks(link) == (True, 0, WAITING, 7.0)


@pytest.mark.parametrize(
    "opening", [b'{"type":"onopen","status":"ok"}', b'{"type":"onopen","status":"ok","client_id":7}']
)
def test_a_plain_answer_without_an_id_leaves_us_none(opening):
    link = client()

    says(link, opening, 1.0)

    assert (link.opened, link.client_id) == (True, None)


@pytest.mark.parametrize(
    ("beats", "next_at"), [(None, 7.0), ("client", 7.0), ("both", 7.0), ("server", 13.0), ("none", 13.0)]
)
def test_with_a_plain_server_who_pings_is_as_we_wished(beats, next_at):
    assert looks(opened_plainly(beats=beats)) == (True, 0, ACKNOWLEDGED, next_at)


@pytest.mark.parametrize("pong", [PONG_1, b'{"type":"ping","status":"pong","clients":3}'])
def test_a_pong_before_any_answer_means_a_plain_server(pong):
    """With or without an id: there is one ping in flight."""
    link = client()

    assert says(link, pong, 1.0) == (
        Opened(None),
        Report(
            LinkStatus(
                event="open",
                state=ACKNOWLEDGED,
                detail="open, the server knows plain pings",
                rtt=1.0,
                clients=3,
            )
        ),
        Answered(1.0, 3),
    )

    assert looks(link) == (True, 0, ACKNOWLEDGED, 7.0)


def test_a_pong_to_no_ping_of_ours_opens_nothing():
    link = client()

    assert says(link, b'{"type":"ping","id":2,"status":"pong"}', 1.0) == ()

    assert looks(link) == (False, 0, WAITING, 10.0)


def test_an_answer_after_the_pong_comes_too_late():
    link = opened_plainly()

    assert says(link, answer(), 2.0) == ()

    assert looks(link) == (True, 0, ACKNOWLEDGED, 7.0)


@pytest.mark.parametrize("opening", [b'{"type":"onopen","status":"ok"}', b""])
def test_a_plain_servers_refusal_of_a_ping_is_a_failed_beat(opening):
    """So says the protocol of such pages: a status other than pong means to reconnect."""
    link = client()
    if opening:
        says(link, opening, 1.0)

    abort, report = says(link, b'{"type":"ping","status":"offline"}', 2.0)

    assert abort == Abort(4000, "refused")
    assert (report.status.event, report.status.detail) == ("dead", "the server refused a ping")
    assert (link.monitor.state, link.next_at) == (DEAD, inf)
    assert link.check(1e9, QUIET) == ()


def test_a_plain_servers_own_ping_is_answered():
    link = opened_plainly()

    assert says(link, b'{"type":"ping","n":1e5}', 2.0) == (b'{"type":"ping","n":1e5,"status":"pong"}', Asked())


# RFC 6455 pings, for servers that know no JSON


def test_with_frames_nothing_but_a_ping_frame_is_sent():
    link = ClientLink(Settings(frames=True), RunningTime(0.2, 0.0), 0.0)

    assert link.open(0.0) == (PingFrame(b"heartbeat 1"),)

    assert looks(link) == (False, 0, WAITING, 10.0)


def test_with_frames_the_first_pong_opens_the_link():
    link = client(frames=True)
    link.heard(1.0)

    assert link.pong(b"heartbeat 1", 1.0) == (
        Opened(None),
        Report(
            LinkStatus(
                event="open", state=ACKNOWLEDGED, detail="open, the server knows RFC 6455 pings", rtt=1.0, clients=None
            )
        ),
        Answered(1.0, None),
    )

    assert looks(link) == (True, 0, ACKNOWLEDGED, 7.0)


def test_with_frames_pings_and_probes_are_frames():
    link = client(frames=True)
    link.heard(1.0)
    link.pong(b"heartbeat 1", 1.0)

    assert link.check(7.0, QUIET) == (PingFrame(b"heartbeat 2"),)
    assert link.check(10.0, QUIET) == (Turn(),)
    assert link.confirm(10.0, QUIET)[0] == PingFrame(b"heartbeat 3")


# Beating


def test_who_pings_probes_as_it_pings():
    link = opened()
    link.check(7.0, QUIET)
    link.check(10.0, QUIET)

    assert link.confirm(10.0, QUIET)[0] == b'{"type":"ping","id":3}'


def test_who_watches_probes_by_a_ping_frame():
    link = opened(beats="server")

    assert link.check(13.0, QUIET) == (Turn(),)
    assert link.confirm(13.0, QUIET)[0] == PingFrame(b"heartbeat 2")


def test_an_open_link_probes_when_the_machine_wakes():
    link = opened()

    assert link.woke(5.0, QUIET)[0] == b'{"type":"ping","id":2}'

    assert looks(link) == (True, 1, SUSPECT, 8.0)


def test_a_pong_tells_how_many_clients_there_are():
    link = opened()
    link.check(7.0, QUIET)

    assert says(link, b'{"type":"ping","id":2,"status":"pong","clients":12}', 7.5) == (Answered(0.5, 12),)


def test_a_servers_ping_is_answered_without_a_count():
    link = opened(beats="server")

    assert says(link, b'{"type":"ping","id":9}', 2.0) == (b'{"type":"ping","id":9,"status":"pong"}', Asked())


def test_both_a_servers_ping_puts_ours_off():
    link = opened(beats="both")

    says(link, b'{"type":"ping","id":9}', 4.0)

    assert looks(link) == (True, 1, ACKNOWLEDGED, 10.0)


def test_at_level_1_a_status_in_a_servers_ping_is_the_servers_affair():
    assert says(opened(), b'{"type":"ping","id":9,"status":"hello"}', 2.0) == (
        b'{"type":"ping","id":9,"status":"pong"}',
        Asked(),
    )


def test_a_servers_ping_beyond_the_limit_is_refused_in_our_log_only():
    link = opened()
    longest = b'{"type":"ping","id":9,"pad":"' + b"x" * 993 + b'"}'
    assert len(longest) == 1024

    assert says(link, longest, 2.0)[1] == Asked()
    (refused,) = says(link, longest + b" ", 2.0)

    assert type(refused) is Refused
    error = refused.error
    assert (error.code, error.detail, error.re) == ("too-big", "a ping is at most 1024 bytes", 9)


# What else a server says


def test_an_error_is_the_applications_to_read():
    error = {"type": "error", "code": "unknown-type", "detail": "no", "re": "m1"}

    assert says(opened(), json.dumps(error).encode(), 2.0) == (Deliver(error),)


def test_an_ack_is_nobodys_news():
    assert says(opened(), b'{"type":"ack","ack":5}', 2.0) == ()


@pytest.mark.parametrize(
    ("window", "drain"),
    [((0, 5000), Drain(0.0, 5.0)), ((100, 100), Drain(0.1, 0.1)), ((0, 86_400_000), Drain(0.0, 86_400.0))],
)
def test_a_drain_tells_when_to_come_back(window, drain):
    shortest, longest = window

    assert says(opened(), b'{"type":"drain","min_ms":%d,"max_ms":%d}' % (shortest, longest), 2.0) == (drain,)


@pytest.mark.parametrize(
    "window",
    [
        {},
        {"min_ms": 0},
        {"max_ms": 5000},
        {"min_ms": "0", "max_ms": 5000},
        {"min_ms": 0, "max_ms": 5000.0},
        {"min_ms": True, "max_ms": 5000},
        {"min_ms": -1, "max_ms": 5000},
        {"min_ms": 5000, "max_ms": 0},
        {"min_ms": 0, "max_ms": 86_400_001},
    ],
)
def test_a_drain_without_a_window_is_refused_in_our_log_only(window):
    (refused,) = says(opened(), json.dumps({"type": "drain", **window}).encode(), 2.0)

    assert type(refused) is Refused
    error = refused.error
    assert (error.code, error.detail, error.re) == ("bad-message", "drain has min_ms and max_ms", "drain")


def test_what_is_no_message_is_refused_in_our_log_only():
    (refused,) = says(opened(), b"hello", 2.0)

    assert type(refused) is Refused
    assert refused.error.code == "bad-json"
