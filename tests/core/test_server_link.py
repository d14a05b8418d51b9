"""The server's end: answers, declares, knows how present its peer is, and never lets silence alone convict."""

import json
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat.core.link import (
    Abort,
    Answered,
    Close,
    Confirmed,
    Deliver,
    Joined,
    Judge,
    Left,
    NotOurs,
    PingFrame,
    Run,
    Turn,
)
from heartbeat.core.monitor import QUIET, State
from heartbeat.core.opening import Opening
from heartbeat.core.presence import Presence, Standing
from heartbeat.core.running import RunningTime
from heartbeat.core.server_link import ServerLink
from heartbeat.core.session import Bounds, Resume, Session
from heartbeat.core.settings import Settings

ACKNOWLEDGED, WAITING, SUSPECT, DEAD = State.ACKNOWLEDGED, State.WAITING, State.SUSPECT, State.DEAD

PING = b'{"type":"ping"}'
PONG = b'{"type":"ping","status":"pong","clients":1}'
LEVEL_0 = b'{"type":"onopen"}'


def session(client_id="c-1", *, kept=0, **numbers):
    """A session of this client's, in which so many messages were sent and none was confirmed."""
    numbers |= {"sent": kept, "kept": (b'{"type":"hello"}',) * kept}
    return Session("s-1", "e-1", client_id, Bounds(1000, 1_048_576), **numbers)


def server(presence=None, *, client_id="c-1", spread=0.0, guest=False, plain="allow", **settings):
    """A server's end, opened at 0."""
    return ServerLink(
        Settings(**settings),
        RunningTime(0.2, 0.0),
        0.0,
        presence=presence or Presence(40.0, 75.0),
        client_id=client_id,
        spread=spread,
        guest=guest,
        plain=plain,
    )


def level_1(**wishes):
    return json.dumps({"type": "onopen", "v": 1, **wishes}).encode()


def opens(link, now=0.0, who=None, **wishes):
    """Let a level-1 opening be judged, and be admitted as `who`, or as who it is anyway; what follows."""
    (judge,) = says(link, level_1(**wishes), now)
    assert type(judge) is Judge
    return link.admitted(session(who or link.client_id), now)


def opened(link, now=0.0, who=None, **wishes):
    """What the link declares in answer to a level-1 opening."""
    return json.loads(opens(link, now, who, **wishes)[0])


def says(link, payload, now):
    """What the link does when this frame arrives."""
    return link.heard(now) + link.receive(payload, False, now)


def looks(link):
    """The heartbeat's state, the standing of the connection, and when the link wants to be looked at."""
    return (link.monitor.state, link.standing, link.next_at)


def ask_in_vain(link):
    """Let the link's probe go out, as due."""
    assert link.check(link.next_at, QUIET) == (Turn(),)
    return link.confirm(link.monitor.heard_at + 12.0, QUIET)


def refused(detail, re):
    return (f'{{"type":"error","code":"bad-message","detail":"{detail}","re":"{re}"}}'.encode(),)


# A new connection


def test_an_open_websocket_is_reported_with_the_id_that_holds_until_another_is_claimed():
    (report,) = server().open(0.0)

    assert (report.status.event, report.status.state, report.status.client_id) == ("open", ACKNOWLEDGED, "c-1")
    assert report.status.detail == "open, c-1 until it says otherwise"


def test_a_new_connection_is_watched_and_has_not_joined():
    presence = Presence(40.0, 75.0)

    link = server(presence)

    assert looks(link) == (ACKNOWLEDGED, Standing.CONNECTED, 12.0)
    assert (link.level, link.client_id) == (0, "c-1")
    assert (presence.client_ids(), presence.active) == (("c-1",), 0)


def test_by_default_nobody_is_renamed_no_page_judged_no_ping_put_off_and_every_frame_ours():
    link = ServerLink(Settings(), RunningTime(0.2, 0.0), 0.0, presence=Presence(40.0, 75.0), client_id="c-1")

    assert says(link, PING, 0.0)[0] == PONG
    assert opened(link, beats="server", client_id="alice")["client_id"] == "c-1"

    assert link.next_at == 0.0
    assert link.receive(b"hello", False, 0.0)[0].startswith(b'{"type":"error","code":"bad-json"')


# Level 0


def test_the_first_ping_joins_and_is_answered_to_its_sender():
    link = server()

    assert says(link, PING, 5.0) == (PONG, Joined("c-1"))

    assert looks(link) == (ACKNOWLEDGED, Standing.ACTIVE, 17.0)


def test_later_pings_are_answered_and_join_nobody():
    link = server()
    says(link, PING, 5.0)

    assert says(link, b'{"type":"ping","id":2,"t":1e5}', 6.0) == (
        b'{"type":"ping","id":2,"t":1e5,"status":"pong","clients":1}',
    )

    assert looks(link) == (ACKNOWLEDGED, Standing.ACTIVE, 18.0)


def test_the_answer_counts_the_clients_that_are_active():
    presence = Presence(40.0, 75.0)
    says(server(presence, client_id="c-2"), PING, 0.0)
    server(presence, client_id="c-3")

    assert says(server(presence), PING, 0.0)[0] == b'{"type":"ping","status":"pong","clients":2}'


def test_every_answer_counts_those_who_are_active_on_other_servers_too():
    presence = Presence(40.0, 75.0)
    presence.counted_elsewhere(5)
    link = server(presence)

    assert json.loads(says(link, LEVEL_0, 0.0)[0])["clients"] == 6
    assert says(link, PING, 0.0) == (b'{"type":"ping","status":"pong","clients":6}',)
    presence.counted_elsewhere(6)
    assert link.beat(PING, 1.0) == b'{"type":"ping","status":"pong","clients":7}'
    assert opened(link, 2.0)["clients"] == 7
    assert says(link, PING, 3.0) == (b'{"type":"ping","status":"pong","clients":7,"ack":0}',)
    assert link.beat(PING, 4.0) == b'{"type":"ping","status":"pong","clients":7,"ack":0}'


