"""What both ends share: which frames are theirs, and what the monitor's judgements become.

A server's link stands for an end that watches, a client's for one that pings.
"""

import gc
from dataclasses import replace
from math import inf

import pytest

from heartbeat.core.client_link import ClientLink
from heartbeat.core.errors import PeerError
from heartbeat.core.link import (
    GUEST_LIMIT,
    NOTHING,
    Abort,
    Answered,
    Asked,
    Close,
    Confirmed,
    Deliver,
    Drain,
    Joined,
    Judge,
    Left,
    Link,
    LinkStatus,
    NotOurs,
    Opened,
    PingFrame,
    Refused,
    Report,
    Run,
    Turn,
    milliseconds,
    ping_id_of,
)
from heartbeat.core.monitor import QUIET, Monitor, State, Traffic
from heartbeat.core.opening import Opening
from heartbeat.core.presence import Presence
from heartbeat.core.running import RunningTime
from heartbeat.core.server_link import ServerLink
from heartbeat.core.session import Arrived, Bounds, Session
from heartbeat.core.settings import Settings

ACKNOWLEDGED, WAITING, SUSPECT, DEAD = State.ACKNOWLEDGED, State.WAITING, State.SUSPECT, State.DEAD

LEVEL_1 = b'{"type":"onopen","v":1}'
OPENED = b'{"type":"onopen","status":"ok","v":1,"client_id":"alice"}'


def server(*, guest=False, **settings):
    """A server's end, opened at 0: it watches."""
    return ServerLink(
        Settings(**settings),
        RunningTime(0.2, 0.0),
        0.0,
        presence=Presence(40.0, 75.0),
        client_id="c-1",
        guest=guest,
    )


def client(running=None, **settings):
    """A client's end, opened at 0, answered at 1: it pings, and ping 1 was answered too."""
    link = ClientLink(Settings(**settings), running or RunningTime(0.2, 0.0), 0.0)
    link.open(0.0)
    link.heard(1.0)
    link.receive(OPENED, False, 1.0)
    assert link.receive(b'{"type":"ping","id":1,"status":"pong"}', False, 1.0) == (Answered(1.0, None),)
    return link


def session(*, kept=0, messages=1000):
    """A session of c-1's in which so many messages were sent and none was confirmed."""
    return Session("s-1", "e-1", "c-1", Bounds(messages, 65_536), sent=kept, kept=(b'{"type":"hello"}',) * kept)


def server_in(session, **settings):
    """A server's end, opened at 0, with this session from then on."""
    link = server(**settings)
    assert type(link.receive(LEVEL_1, False, 0.0)[0]) is Judge
    link.admitted(session, 0.0)
    return link


def client_in(session, **settings):
    """A client's end, opened at 0, answered at 1, with this session from then on; ping 1 was answered too."""
    link = ClientLink(Settings(**settings), RunningTime(0.2, 0.0), 0.0)
    link.open(0.0)
    link.heard(1.0)
    assert type(link.receive(OPENED[:-1] + b',"sid":"s-1","epoch":"e-1"}', False, 1.0)[0]) is Opened
    link.admitted(session, 1.0)
    link.receive(b'{"type":"ping","id":1,"status":"pong"}', False, 1.0)
    return link


def says(link, *payloads):
    """What the link does when these frames arrive."""
    return sum((link.receive(payload, False, 2.0) for payload in payloads), ())


def handle(session, count):
    for _ in range(count):
        assert session.next() is not None
        session.finished()


def numbers(session):
    """The highest number sent, confirmed, received, handled, and whether anything is owed."""
    return (session.sent, session.confirmed, session.received, session.handled, session.owes)


def suspecting():
    """A client whose ping 2 went out at 7, was missed at 10, and whose probe 3 went out then."""
    link = client()
    link.check(7.0, QUIET)
    link.check(10.0, QUIET)
    link.confirm(10.0, QUIET)
    return link


def looks(link):
    """The heartbeat's state, when the link wants to be looked at, and its level."""
    return (link.monitor.state, link.next_at, link.level)


# Which frames are whose


def test_a_message_of_an_unreserved_type_is_the_applications():
    assert server().receive(b'{"type":"onchat","to":"bob"}', False, 1.0) == (Deliver({"type": "onchat", "to": "bob"}),)


@pytest.mark.parametrize("kind", ["ack", "drain", "error"])
def test_what_is_never_answered_is_never_answered(kind):
    link = server()

    assert link.receive(b'{"type":"%b"}' % kind.encode(), False, 1.0) == NOTHING

    assert looks(link) == (ACKNOWLEDGED, 12.0, 0)