def test_a_plain_opening_joins_and_is_told_the_interval():
    link = server(interval=5.0)

    assert says(link, LEVEL_0, 1.0) == (
        b'{"type":"onopen","status":"ok","client_id":"c-1","interval_ms":5000,"clients":1}',
        Joined("c-1"),
    )

    assert link.level == 0
    assert looks(link) == (ACKNOWLEDGED, Standing.ACTIVE, 12.0)


def test_a_plain_opening_may_be_repeated():
    link = server()
    says(link, LEVEL_0, 1.0)

    assert says(link, LEVEL_0, 2.0) == (
        b'{"type":"onopen","status":"ok","client_id":"c-1","interval_ms":6000,"clients":1}',
    )


def test_a_ping_of_the_limit_is_answered_and_a_longer_one_refused():
    link = server(ping_limit=64)
    longest = b'{"type":"ping","id":7,"pad":"' + b"x" * 33 + b'"}'
    assert len(longest) == 64

    assert says(link, longest, 1.0)[0] == longest[:-1] + b',"status":"pong","clients":1}'
    assert says(link, longest + b" ", 2.0) == (
        b'{"type":"error","code":"too-big","detail":"a ping is at most 64 bytes","re":7}',
    )


# Level 1


def test_a_level_1_opening_joins_and_is_told_all_that_holds():
    link = server()
    declaration = (
        b'{"type":"onopen","status":"ok","client_id":"c-1","interval_ms":6000,"clients":1,"v":1,'
        b'"sid":"s-1","epoch":"e-1","resumed":false,"last":0,"sent":0,"window_ms":120000,"beats":"client",'
        b'"watch_ms":12000,"timeout_ms":[3000,6000],"probe_ms":3000,'
        b'"limits":{"message":65536,"ping":1024,"kept":1000,"kept_bytes":1048576}}'
    )

    assert opens(link, 1.0) == (declaration, Joined("c-1"))

    assert link.level == 1
    assert (link.session.sid, link.is_judging, link.spoke) == ("s-1", False, False)
    assert looks(link) == (ACKNOWLEDGED, Standing.ACTIVE, 13.0)


@pytest.mark.parametrize(
    ("settings", "wish", "granted"),
    [
        ({}, {}, "client"),
        ({}, {"beats": None}, "client"),
        ({}, {"beats": "client"}, "client"),
        ({}, {"beats": "server"}, "server"),
        ({}, {"beats": "both"}, "both"),
        ({}, {"beats": "none"}, "none"),
        ({"beats": "both"}, {"beats": "client"}, "both"),
        ({"beats": "none"}, {}, "none"),
    ],
)
def test_a_wish_for_beats_is_granted_unless_the_server_was_started_with_its_own(settings, wish, granted):
    link = server(**settings)

    assert opened(link, **wish)["beats"] == granted

    assert link.monitor.pings is (granted in ("server", "both"))
    assert link.monitor.watches is (granted in ("client", "none"))


@pytest.mark.parametrize(
    ("wish", "interval", "watch"),
    [
        (0.5, 2000, 8000),
        (1000, 2000, 8000),
        (2500.5, 2500, 8500),
        (9000, 9000, 15_000),
        (60_000, 10_000, 16_000),
        (10**400, 10_000, 16_000),
    ],
)
def test_a_wish_for_an_interval_is_granted_within_the_servers_bounds(wish, interval, watch):
    link = server(interval_min=2.0, interval_max=10.0)

    declared = opened(link, interval_ms=wish)

    assert (declared["interval_ms"], declared["watch_ms"]) == (interval, watch)
    assert link.monitor.timing.watch == pytest.approx(watch / 1000, abs=0.001)


def test_a_higher_version_is_answered_with_ours():
    assert opened(server(), v=7)["v"] == 1


def test_an_opening_is_judged_by_all_that_it_asks_for():
    resume = {"sid": "s-1", "epoch": "e-1", "last": 41, "sent": 17, "try": 2}
    link = server()

    assert says(
        link,
        level_1(beats="both", interval_ms=2500, client_id="alice", token="secret", session=resume),  # nobody's
        1.0,
    ) == (Judge(Opening("both", 2.5, "alice", "secret", Resume("s-1", "e-1", 41, 17, 2))),)

    assert (link.level, link.session, link.client_id) == (0, None, "c-1")
    assert looks(link) == (ACKNOWLEDGED, Standing.CONNECTED, inf)


@pytest.mark.parametrize("wish", [None, {"sid": "s", "epoch": "e", "last": 0, "sent": 0, "try": 0}])
def test_a_session_may_be_asked_for(wish):
    assert opened(server(), session=wish)["status"] == "ok"


@pytest.mark.parametrize(
    ("wish", "detail"),
    [
        ({"v": 0}, "v must be a whole number from 1"),
        ({"v": 1.0}, "v must be a whole number from 1"),
        ({"v": "1"}, "v must be a whole number from 1"),
        ({"v": True}, "v must be a whole number from 1"),
        ({"beats": "all"}, "beats must be one of client, server, both, none"),
        ({"beats": ["client"]}, "beats must be one of client, server, both, none"),
        ({"interval_ms": 0}, "interval_ms must be a number above 0"),
        ({"interval_ms": -1}, "interval_ms must be a number above 0"),
        ({"interval_ms": "6000"}, "interval_ms must be a number above 0"),
        ({"interval_ms": True}, "interval_ms must be a number above 0"),
        ({"client_id": ""}, "client_id must be 1 to 64 visible ASCII characters"),
        ({"client_id": 7}, "client_id must be 1 to 64 visible ASCII characters"),
        ({"session": "s"}, "session must be null or an object"),
        ({"session": {}}, "session.sid and session.epoch must be 1 to 128 printable characters"),
        (
            {"session": {"sid": "s", "epoch": "e"}},
            "session.last, session.sent and session.try must be whole numbers from 0",
        ),
        ({"token": 7}, "token must be text"),
    ],
)
def test_an_opening_that_is_wrong_is_refused_and_nothing_has_changed(wish, detail):
    link = server()

    assert says(link, level_1(**wish), 1.0) == refused(detail, "onopen")

    assert (link.level, link.client_id, link.is_judging) == (0, "c-1", False)
    assert looks(link) == (ACKNOWLEDGED, Standing.CONNECTED, 13.0)


@pytest.mark.parametrize("again", [level_1(), LEVEL_0])
def test_a_level_1_opening_fixes_the_identity_and_the_level(again):
    link = server()
    opened(link, who="alice")

    assert says(link, again, 1.0) == refused("this connection is open already", "onopen")

    assert (link.level, link.client_id) == (1, "alice")


def test_a_page_that_opened_plainly_may_open_at_level_1_later():
    link = server()
    says(link, LEVEL_0, 1.0)

    (frame,) = opens(link, 2.0)

    assert json.loads(frame)["v"] == 1
    assert link.level == 1


# Identity


def test_who_is_admitted_is_whose_the_session_is():
    presence = Presence(40.0, 75.0)
    link = server(presence)

    frame, joined = opens(link, 1.0, who="alice", client_id="alice")

    assert json.loads(frame)["client_id"] == "alice"
    assert (link.client_id, joined) == ("alice", Joined("alice"))
    assert (presence.client_ids(), presence.connections) == (("alice",), 1)


@pytest.mark.parametrize("claimed", ["alice", "c-2", None])
def test_a_claim_alone_changes_nothing_where_the_session_is_of_the_given_id(claimed):
    link = server()

    assert opened(link, client_id=claimed)["client_id"] == "c-1"

    assert link.client_id == "c-1"


def test_who_joined_under_a_given_id_leaves_it_for_the_claimed_one():
    presence = Presence(40.0, 75.0)
    link = server(presence)
    says(link, PING, 1.0)

    _, *told = opens(link, 2.0, who="alice", client_id="alice")

    assert told == [Left("c-1"), Joined("alice")]
    assert (presence.client_ids(), presence.active) == (("alice",), 1)


def test_of_two_connections_of_one_client_only_the_first_joins():
    presence = Presence(40.0, 75.0)
    opened(server(presence), who="alice")

    assert len(opens(server(presence, client_id="c-2"), 1.0, who="alice")) == 1

    assert (presence.active, presence.connections) == (1, 2)


def test_who_is_renamed_while_it_was_never_heard_of_leaves_no_trace():
    presence = Presence(40.0, 75.0)
    link = server(presence)

    assert opens(link, 1.0, who="alice")[1:] == (Joined("alice"),)
    assert link.close(2.0, 1000) == (Left("alice"),)

    assert presence.client_ids() == ()


# Sessions


def test_a_resumed_session_is_declared_with_what_was_handled_and_sent():
    running = session("alice", kept=4, handled=7)
    running.take(8, {"type": "hello"}, 16)
    running.next()
    running.finished()
    link = server(window=60.0)
    says(link, level_1(), 1.0)

    frame, joined = link.admitted(running, 1.0, resumed=True)

    declared = json.loads(frame)
    assert (declared["resumed"], declared["last"], declared["sent"]) == (True, 8, 4)
    assert (declared["client_id"], declared["window_ms"], "reason" in declared) == ("alice", 60_000, False)
    assert (joined, link.session, running.owes) == (Joined("alice"), running, False)


def test_a_session_that_is_new_because_another_was_not_resumed_is_declared_with_the_reason():
    link = server()
    says(link, level_1(), 1.0)

    declared = json.loads(link.admitted(session(), 1.0, reason="expired")[0])

    assert (declared["resumed"], declared["reason"], declared["last"], declared["sent"]) == (False, "expired", 0, 0)


def test_the_bounds_of_the_session_are_declared():
    link = server()
    says(link, level_1(), 1.0)

    declared = json.loads(link.admitted(Session("s-1", "e-1", "c-1", Bounds(7, 5000)), 1.0)[0])

    assert declared["limits"] == {"message": 65_536, "ping": 1024, "kept": 7, "kept_bytes": 5000}


def test_an_opening_is_admitted_once():
    link = server()
    opens(link)

    assert link.admitted(session("alice"), 1.0) == ()

    assert (link.client_id, link.session.client_id) == ("c-1", "c-1")


def test_who_asked_for_nothing_is_not_admitted():
    link = server()

    assert link.admitted(session("alice"), 1.0) == ()

    assert (link.level, link.session, link.client_id) == (0, None, "c-1")


def test_in_a_session_a_ping_is_answered_with_what_we_have_handled_instead_of_what_it_has():
    link = server()
    says(link, level_1(), 0.0)
    running = session(kept=3)
    link.admitted(running, 0.0)
    says(link, b'{"type":"hello","seq":1}', 1.0)
    running.next()
    running.finished()

    assert says(link, b'{"type":"ping","id":1,"ack":2}', 1.0) == (
        Confirmed(2),
        b'{"type":"ping","id":1,"status":"pong","clients":1,"ack":1}',
    )
    assert says(link, b'{"ack":2,"type":"ping","id":2}', 1.0) == (
        b'{"type":"ping","id":2,"status":"pong","clients":1,"ack":1}',
    )

    assert (running.confirmed, running.owes) == (2, False)