@pytest.mark.parametrize(
    ("payload", "binary", "answer"),
    [
        (b"hello", False, b'"code":"bad-json","detail":"not JSON: JSON is malformed: invalid character (byte 0)"}'),
        (b"[]", False, b'"code":"bad-message","detail":"a message is a JSON object"}'),
        (b"{}", False, b'"code":"bad-message","detail":"a message has a type, and the type is text"}'),
        (b'{"type":"ping"}', True, b'"code":"bad-message","detail":"a message is a text frame, not a binary one"}'),
    ],
)
def test_what_is_no_message_is_refused_and_the_connection_stays_open(payload, binary, answer):
    link = server()

    assert link.receive(payload, binary, 1.0) == (b'{"type":"error",' + answer,)

    assert looks(link) == (ACKNOWLEDGED, 12.0, 0)


def test_a_refusal_from_deeper_down_is_told_in_the_ends_own_way():
    link = client()

    (refused,) = link.receive(b'{"type":"drain"}', False, 2.0)

    assert type(refused) is Refused
    assert (refused.error.code, refused.error.detail) == ("bad-message", "drain has min_ms and max_ms")


def test_a_link_that_is_no_end_cannot_refuse_anything():
    link = Link(
        Settings(), RunningTime(0.2, 0.0), Monitor(Settings().timing(), 0.0, pings=False, watches=True), guest=False
    )

    with pytest.raises(NotImplementedError):
        link.receive(b"hello", False, 1.0)


# On behalf of a mixin


def test_as_a_guest_pings_and_openings_are_ours():
    link = server(guest=True)

    assert link.receive(b'{"type":"ping"}', False, 1.0)[0] == b'{"type":"ping","status":"pong","clients":1}'
    assert link.receive(b' \n{"type":"onopen"}', False, 1.0)[0].startswith(b'{"type":"onopen","status":"ok"')


@pytest.mark.parametrize(
    "payload",
    [
        b"hello",
        b"",
        b"[]",
        b"{}",
        b'{"type":"onchat"}',
        b'{"type":"ack"}',
        b'{"type":"drain"}',
        b'{"type":"error"}',
        b'{"type":"ping"',
        b'{"type":"ping","pad":"' + b"x" * GUEST_LIMIT + b'"}',
    ],
)
def test_as_a_guest_all_else_is_the_hosts_and_never_answered(payload):
    link = server(guest=True)

    assert link.receive(payload, False, 1.0) == (NotOurs(),)

    assert looks(link) == (ACKNOWLEDGED, 12.0, 0)


def test_as_a_guest_binary_frames_are_the_hosts_whatever_they_hold():
    assert server(guest=True).receive(b'{"type":"ping"}', True, 1.0) == (NotOurs(),)


def test_as_a_guest_frames_of_up_to_four_kibibytes_are_looked_into():
    link = server(guest=True, ping_limit=4096)
    longest = b'{"type":"ping","pad":"' + b"x" * 4072 + b'"}'
    assert len(longest) == GUEST_LIMIT == 4096

    assert link.receive(longest, False, 1.0)[0] == longest[:-1] + b',"status":"pong","clients":1}'
    assert link.receive(longest + b" ", False, 1.0) == (NotOurs(),)


def test_as_a_guest_the_other_reserved_types_are_ours_once_a_level_1_opening_was_answered():
    link = server_in(session(), guest=True)

    assert [link.receive(b'{"type":"%b"}' % kind, False, 1.0) for kind in (b"ack", b"drain", b"error")] == [()] * 3
    assert link.receive(b'{"type":"onchat"}', False, 1.0) == (NotOurs(),)


@pytest.mark.parametrize(
    "payload", [b'{"type":"onchat","seq":1}', b'{"seq":1}', b'{"type":"ack","seq":1}', b'{"type":["onchat"],"seq":1}']
)
def test_as_a_guest_what_is_numbered_is_ours_in_a_session_only(payload):
    assert server(guest=True).receive(payload, False, 1.0) == (NotOurs(),)
    assert NotOurs() not in server_in(session(), guest=True).receive(payload, False, 1.0)


@pytest.mark.parametrize("payload", [b"{}", b'{"type":["ack"]}', b'{"type":{}}', b'{"type":7}', b'{"type":null}'])
def test_as_a_guest_what_is_no_message_is_the_hosts_in_a_session_too(payload):
    assert server_in(session(), guest=True).receive(payload, False, 1.0) == (NotOurs(),)


def test_as_a_guest_frames_of_any_length_are_looked_into_in_a_session():
    running = session()
    link = server_in(running, guest=True)
    pad = b'"pad":"' + b"x" * GUEST_LIMIT + b'"}'

    assert says(link, b'{"type":"onchat","seq":1,' + pad) == (Run(),)
    assert says(link, b'{"type":"onchat",' + pad) == (NotOurs(),)
    assert says(link, b'{"type":"ping",' + pad)[0].startswith(b'{"type":"error","code":"too-big"')

    assert running.received == 1


def test_as_a_guest_nothing_is_held_that_is_the_hosts():
    link = server(guest=True)
    link.receive(LEVEL_1, False, 0.0)

    assert says(link, b"hello") == (NotOurs(),)
    assert says(link, b'{"type":"onchat"}') == (NotOurs(),)
    assert says(link, b'{"type":"onchat","seq":1}') == (NotOurs(),)
    assert says(link, b'{"type":"ping","pad":"' + b"x" * GUEST_LIMIT + b'"}') == (NotOurs(),)
    assert says(link, b'{"type":"ping"}') == NOTHING

    assert len(link.admitted(session(), 2.0)) == 3


def test_as_a_guest_a_client_holds_what_is_numbered_until_its_session_is_there():
    running = session()
    link = ClientLink(Settings(), RunningTime(0.2, 0.0), 0.0, guest=True)
    link.receive(OPENED[:-1] + b',"sid":"s-1","epoch":"e-1"}', False, 1.0)

    held = (b'{"type":"onchat","seq":1}', b'{"type":"onchat","seq":2,"pad":"' + b"x" * GUEST_LIMIT + b'"}')
    assert says(link, *held) == NOTHING
    assert says(link, b'{"type":"onchat"}') == (NotOurs(),)

    assert link.admitted(running, 2.0) == (Run(), Run())
    assert running.received == 2


def test_as_a_guest_a_ping_that_cannot_be_taken_is_still_ours_to_refuse():
    link = server(guest=True)

    (frame,) = link.receive(b'{"type":"ping","id":7,"pad":"' + b"x" * 1024 + b'"}', False, 1.0)

    assert frame == b'{"type":"error","code":"too-big","detail":"a ping is at most 1024 bytes","re":7}'


# The monitor's judgements as frames and reports


def test_a_due_ping_is_a_frame_and_nobodys_news():
    link = client()

    assert link.check(7.0, QUIET) == (b'{"type":"ping","id":2}',)

    assert looks(link) == (WAITING, 10.0, 1)


def test_a_servers_ping_is_the_same_frame_and_in_a_session_tells_what_it_has_handled():
    link = server()
    link.receive(b'{"type":"onopen","v":1,"beats":"server"}', False, 0.0)
    link.admitted(session(), 0.0)

    assert link.check(0.0, QUIET) == (b'{"type":"ping","id":1,"ack":0}',)


def test_in_a_session_a_ping_tells_what_was_handled():
    running = session()
    link = client_in(running)
    says(link, b'{"type":"hello","seq":1}', b'{"type":"hello","seq":2}')
    handle(running, 1)
    assert running.owes

    assert link.check(7.0, QUIET) == (b'{"type":"ping","id":2,"ack":1}',)

    assert numbers(running) == (0, 0, 2, 1, False)


def test_an_answer_in_time_is_nobodys_news_either():
    link = client()
    link.check(7.0, QUIET)

    assert link.heard(7.5) == NOTHING
    assert link.receive(b'{"type":"ping","id":2,"status":"pong","clients":3}', False, 7.5) == (Answered(0.5, 3),)

    assert looks(link) == (ACKNOWLEDGED, 13.5, 1)


def test_nothing_is_judged_before_its_time():
    assert client().check(6.9, QUIET) == NOTHING


def test_a_missed_answer_is_suspicion_told_with_the_evidence_once_the_reactor_has_turned():
    link = client()
    link.check(7.0, QUIET)

    assert link.check(10.0, QUIET) == (Turn(),)
    assert looks(link) == (WAITING, inf, 1)

    assert link.confirm(10.0, QUIET) == (
        b'{"type":"ping","id":3}',
        Report(
            LinkStatus(
                event="suspect",
                state=SUSPECT,
                detail="network fluctuation: no answer for 3.0 s, probing",
                silent_for=9.0,
                unanswered_for=3.0,
                rtt=1.0,
                level=1,
                client_id="alice",
            )
        ),
    )
    assert looks(link) == (SUSPECT, 13.0, 1)


def test_silence_at_a_watchers_end_is_told_as_silence_and_probed_by_a_ping_frame():
    link = server()

    assert link.check(12.0, QUIET) == (Turn(),)
    assert link.confirm(12.0, QUIET) == (
        PingFrame(b"heartbeat 1"),
        Report(
            LinkStatus(
                event="suspect",
                state=SUSPECT,
                detail="network fluctuation: nothing received for 12.0 s, probing",
                silent_for=12.0,
                client_id="c-1",
            )
        ),
    )


def test_a_short_wait_is_told_as_one_too():
    link = client(timeout_min=0.5, timeout_max=0.5)
    link.check(7.0, QUIET)
    link.check(7.5, QUIET)

    assert link.confirm(7.5, QUIET)[1].status.detail == "network fluctuation: no answer for 0.5 s, probing"


def test_bytes_that_arrive_again_are_told_and_then_the_answer():
    link = suspecting()
    told = LinkStatus(
        event="waiting",
        state=WAITING,
        detail="bytes arrive again, waiting for the answer",
        unanswered_for=5.0,
        rtt=1.0,
        level=1,
        client_id="alice",
    )

    assert link.heard(12.0) == (Report(told),)
    assert link.receive(b'{"type":"ping","id":2,"status":"pong"}', False, 12.0) == (
        Answered(5.0, None),
        Report(
            replace(
                told, event="acknowledged", state=ACKNOWLEDGED, detail="answered again", unanswered_for=2.0, rtt=5.0
            )
        ),
    )
    assert looks(link) == (ACKNOWLEDGED, 18.0, 1)