@pytest.mark.parametrize(
    ("payload", "spoke"),
    [(None, False), (PING, True), (b'{"type":"ack","ack":0}', True), (b"hello", True), (level_1(), True)],
)
def test_a_session_was_used_if_anything_at_all_arrived_after_its_opening(payload, spoke):
    link = server()
    says(link, PING, 0.0)
    opens(link)
    link.heard(1.0)
    link.pong(b"heartbeat 1", 1.0)

    if payload is not None:
        says(link, payload, 1.0)

    assert link.spoke is spoke


def test_what_waited_behind_the_opening_counts_as_use():
    link = server()
    says(link, level_1(), 0.0)
    says(link, PING, 0.0)
    assert not link.spoke

    link.admitted(session(), 1.0)

    assert link.spoke


# Refusals


def test_who_is_refused_is_closed_and_not_listened_to():
    presence = Presence(40.0, 75.0)
    link = server(presence)
    says(link, level_1(), 1.0)
    says(link, PING, 1.0)

    assert link.refused(4401, "not authorized") == (Close(4401, "not authorized"),)

    assert says(link, PING, 2.0) == ()
    assert says(link, level_1(), 2.0) == ()
    assert link.admitted(session("alice"), 2.0) == ()
    assert link.named("alice", 2.0) == ()
    assert link.refused(4401, "again") == ()
    assert (link.level, link.session, link.client_id, link.is_judging) == (0, None, "c-1", False)
    assert (presence.client_ids(), presence.active) == (("c-1",), 0)


def test_whoever_has_gone_is_neither_admitted_nor_named_nor_refused():
    presence = Presence(40.0, 75.0)
    link = server(presence, plain="judge")
    says(link, level_1(), 1.0)
    link.close(2.0, None)

    assert link.admitted(session("alice"), 3.0) == ()
    assert link.named("alice", 3.0) == ()
    assert link.refused(4401, "not authorized") == ()

    assert (link.level, link.session, link.next_at) == (0, None, inf)
    assert presence.client_ids() == ()


# Pages that open no session


@pytest.mark.parametrize(
    "payload", [PING, LEVEL_0, b"hello", b"[]", b'{"type":"onchat"}', b'{"type":"onopen","v":null}']
)
def test_where_pages_without_a_session_are_refused_their_first_word_is_their_last(payload):
    link = server(plain="refuse")
    sentence = "clients without a session are not served here (setting level0)"

    assert says(link, payload, 1.0) == (Close(4401, sentence),)

    assert says(link, level_1(), 1.0) == ()
    assert (link.level, link.is_judging) == (0, False)


@pytest.mark.parametrize("plain", ["refuse", "judge"])
def test_whatever_becomes_of_such_pages_an_opening_of_a_session_is_judged(plain):
    link = server(plain=plain)

    (judge,) = says(link, level_1(client_id="alice"), 1.0)
    assert judge.opening.claimed == "alice"
    link.admitted(session("alice"), 1.0)

    assert says(link, PING, 2.0) == (b'{"type":"ping","status":"pong","clients":1,"ack":0}',)


@pytest.mark.parametrize("plain", ["refuse", "judge"])
def test_whatever_becomes_of_such_pages_an_opening_that_is_wrong_may_be_mended(plain):
    link = server(plain=plain)

    assert says(link, level_1(v=0), 1.0) == refused("v must be a whole number from 1", "onopen")

    assert opened(link, 2.0)["v"] == 1


@pytest.mark.parametrize("plain", ["refuse", "judge"])
def test_as_a_guest_what_is_the_hosts_is_neither_refused_nor_judged(plain):
    link = server(plain=plain, guest=True)

    assert says(link, b"hello", 1.0) == (NotOurs(),)
    assert says(link, b'{"type":"onchat"}', 1.0) == (NotOurs(),)

    assert type(says(link, PING, 1.0)[0]) is (Close if plain == "refuse" else Judge)


@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        (PING, (PONG, Joined("alice"))),
        (
            LEVEL_0,
            (
                b'{"type":"onopen","status":"ok","client_id":"alice","interval_ms":6000,"clients":1}',
                Joined("alice"),
            ),
        ),
        (b'{"type":"onchat"}', (Deliver({"type": "onchat"}),)),
        (b"[]", (b'{"type":"error","code":"bad-message","detail":"a message is a JSON object"}',)),
    ],
)
def test_where_it_is_judged_who_a_page_is_its_first_word_waits_for_its_name(payload, answer):
    presence = Presence(40.0, 75.0)
    link = server(presence, plain="judge")

    assert says(link, payload, 1.0) == (Judge(None),)
    assert (link.is_judging, looks(link)) == (True, (ACKNOWLEDGED, Standing.CONNECTED, inf))
    assert link.check(1e9, QUIET) == ()

    assert link.named("alice", 2.0) == answer
    assert (link.is_judging, link.client_id, presence.client_ids()) == (False, "alice", ("alice",))


def test_what_arrives_while_a_page_is_judged_is_answered_in_its_order():
    link = server(plain="judge")
    says(link, b'{"type":"ping","id":1}', 1.0)
    says(link, b'{"type":"ping","id":2}', 1.0)
    says(link, b"[]", 1.0)
    says(link, b'{"type":"ping","id":3}', 1.0)

    assert link.named("c-1", 2.0) == (
        b'{"type":"ping","id":1,"status":"pong","clients":1}',
        Joined("c-1"),
        b'{"type":"ping","id":2,"status":"pong","clients":1}',
        b'{"type":"error","code":"bad-message","detail":"a message is a JSON object"}',
        b'{"type":"ping","id":3,"status":"pong","clients":1}',
    )