def test_a_watcher_that_hears_again_is_at_rest():
    link = server()
    link.check(12.0, QUIET)
    link.confirm(12.0, QUIET)

    (report,) = link.heard(13.0)

    assert (report.status.event, report.status.detail) == ("acknowledged", "answered again")
    assert looks(link) == (ACKNOWLEDGED, 25.0, 0)


def test_a_turn_in_which_something_was_read_changes_nothing():
    link = client()
    link.check(7.0, QUIET)
    link.check(10.0, QUIET)

    assert link.heard(10.0) == NOTHING
    assert link.confirm(10.0, QUIET) == NOTHING

    assert looks(link) == (WAITING, 10.0, 1)


def test_a_conviction_aborts_with_4000_and_tells_why():
    link = suspecting()
    link.check(13.0, QUIET)

    assert link.confirm(13.0, QUIET) == (
        Abort(4000, "silent"),
        Report(
            LinkStatus(
                event="dead",
                state=DEAD,
                detail="nothing received for 12.0 s, and the probe went unanswered",
                silent_for=12.0,
                rtt=1.0,
                level=1,
                client_id="alice",
                reason="silent",
            )
        ),
    )
    assert looks(link) == (DEAD, inf, 1)


def test_bytes_without_answers_are_told_once_they_convict():
    link = client(patience=10.0)
    link.check(7.0, QUIET)
    told = []

    while link.monitor.state is not DEAD:
        link.heard(link.next_at - 1)
        told += link.check(link.next_at, QUIET)

    assert told[:-2] == [b'{"type":"ping","id":%d}' % ping_id for ping_id in (3, 4, 5, 6)]
    assert told[-2] == Abort(4000, "no-pong")
    status = told[-1].status
    assert (status.event, status.detail) == ("dead", "bytes arrive, but no answer for 10 s")
    assert (status.busy, status.reason) == (True, "no-pong")


def test_after_a_conviction_nothing_that_arrives_or_comes_due_counts():
    link = suspecting()
    link.check(13.0, QUIET)
    link.confirm(13.0, QUIET)

    assert link.heard(14.0) == NOTHING
    assert link.pong(b"heartbeat 3", 14.0) == NOTHING
    assert link.check(1e9, QUIET) == NOTHING
    assert link.confirm(1e9, QUIET) == NOTHING
    assert link.woke(1e9, QUIET) == NOTHING

    assert looks(link) == (DEAD, inf, 1)


def test_after_a_sleep_the_probe_comes_first():
    link = client()

    (frame, report) = link.woke(5.0, QUIET)

    assert frame == b'{"type":"ping","id":2}'
    assert (report.status.event, report.status.detail) == (
        "suspect",
        "network fluctuation: nothing received for 4.0 s, probing",
    )
    assert looks(link) == (SUSPECT, 8.0, 1)


def test_bytes_of_our_own_put_a_deadline_off():
    link = client()
    link.check(7.0, Traffic(given=1000, written=0))

    assert link.check(10.0, Traffic(given=1020, written=500)) == NOTHING

    assert looks(link) == (WAITING, 10.2, 1)


def test_a_stall_of_ours_during_a_flight_leaves_its_time_out():
    running = RunningTime(0.2, 0.0)
    link = client(running)
    link.check(7.0, QUIET)

    running.at(100.0)

    assert link.receive(b'{"type":"ping","id":2,"status":"pong"}', False, 8.0) == (Answered(None, None),)


# While an opening is judged


def test_while_an_opening_is_judged_what_arrives_waits_and_nothing_comes_due():
    link = server()
    assert not link.is_judging

    assert says(link, LEVEL_1) == (Judge(Opening(None, None, None, None, None)),)
    assert link.is_judging

    assert says(link, b'{"type":"ping"}', b"hello", b'{"type":"onchat"}', LEVEL_1) == NOTHING
    assert looks(link) == (ACKNOWLEDGED, inf, 0)
    assert link.check(1e9, QUIET) == NOTHING
    assert link.is_judging


def test_what_waited_is_taken_in_its_order_after_the_answer():
    link = server()
    says(link, LEVEL_1)
    says(link, b'{"type":"ping","id":1}', b"hello", b'{"type":"ping","id":2}', b'{"type":"onchat"}', LEVEL_1)

    answer, joined, *frames, last = link.admitted(session(), 2.0)

    assert answer.startswith(b'{"type":"onopen","status":"ok"')
    assert joined == Joined("c-1")
    assert frames == [
        b'{"type":"ping","id":1,"status":"pong","clients":1,"ack":0}',
        b'{"type":"error","code":"bad-json","detail":"not JSON: JSON is malformed: invalid character (byte 0)"}',
        b'{"type":"ping","id":2,"status":"pong","clients":1,"ack":0}',
        Deliver({"type": "onchat"}),
    ]
    assert last == b'{"type":"error","code":"bad-message","detail":"this connection is open already","re":"onopen"}'
    assert (link.is_judging, looks(link)) == (False, (ACKNOWLEDGED, 14.0, 1))


def test_what_waited_behind_a_broken_rule_is_not_looked_at():
    running = session()
    link = server()
    says(link, LEVEL_1)
    says(
        link, b'{"type":"hello","seq":1}', b'{"type":"hello","seq":3}', b'{"type":"ping"}', b'{"type":"hello","seq":2}'
    )

    assert link.admitted(running, 2.0)[2:] == (Run(), Close(4010, "message 3 came after message 1"))

    assert numbers(running) == (0, 0, 1, 0, False)


def test_an_opening_that_waited_is_judged_in_its_turn_and_what_came_after_it_waits_again():
    link = ServerLink(
        Settings(),
        RunningTime(0.2, 0.0),
        0.0,
        presence=Presence(40.0, 75.0),
        client_id="c-1",
        plain="judge",
    )
    says(link, b'{"type":"ping","id":1}', LEVEL_1, b'{"type":"ping","id":2}')

    *_, judge = link.named("c-1", 2.0)
    assert (type(judge), link.is_judging) == (Judge, True)

    assert link.admitted(session(), 2.0)[-1] == b'{"type":"ping","id":2,"status":"pong","clients":1,"ack":0}'
    assert not link.is_judging


def test_bytes_and_a_sleep_are_noted_while_an_opening_is_judged():
    link = server()
    says(link, LEVEL_1)

    (probe, report) = link.woke(3.0, QUIET)
    assert (probe, report.status.event) == (PingFrame(b"heartbeat 1"), "suspect")
    (report,) = link.heard(4.0)
    assert report.status.event == "acknowledged"
    assert link.pong(b"heartbeat 1", 4.0) == (Answered(1.0, None),)

    assert looks(link) == (ACKNOWLEDGED, inf, 0)


def test_a_link_that_closes_while_its_opening_is_judged_answers_nothing_any_more():
    link = server()
    says(link, LEVEL_1, b'{"type":"ping"}')

    link.close(3.0, None)

    assert link.admitted(session(), 4.0) == NOTHING
    assert looks(link) == (ACKNOWLEDGED, inf, 0)


# Numbered messages


@pytest.mark.parametrize("make", [server_in, client_in])
def test_a_numbered_message_is_the_sessions_and_comes_as_it_was_sent(make):
    running = session()
    payload = b'{"type":"onchat","to":"bob","seq":1,"ack":0}'

    assert says(make(running), payload) == (Run(),)

    assert running.next() == Arrived(1, {"type": "onchat", "to": "bob"}, len(payload))
    assert numbers(running) == (0, 0, 1, 0, False)


@pytest.mark.parametrize("make", [server_in, client_in])
def test_a_numbered_message_behind_another_waits_as_it_came(make):
    """Decoded it may take twenty times as much."""
    running = session()
    first, second = b'{"type":"a","seq":1}', b'{"type":"b","seq":2}'
    says(make(running), first, second)

    assert running.next() == Arrived(1, {"type": "a"}, len(first))
    running.finished()
    assert running.next() == Arrived(2, second, len(second))


def test_an_error_may_be_numbered_too():
    running = session()

    assert says(client_in(running), b'{"type":"error","code":"failed","detail":"no","seq":1}') == (Run(),)

    assert running.next().message == {"type": "error", "code": "failed", "detail": "no"}


def test_a_numbered_message_says_what_its_end_has_handled():
    running = session(kept=3)
    link = server_in(running)

    assert says(link, b'{"type":"hello","seq":1,"ack":2}') == (Confirmed(2), Run())
    assert says(link, b'{"type":"hello","seq":2,"ack":2}') == (Run(),)

    assert numbers(running) == (3, 2, 2, 0, False)


def test_a_duplicate_is_nothing_but_what_it_says_of_ours_counts():
    running = session(kept=3)
    link = server_in(running)
    says(link, b'{"type":"hello","seq":1,"ack":0}')

    assert says(link, b'{"type":"hello","seq":1,"ack":0}') == NOTHING
    assert says(link, b'{"type":"hello","seq":1,"ack":3}') == (Confirmed(3),)

    assert numbers(running) == (3, 3, 1, 0, False)


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b'{"seq":1}', "a message has a type, and the type is text"),
        (b'{"type":7,"seq":1}', "a message has a type, and the type is text"),
        (b'{"type":["ping"],"seq":1}', "a message has a type, and the type is text"),
        (b'{"type":{"ack":1},"seq":1,"ack":0}', "a message has a type, and the type is text"),
    ],
)
def test_a_numbered_object_that_is_no_message_counts_and_waits_as_the_error_it_deserves(payload, error):
    running = session()

    assert says(server_in(running), payload) == (Run(),)

    arrived = running.next()
    assert (arrived.seq, arrived.message.code, arrived.message.detail) == (1, "bad-message", error)
    assert numbers(running) == (0, 0, 1, 0, False)