def test_a_page_is_judged_once():
    link = server(plain="judge")
    says(link, PING, 1.0)
    link.named("alice", 1.0)

    assert says(link, PING, 2.0) == (PONG,)
    assert says(link, b"[]", 2.0)[0].startswith(b'{"type":"error"')


def test_a_page_may_be_sent_away_by_the_judgement():
    link = server(plain="judge")
    says(link, PING, 1.0)

    assert link.refused(4401, "not authorized") == (Close(4401, "not authorized"),)

    assert says(link, PING, 2.0) == ()
    assert not link.is_judging


def test_an_opening_that_waited_behind_a_pages_first_word_is_judged_in_its_turn():
    """And what came after it waits again: every other answer waits behind that of an opening."""
    running = session("alice")
    link = server(plain="judge")
    says(link, b'{"type":"ping","id":1}', 1.0)
    says(link, level_1(client_id="alice"), 1.0)
    says(link, b'{"type":"ping","id":2}', 1.0)
    says(link, b'{"type":"hello","seq":1}', 1.0)

    pong, joined, judge = link.named("c-1", 2.0)

    assert (pong, joined) == (b'{"type":"ping","id":1,"status":"pong","clients":1}', Joined("c-1"))
    assert (judge.opening.claimed, link.is_judging) == ("alice", True)
    declaration, *told = link.admitted(running, 3.0)
    assert json.loads(declaration)["client_id"] == "alice"
    assert told == [
        Left("c-1"),
        Joined("alice"),
        b'{"type":"ping","id":2,"status":"pong","clients":1,"ack":0}',
        Run(),
    ]
    assert (link.is_judging, running.received) == (False, 1)


# A server that pings


@pytest.mark.parametrize(("spread", "first"), [(0.0, 1.0), (0.5, 4.0), (0.75, 5.5)])
def test_a_servers_first_ping_comes_at_a_random_part_of_the_interval(spread, first):
    link = server(spread=spread)
    opened(link, 1.0, beats="server")

    assert link.next_at == first
    assert link.check(first, QUIET) == (b'{"type":"ping","id":1,"ack":0}',)
    assert looks(link) == (WAITING, Standing.ACTIVE, min(first + 6.0, 13.0))


def test_a_pong_of_the_clients_keeps_it_active():
    link = server()
    opened(link, beats="server")
    link.check(0.0, QUIET)

    assert says(link, b'{"type":"ping","id":1,"status":"pong"}', 1.0) == (Answered(1.0, None),)

    assert looks(link) == (ACKNOWLEDGED, Standing.ACTIVE, 7.0)
    link.check(7.0, QUIET)
    assert link.next_at == 10.0
    assert link._active_until == 13.0


@pytest.mark.parametrize(
    "pong",
    [
        b'{"type":"ping","id":9,"status":"pong"}',
        b'{"type":"ping","status":"pong"}',
        b'{"type":"ping","id":"1","status":"pong"}',
    ],
)
def test_a_pong_to_no_ping_of_ours_is_neither_answered_nor_a_sign_of_life(pong):
    link = server()

    assert says(link, pong, 1.0) == ()

    assert looks(link) == (ACKNOWLEDGED, Standing.CONNECTED, 13.0)


def test_a_pong_is_never_answered_and_counts_however_long_it_is():
    link = server(ping_limit=64)
    opened(link, beats="server")
    link.check(0.0, QUIET)
    pong = b'{"type":"ping","id":%d,"status":"pong","pad":"' + b"x" * 64 + b'"}'

    assert says(link, pong % 9, 1.0) == ()
    assert says(link, pong % 1, 1.0) == (Answered(1.0, None),)

    assert looks(link) == (ACKNOWLEDGED, Standing.ACTIVE, 7.0)


def test_both_a_ping_of_the_clients_puts_ours_off():
    link = server(spread=0.5)
    opened(link, beats="both")
    assert link.next_at == 3.0

    says(link, PING, 2.0)

    assert link.next_at == 8.0


# How present the peer is


def test_who_has_not_pinged_for_the_watch_is_only_connected():
    link = server()
    says(link, PING, 1.0)
    link.heard(10.0)
    assert looks(link) == (ACKNOWLEDGED, Standing.ACTIVE, 13.0)

    assert link.check(13.0, QUIET) == ()

    assert looks(link) == (ACKNOWLEDGED, Standing.CONNECTED, 22.0)


def test_who_is_silent_for_the_watch_is_suspect_and_probed_before_anything_else():
    presence = Presence(40.0, 75.0)
    link = server(presence)
    says(link, PING, 1.0)

    probe, report = ask_in_vain(link)

    assert (probe, report.status.event) == (PingFrame(b"heartbeat 1"), "suspect")
    assert looks(link) == (SUSPECT, Standing.SUSPECT, 16.0)
    assert presence.active == 0


def test_who_answers_the_probe_but_does_not_ping_is_away():
    """The browser answers for its page, whose timers are throttled."""
    link = server()
    says(link, PING, 1.0)
    ask_in_vain(link)

    (report,) = link.heard(14.0)
    assert report.status.event == "acknowledged"
    assert looks(link) == (ACKNOWLEDGED, Standing.CONNECTED, 26.0)

    assert link.pong(b"heartbeat 1", 14.0) == (Answered(1.0, None),)
    assert looks(link) == (ACKNOWLEDGED, Standing.AWAY, 26.0)


def test_who_never_pinged_is_not_away_but_connected():
    link = server()
    ask_in_vain(link)
    link.heard(13.0)

    link.pong(b"heartbeat 1", 13.0)

    assert looks(link) == (ACKNOWLEDGED, Standing.CONNECTED, 25.0)