def test_a_message_of_a_type_that_nobody_knows_counts_like_any():
    running = session()

    assert says(server_in(running), b'{"type":"whatever","seq":1}') == (Run(),)

    assert running.next().message == {"type": "whatever"}


@pytest.mark.parametrize("ack", [b"-1", b"1.0", b'"1"', b"null", b"true", b"[1]", b"{}"])
def test_an_ack_that_is_no_number_confirms_nothing_and_the_message_counts(ack):
    running = session(kept=3)

    assert says(server_in(running), b'{"type":"hello","seq":1,"ack":%b}' % ack) == (Run(),)

    assert running.next().message == {"type": "hello"}
    assert numbers(running) == (3, 0, 1, 0, False)


@pytest.mark.parametrize("seq", [b"0", b"-1", b"1.0", b'"1"', b"null", b"true", b"[1]"])
def test_a_seq_that_is_no_number_is_refused_and_nothing_is_counted(seq):
    running = session(kept=3)

    (frame,) = says(server_in(running), b'{"type":"hello","id":"m1","seq":%b,"ack":3}' % seq)

    detail = b"seq must be a whole number from 1"
    assert frame == b'{"type":"error","code":"bad-message","detail":"%b","re":"m1"}' % detail
    assert numbers(running) == (3, 0, 0, 0, False)


@pytest.mark.parametrize("kind", [b"7", b'["hello"]', b"[" * 900 + b"]" * 900, b"1" + b"0" * 400])
def test_a_seq_that_is_no_number_in_an_object_that_is_no_message_is_refused_too(kind):
    (frame,) = says(server_in(session()), b'{"type":%b,"seq":0}' % kind)

    assert frame == b'{"type":"error","code":"bad-message","detail":"seq must be a whole number from 1"}'


@pytest.mark.parametrize("seq", [b"0", b"-1", b"1.0", b'"1"', b"null", b"true", b"[1]"])
@pytest.mark.parametrize("more", [b"", b',"id":"m1"', b',"ack":3', b',"re":"error","code":"bad-message"'])
def test_an_error_whose_seq_is_no_number_is_not_answered_as_no_error_is(seq, more):
    """Or two ends could go on about it for ever."""
    payload = b'{"type":"error","seq":%b%b}' % (seq, more)
    served, own = session(kept=3), session(kept=3)

    assert says(server_in(served), payload) == NOTHING
    assert [type(effect) for effect in says(client_in(own), payload)] == [Refused]

    assert numbers(served) == numbers(own) == (3, 0, 0, 0, False)


def test_an_error_that_has_waited_behind_an_opening_is_not_answered_either():
    link = server()
    says(link, LEVEL_1, b'{"type":"error","seq":0}', b'{"type":"hello","seq":0}')

    _, *after = link.admitted(session(), 3.0)

    detail = b"seq must be a whole number from 1"
    assert [effect for effect in after if type(effect) is bytes] == [
        b'{"type":"error","code":"bad-message","detail":"%b","re":"hello"}' % detail
    ]


def test_a_refusal_quotes_a_long_type_in_part_only():
    (frame,) = says(server_in(session()), b'{"type":"%b","seq":0}' % (b"x" * 10_000))

    assert frame.endswith(b'"re":"%b"}' % (b"x" * 64))


@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [
        (b'{"type":"hello","seq":3,"ack":2}', 4010, "message 3 came after message 1"),
        (b'{"type":"hello","seq":%d}' % 10**40, 4010, f"message {10**40} came after message 1"),
        (b'{"type":"hello","seq":2,"ack":4}', 4011, "ack 4 is above what was sent"),
        (b'{"type":"ping","ack":4}', 4011, "ack 4 is above what was sent"),
        (b'{"type":"ping","id":1,"status":"pong","ack":4}', 4011, "ack 4 is above what was sent"),
        (b'{"type":"ack","ack":4}', 4011, "ack 4 is above what was sent"),
    ],
)
@pytest.mark.parametrize("make", [server_in, client_in])
def test_a_broken_rule_closes_the_connection_and_nothing_more_is_looked_at(make, payload, code, reason):
    running = session(kept=3)
    link = make(running)
    says(link, b'{"type":"hello","seq":1,"ack":1}')

    assert says(link, payload) == (Close(code, reason),)

    confirmed, received = running.confirmed, running.received
    assert (confirmed, running.handled) == (1, 0)
    assert says(link, b'{"type":"hello","seq":2,"ack":3}', b'{"type":"ping"}', b"hello", LEVEL_1) == NOTHING
    assert (running.confirmed, running.received) == (confirmed, received)


def test_more_at_once_than_twice_what_a_session_keeps_closes_1008():
    running = session(messages=4)
    link = server_in(running)

    (*_, close) = says(link, *(b'{"type":"hello","seq":%d}' % seq for seq in range(1, 10)))

    assert close == Close(1008, "more than twice what limits.kept and limits.kept_bytes allow at once")
    assert numbers(running) == (0, 0, 8, 0, False)