def test_who_answers_the_probe_while_active_stays_active():
    link = server()
    says(link, PING, 1.0)
    assert link.woke(5.0, QUIET)[0] == PingFrame(b"heartbeat 1")
    assert link.standing is Standing.SUSPECT

    link.heard(6.0)
    link.pong(b"heartbeat 1", 6.0)

    assert looks(link) == (ACKNOWLEDGED, Standing.ACTIVE, 13.0)


def test_a_pong_that_is_none_of_ours_makes_nobody_away():
    link = server()
    says(link, PING, 1.0)
    link.heard(12.0)
    link.check(13.0, QUIET)

    assert link.pong(b"heartbeat 1", 13.0) == ()

    assert link.standing is Standing.CONNECTED


def test_who_says_so_is_away_until_two_pings_come_within_the_watch():
    link = server()
    said = []

    for payload, now in [
        (b'{"type":"ping","away":true}', 1.0),
        (PING, 60.0),
        (PING, 73.0),
        (b'{"type":"ping","away":1}', 85.0),
    ]:
        says(link, payload, now)
        said.append(link.standing)

    assert said == [Standing.AWAY, Standing.AWAY, Standing.AWAY, Standing.ACTIVE]


def test_a_hidden_tab_that_pings_once_a_minute_stays_away():
    link = server()
    says(link, PING, 0.0)
    said = []

    for minute in (60.0, 120.0, 180.0):
        link.heard(minute - 13.0)
        link.check(minute - 1.0, QUIET)
        link.confirm(minute - 1.0, QUIET)
        link.heard(minute - 0.5)
        link.pong(b"heartbeat %d" % (minute / 60), minute - 0.5)
        said.append(link.standing)
        says(link, PING, minute)
        said.append(link.standing)

    assert said == [Standing.AWAY] * 6


def test_who_is_away_is_so_for_as_long_as_its_end_answers():
    link = server()
    says(link, b'{"type":"ping","away":true}', 1.0)

    assert looks(link) == (ACKNOWLEDGED, Standing.AWAY, 13.0)


# The end


def test_a_peer_that_answers_nothing_is_convicted_after_its_probe():
    link = server()
    says(link, PING, 1.0)
    ask_in_vain(link)

    assert link.check(16.0, QUIET) == (Turn(),)
    abort, report = link.confirm(16.0, QUIET)

    assert (abort, report.status.event) == (Abort(4000, "silent"), "dead")
    assert looks(link) == (DEAD, Standing.SUSPECT, inf)


@pytest.mark.parametrize(
    ("level", "code", "at_once"),
    [(0, None, False), (0, 1000, True), (0, 1001, True), (1, None, False), (1, 1000, True), (1, 1001, False)],
)
def test_a_leave_is_announced_at_once_or_after_the_grace(level, code, at_once):
    """At level 0 any close frame is the end; a session ends by 1000 only, all else is an absence."""
    presence = Presence(40.0, 75.0)
    link = server(presence)
    if level:
        opens(link)
    else:
        says(link, LEVEL_0, 0.0)

    assert link.close(10.0, code) == ((Left("c-1"),) if at_once else ())

    assert link.next_at == inf
    assert presence.standing_of("c-1") is (None if at_once else Standing.DETACHED)
    assert presence.expire(50.0) == ([] if at_once else ["c-1"])


def test_who_never_joined_leaves_without_a_word():
    presence = Presence(40.0, 75.0)

    assert server(presence).close(1.0, None) == ()

    assert presence.client_ids() == ()


def test_a_connection_closes_once():
    presence = Presence(40.0, 75.0)
    link = server(presence)
    says(link, PING, 0.0)

    assert link.close(1.0, 1000) == (Left("c-1"),)
    assert link.close(1.0, 1000) == ()

    assert presence.connections == 0


# An ordinary ping, in one call


def slots(thing, *left_out):
    """All that something with slots knows, but for what is left out."""
    names = [name for base in type(thing).__mro__ for name in getattr(base, "__slots__", ())]
    return {name: getattr(thing, name) for name in names if name not in left_out}


def everything(link, presence):
    """All that a server's end knows, of its session and of who is there."""
    found = slots(link, "settings", "monitor", "session", "_running", "_presence", "_connection")
    # Errors are equal if they say the same.
    found["_held"] = repr(link._held)
    found["monitor"] = slots(link.monitor, "rtt")
    found["rtt"] = None if link.monitor.rtt is None else slots(link.monitor.rtt)
    if link.session is not None:
        found["session"] = slots(link.session, "bounds")
    counts = [presence.count(standing) for standing in Standing]
    return found | {
        "standing": link.standing,
        "counts": counts,
        "there": presence.client_ids(),
        "active": presence.active,
    }


def beating(presence=None, *, level=0, now=0.0, wishes=(), **options):
    """An end whose client has pinged, after it opened at this level."""
    link = server(presence, **options)
    if level:
        opens(link, now, **dict(wishes))
    says(link, PING, now)
    return link


ORDINARY = {
    "nothing besides": PING,
    "an id and a time": b'{"type":"ping","id":17,"t":1763900000123.25}',
    "members before the type": b'{"id":17,"type":"ping"}',
    "spaces": b' { "type" : "ping" , "id" : 1 } \n',
    "escapes": rb'{"\u0074ype":"ping","s":"\u00e9\ud83d\ude00\/"}',
    "something nested": b'{"type":"ping","p":{"type":"x","q":[{"status":"pong"},{"away":true}]}}',
    "a member twice": b'{"type":"x","n":1,"n":2,"type":"ping"}',
    "a count of its own": b'{"type":"ping","clients":99}',
    "a number beyond 64 bits": b'{"type":"ping","n":12345678901234567890123}',
    "the longest": b'{"type":"ping","pad":"%b"}' % (b"x" * 1000),
}


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("ping", ORDINARY.values(), ids=ORDINARY)
def test_an_ordinary_ping_is_answered_in_one_call_and_leaves_behind_what_two_would(ping, level):
    one, two = Presence(40.0, 75.0), Presence(40.0, 75.0)
    quick, plain = beating(one, level=level), beating(two, level=level)

    assert (quick.beat(ping, 4.0),) == says(plain, ping, 4.0)

    assert everything(quick, one) == everything(plain, two)
    assert looks(quick) == (ACKNOWLEDGED, Standing.ACTIVE, 16.0)