def test_a_client_takes_all_that_its_server_sends():
    running = session(messages=4)
    link = client_in(running)

    assert says(link, *(b'{"type":"hello","seq":%d}' % seq for seq in range(1, 10))) == (Run(),) * 9

    assert numbers(running) == (0, 0, 9, 0, False)


def test_a_message_without_a_number_is_delivered_beside_the_session():
    running = session(kept=1)

    assert says(server_in(running), b'{"type":"onchat","ack":1}') == (Deliver({"type": "onchat", "ack": 1}),)

    assert numbers(running) == (1, 0, 0, 0, False)


def test_without_a_session_a_number_is_a_member_like_any():
    message = {"type": "onchat", "seq": 1, "ack": 7}

    assert says(server(), b'{"type":"onchat","seq":1,"ack":7}') == (Deliver(message),)
    assert says(client(), b'{"type":"onchat","seq":1,"ack":7}') == (Deliver(message),)


@pytest.mark.parametrize(
    ("payload", "effects"),
    [
        (b'{"type":"ping","seq":1}', (b'{"type":"ping","seq":1,"status":"pong","clients":1,"ack":0}',)),
        (b'{"type":"ack","seq":1,"ack":1}', (Confirmed(1),)),
        (b'{"type":"drain","seq":1}', NOTHING),
        (
            b'{"type":"onopen","seq":1}',
            (b'{"type":"error","code":"bad-message","detail":"this connection is open already","re":"onopen"}',),
        ),
    ],
)
def test_pings_acks_drains_and_openings_are_never_numbered_whatever_they_say(payload, effects):
    running = session(kept=3)

    assert says(server_in(running), payload) == effects

    assert (running.received, running.is_idle) == (0, True)


# What the other end has handled


@pytest.mark.parametrize("make", [server_in, client_in])
@pytest.mark.parametrize("payload", [b'{"type":"ack","ack":2}', b'{"type":"ping","status":"pong","id":99,"ack":2}'])
def test_an_ack_alone_or_in_a_pong_confirms_and_is_not_answered(make, payload):
    running = session(kept=3)
    link = make(running)

    assert says(link, payload) == (Confirmed(2),)
    assert says(link, payload) == NOTHING

    assert numbers(running) == (3, 2, 0, 0, False)


def test_a_pong_that_answers_a_ping_confirms_first():
    running = session(kept=3)
    link = client_in(running)
    link.check(7.0, QUIET)

    assert link.receive(b'{"type":"ping","id":2,"ack":2,"status":"pong","clients":3,"ack":3}', False, 7.5) == (
        Confirmed(3),
        Answered(0.5, 3),
    )


@pytest.mark.parametrize("make", [server_in, client_in])
def test_a_ping_confirms_and_its_answer_tells_what_was_handled(make):
    running = session(kept=3)
    link = make(running)
    says(link, b'{"type":"hello","seq":1}')
    handle(running, 1)

    confirmed, pong, *_ = says(link, b'{"type":"ping","id":9,"ack":2}')

    assert confirmed == Confirmed(2)
    assert pong.startswith(b'{"type":"ping","id":9,"status":"pong",')
    assert pong.endswith(b',"ack":1}')
    assert numbers(running) == (3, 2, 1, 1, False)


@pytest.mark.parametrize("make", [server_in, client_in])
@pytest.mark.parametrize("ack", [b"-1", b"1.0", b'"1"', b"null", b"true", b"[1]"])
def test_an_ack_that_is_no_number_is_neither_taken_nor_answered(make, ack):
    running = session(kept=3)
    link = make(running)

    assert says(link, b'{"type":"ack","ack":%b}' % ack, b'{"type":"ack"}') == NOTHING
    assert says(link, b'{"type":"ping","status":"pong","id":99,"ack":%b}' % ack) == NOTHING
    assert says(link, b'{"type":"ping","ack":%b}' % ack)[0].endswith(b',"ack":0}')

    assert numbers(running) == (3, 0, 0, 0, False)


@pytest.mark.parametrize("make", [server, client])
def test_without_a_session_an_ack_confirms_nothing_and_is_only_echoed(make):
    link = make()

    assert says(link, b'{"type":"ack","ack":5}') == NOTHING
    assert says(link, b'{"type":"ping","ack":5}')[0].startswith(b'{"type":"ping","ack":5,"status":"pong"')


@pytest.mark.parametrize("make", [server_in, client_in])
def test_a_ping_that_is_too_long_confirms_nothing_and_tells_nothing(make):
    running = session(kept=3)
    link = make(running)
    says(link, b'{"type":"hello","seq":1}')
    handle(running, 1)

    (refusal,) = says(link, b'{"type":"ping","id":9,"pad":"' + b"x" * 1024 + b'","ack":2}')

    assert type(refusal) in (bytes, Refused)
    assert numbers(running) == (3, 0, 1, 1, True)


@pytest.mark.parametrize("make", [server_in, client_in])
def test_however_deep_a_ping_is_nested_what_it_confirms_is_told(make):
    """Two libraries read it, one some levels deeper than the other, and the second may refuse it."""
    running = session(kept=2000)
    link = make(running, ping_limit=4096)
    told = 0

    for depth in range(1, 2001):
        ping = b'{"type":"ping","status":0,"d":' + b"[" * depth + b"]" * depth + b',"ack":%d}' % depth
        told = max([told, *(effect.upto for effect in says(link, ping) if type(effect) is Confirmed)])
        assert running.confirmed == told

    assert told > 100


# Ping frames


def test_the_pong_of_a_probe_is_its_answer():
    link = server()
    link.check(12.0, QUIET)
    link.confirm(12.0, QUIET)
    link.heard(12.5)

    assert link.pong(b"heartbeat 1", 12.5) == (Answered(0.5, None),)

    assert looks(link) == (ACKNOWLEDGED, 24.5, 0)


@pytest.mark.parametrize(
    "payload", [b"", b"heartbeat", b"heartbeat ", b"heartbeat 2", b"heartbeat x", b"heartbeat -1", b"1"]
)
def test_any_other_pong_is_nobodys_answer(payload):
    link = server()
    link.check(12.0, QUIET)
    link.confirm(12.0, QUIET)

    assert link.pong(payload, 12.5) == NOTHING

    assert looks(link) == (SUSPECT, 15.0, 0)


# The end


@pytest.mark.parametrize("code", [None, 1000, 1001])
@pytest.mark.parametrize(("make", "state"), [(client, ACKNOWLEDGED), (suspecting, SUSPECT)])
def test_on_a_closed_link_nothing_happens_any_more(make, state, code):
    link = make()

    assert link.close(2.0, code) == NOTHING
    assert link.close(3.0, code) == NOTHING

    assert link.receive(b'{"type":"ping"}', False, 3.0) == NOTHING
    assert link.heard(3.0) == NOTHING
    assert link.pong(b"heartbeat 1", 3.0) == NOTHING
    assert link.check(1e9, QUIET) == NOTHING
    assert link.confirm(1e9, QUIET) == NOTHING
    assert link.woke(1e9, QUIET) == NOTHING
    assert looks(link) == (state, inf, 1)
    assert link.monitor.next_at == inf


# What is known


def test_a_status_says_what_is_known_at_that_moment():
    link = client()
    link.check(7.0, QUIET)

    assert link.status("closed", 8.0, "the server is gone", code=1012) == LinkStatus(
        event="closed",
        state=WAITING,
        detail="the server is gone",
        silent_for=7.0,
        unanswered_for=1.0,
        rtt=1.0,
        busy=False,
        level=1,
        client_id="alice",
        clients=None,
        reason="",
        code=1012,
        attempt=None,
        delay=None,
    )


def test_a_status_before_any_round_trip_has_none():
    assert server().status("open", 0.0, "open").rtt is None


@pytest.mark.parametrize(
    "told",
    [
        LinkStatus(event="open", state=None, detail=""),
        PingFrame(b"heartbeat 1"),
        Abort(4000, "silent"),
        Turn(),
        Deliver({}),
        Run(),
        Confirmed(1),
        Close(4010, "message 3 came after message 1"),
        Judge(None),
        Opened(None),
        NotOurs(),
        Refused(PeerError("bad-json", "not JSON")),
        Report(LinkStatus(event="open", state=None, detail="")),
        Answered(None, None),
        Asked(),
        Joined("alice"),
        Left("alice"),
        Drain(0.0, 5.0),
    ],
)
def test_what_is_told_never_changes(told):
    assert told.__dataclass_params__.frozen
    assert not hasattr(told, "__dict__")


@pytest.mark.parametrize(
    ("message", "ping_id"),
    [({}, None), ({"id": None}, None), ({"id": 7}, 7), ({"id": "7"}, -1), ({"id": 7.0}, -1), ({"id": True}, -1)],
)
def test_the_id_of_a_pong_is_a_whole_number_or_none_of_ours(message, ping_id):
    assert ping_id_of(message) == ping_id


@pytest.mark.parametrize(("seconds", "wire"), [(0.1, 100), (6.0, 6000), (0.0004, 0), (0.29, 290)])
def test_seconds_are_whole_milliseconds_on_the_wire(seconds, wire):
    assert milliseconds(seconds) == wire
    assert type(milliseconds(seconds)) is int


@pytest.mark.parametrize("payload", [b"nonsense", b"[1]", b'{"type":7}', b'{"type":"ping","seq":0}', b"\xff"])
@pytest.mark.parametrize("binary", [False, True])
def test_a_refusal_leaves_nothing_for_the_garbage_collector(payload, binary):
    """Or a crowd that talks nonsense would have it walk through all that is there, again and again."""
    link = server_in(session())
    link.receive(payload, binary, 2.0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            link.receive(payload, binary, 2.0)
        left = gc.collect()
    finally:
        gc.enable()

    assert left == 0