@pytest.mark.parametrize(
    ("ack", "answered"),
    [
        (b"2", True),
        (b"2.0", True),
        (b"1", False),
        (b"3", False),
        (b"4", False),
        (b"null", False),
        (b'"2"', False),
        (b"true", False),
        (b"[2]", False),
    ],
)
def test_in_a_session_a_ping_is_ordinary_if_it_confirms_nothing_new(ack, answered):
    links = []
    for _ in "ab":
        presence = Presence(40.0, 75.0)
        link = server(presence)
        says(link, level_1(), 0.0)
        link.admitted(session(kept=3), 0.0)
        says(link, b'{"type":"hello","seq":1}', 0.0)
        link.session.next()
        link.session.finished()
        says(link, b'{"type":"ping","ack":2}', 0.0)
        says(link, b'{"type":"hello","seq":2}', 0.0)
        link.session.next()
        link.session.finished()
        links.append((link, presence))
    (quick, one), (plain, two) = links
    ping = b'{"type":"ping","id":1,"ack":%b}' % ack

    answer = quick.beat(ping, 4.0)

    assert (answer is not None) is answered
    if answered:
        assert (answer,) == says(plain, ping, 4.0)
        assert answer == b'{"type":"ping","id":1,"status":"pong","clients":1,"ack":2}'
    assert everything(quick, one) == everything(plain, two)


def test_a_ping_that_says_true_where_one_was_confirmed_confirms_nothing_either():
    """Python takes True for 1; so does the answer, and the other way it is no number at all."""
    one, two = Presence(40.0, 75.0), Presence(40.0, 75.0)
    quick, plain = server(one), server(two)
    for link in (quick, plain):
        says(link, level_1(), 0.0)
        link.admitted(session(kept=2), 0.0)
        says(link, b'{"type":"ping","ack":1}', 0.0)
    ping = b'{"type":"ping","ack":true}'

    assert (quick.beat(ping, 1.0),) == says(plain, ping, 1.0)

    assert everything(quick, one) == everything(plain, two)


@pytest.mark.parametrize("ack", [b"0", b"5", b"null"])
def test_without_a_session_an_ack_is_a_member_like_any_other(ack):
    ping = b'{"type":"ping","ack":%b}' % ack

    assert beating().beat(ping, 1.0) == ping[:-1] + b',"status":"pong","clients":1}'


def test_in_a_session_an_ordinary_ping_counts_as_use_and_tells_what_was_handled():
    link = server()
    says(link, level_1(), 0.0)
    running = session()
    link.admitted(running, 0.0)
    running.take(1, {"type": "hello"}, 16)
    running.next()
    running.finished()
    assert (link.spoke, running.owes) == (False, True)

    assert link.beat(PING, 1.0) == b'{"type":"ping","status":"pong","clients":1,"ack":1}'

    assert (link.spoke, running.owes) == (True, False)


def test_an_ordinary_ping_puts_off_that_of_a_server_that_pings_too():
    link = beating(level=1, wishes={"beats": "both"}, spread=0.5)
    assert link.next_at == 6.0

    link.beat(PING, 2.0)

    assert link.next_at == 8.0


NOT_ORDINARY = {
    "nothing": b"",
    "no JSON": b"hello",
    "half an object": b'{"type":"ping"',
    "no UTF-8": b'{"type":"ping","s":"\xff"}',
    "a lone surrogate, which the fast library refuses": rb'{"type":"ping","s":"\ud800"}',
    "a list": b'["type","ping"]',
    "text": b'"ping"',
    "no type": b'{"Type":"ping"}',
    "another type": b'{"type":"pong"}',
    "a type that is a list": b'{"type":["ping"]}',
    "a numbered message": b'{"type":"hello","seq":1}',
    "an opening": LEVEL_0,
    "a pong": b'{"type":"ping","status":"pong"}',
    "a status": b'{"type":"ping","status":null}',
    "a type by another spelling": rb'{"type":"p\u0069ng"}',
    "a status by another spelling": rb'{"type":"ping","st\u0061tus":"pong"}',
    "that it is away": b'{"type":"ping","away":true}',
    "that it is not away": b'{"type":"ping","away":false}',
    "too long": b'{"type":"ping","pad":"%b"}' % (b"x" * 1001),
}


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("payload", NOT_ORDINARY.values(), ids=NOT_ORDINARY)
def test_whatever_else_arrives_is_not_answered_in_one_call_and_nothing_is_done(payload, level):
    presence = Presence(40.0, 75.0)
    link = beating(presence, level=level, now=1.0)
    before = everything(link, presence)

    assert link.beat(payload, 4.0) is None

    assert everything(link, presence) == before


def test_a_ping_nested_as_deep_as_can_be_read_is_answered_in_one_call_or_left_to_the_other_two():
    link = beating(ping_limit=4096)
    deep = [b'"d":' + b"[" * depth + b"]" * depth + b"}" for depth in range(400, 2000, 10)]

    plain = [link.beat(b'{"type":"ping",' + end, 1.0) for end in deep]
    rebuilt = [link.beat(b'{"type":"ping","clients":1,' + end, 1.0) for end in deep]

    # How deep that is depends on the Python; from 3.13 on deeper than a ping may be long.
    pongs = [b'{"type":"ping",' + end[:-1] + b',"status":"pong","clients":1}' for end in deep]
    assert plain[0] == rebuilt[0] == pongs[0]
    assert all(
        answer in (None, pong) for answers in (plain, rebuilt) for answer, pong in zip(answers, pongs, strict=True)
    )


def is_new(link):
    """It has not pinged yet."""


def is_away(link):
    """It says that it looks elsewhere."""
    says(link, b'{"type":"ping","away":true}', 1.0)


def has_fallen_silent(link):
    """It has not pinged lately."""
    says(link, PING, 1.0)
    link.heard(10.0)
    link.check(13.0, QUIET)


def is_looked_at(link):
    """It is about to be suspected: one turn of the reactor is waited for."""
    says(link, b'{"type":"ping","t":1}', 1.0)
    link.monitor.heard_at = -1.0
    assert link.check(11.0, QUIET) == (Turn(),)


def is_suspect(link):
    """A probe is out."""
    says(link, PING, 1.0)
    link.woke(2.0, QUIET)


def is_asked(link):
    """A ping of the server's is out."""
    opens(link, beats="server")
    assert link.check(0.0, QUIET) == (b'{"type":"ping","id":1,"ack":0}',)


def is_dead(link):
    """It was convicted."""
    is_suspect(link)
    link.check(5.0, QUIET)
    link.confirm(5.0, QUIET)
    assert link.monitor.state is DEAD


def is_judged(link):
    """It opens a session, and what it may have is not decided."""
    says(link, PING, 1.0)
    says(link, level_1(), 2.0)


def is_sent_away(link):
    """It was refused."""
    is_judged(link)
    link.refused(4401, "not authorized")


def broke_a_rule(link):
    """It left out a number."""
    opens(link)
    says(link, PING, 0.0)
    says(link, b'{"type":"hello","seq":9}', 1.0)


def is_gone(link):
    """It has closed."""
    says(link, PING, 1.0)
    link.close(2.0, None)


STATES = (
    is_new,
    is_away,
    has_fallen_silent,
    is_looked_at,
    is_suspect,
    is_asked,
    is_dead,
    is_judged,
    is_sent_away,
    broke_a_rule,
    is_gone,
)


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_a_ping_that_changes_more_than_times_is_not_answered_in_one_call_and_nothing_is_done(state):
    presence = Presence(40.0, 75.0)
    link = server(presence)
    state(link)
    before = everything(link, presence)

    assert link.beat(PING, 14.0) is None

    assert everything(link, presence) == before


def test_a_page_that_answers_a_probe_by_a_pong_of_its_own_joins_by_that():
    """It is active from then on, and its pings are ordinary: nobody would be told later."""
    link = server()
    ask_in_vain(link)
    link.heard(13.0)

    pong = b'{"type":"ping","id":1,"status":"pong"}'
    assert link.receive(pong, False, 13.0) == (Answered(1.0, None), Joined("c-1"))

    assert link.standing is Standing.ACTIVE
    assert link.beat(PING, 14.0) == PONG


#: What a client may say, in a session or without one, after its first ping.
WORDS = st.sampled_from(
    [
        *ORDINARY.values(),
        *NOT_ORDINARY.values(),
        LEVEL_0,
        level_1(),
        *(b'{"type":"ping","id":1,"ack":%d}' % ack for ack in range(4)),
        *(b'{"type":"ping","id":%d,"status":"pong"}' % number for number in range(5)),
        *(b'{"type":"ack","ack":%d}' % ack for ack in range(4)),
        *(b'{"type":"hello","seq":%d}' % seq for seq in range(1, 4)),
    ]
)


class Life:
    """An end from its first ping on; `quick` has it answer in one call whatever can be answered so."""

    def __init__(self, *, quick, level, beats):
        self.presence = Presence(40.0, 75.0)
        self.link = server(self.presence, spread=0.5)
        self.now = 0.0
        self._quick = quick
        if level:
            says(self.link, level_1(beats=beats), 0.0)
            self.link.admitted(session(kept=2), 0.0)
        says(self.link, PING, 0.0)

    def step(self, seconds, word):
        """So many seconds pass, in which it is looked at as it wishes; then this arrives. What follows."""
        link, told = self.link, []
        if link.is_judging:
            told.append(link.admitted(session(kept=2), self.now))
        end = self.now + seconds
        while (at := link.next_at) <= end:
            told.append(link.check(at, QUIET))
            told.append(link.confirm(at, QUIET))
        self.now = end
        if type(word) is int:
            told += [link.heard(end), link.pong(b"heartbeat %d" % word, end)]
        else:
            pong = link.beat(word, end) if self._quick else None
            # Where nothing else follows, an effect is an effect, whichever call has it.
            told.append(link.heard(end) + link.receive(word, False, end) if pong is None else (pong,))
        if link.session is not None and link.session.next() is not None:
            link.session.finished()
        return [effects for effects in told if effects]


@given(
    level=st.sampled_from([0, 1]),
    beats=st.sampled_from(["client", "server", "both", "none"]),
    steps=st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 3.0, 6.0, 11.5, 12.0, 13.0, 40.0]), WORDS | st.integers(0, 4)),
        max_size=12,
    ),
)
def test_a_life_of_quick_answers_is_the_same_life(level, beats, steps):
    quick, plain = Life(quick=True, level=level, beats=beats), Life(quick=False, level=level, beats=beats)

    for seconds, word in steps:
        assert quick.step(seconds, word) == plain.step(seconds, word)
        assert everything(quick.link, quick.presence) == everything(plain.link, plain.presence)
