"""Nothing is lost while a session lives, nothing comes twice, all comes in order, and what was lost is said.

The real client and the real server are put through everything that may happen to them, in virtual time; the ledger of
`ordeal` knows what each of them must have seen. Every failure names its seed, by which it happens again.

    HEARTBEAT_DELIVERIES=1000000 pytest tests/wire/test_sessions.py      every night
    HEARTBEAT_SEED=memory-disk-3 pytest tests/wire/test_sessions.py      one life again
"""

import os

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lives import crowd, live
from ordeal import KEEPING, Intended, Ordeal
from twisted.internet.defer import Deferred

#: How many messages are delivered in all, and how many in one life.
DELIVERIES = int(os.environ.get("HEARTBEAT_DELIVERIES", "50000"))
A_LIFE = 2500

#: How the client and the server keep their sessions.
PAIRS = [(client, server) for client in KEEPING for server in KEEPING]
QUICK_PAIRS = [("memory", "disk"), ("disk", "instant")]


def live_on(client, server, deliveries, first=0):
    """Lives of this pair, until so many messages were delivered; returns how many that were."""
    delivered, number = 0, first
    while delivered < deliveries:
        life = live(f"{client}-{server}-{number}", min(A_LIFE, deliveries - delivered), client=client, server=server)
        delivered += life.deliveries
        number += 1
    return delivered


@pytest.fixture
def quietly(failures):
    """Handlers that fail on purpose are logged, and that is right; nothing else is."""
    yield
    failures.flush(Intended)


# Two of the pairs in `make test`, in which each way of keeping is once an end.
@pytest.mark.parametrize(
    ("client", "server"),
    [pytest.param(*pair, marks=[] if pair in QUICK_PAIRS else pytest.mark.slow) for pair in PAIRS],
)
def test_nothing_is_lost_nothing_comes_twice_and_all_comes_in_order(client, server, quietly):
    assert live_on(client, server, DELIVERIES // len(PAIRS)) >= DELIVERIES // len(PAIRS)


@pytest.mark.slow
@pytest.mark.parametrize(("client", "server"), PAIRS)
def test_nor_in_five_times_as_many_lives(client, server, quietly):
    assert live_on(client, server, 5 * DELIVERIES // len(PAIRS), first=1_000_000)


@pytest.mark.parametrize("seed", os.environ.get("HEARTBEAT_SEED", "disk-disk-29").split())
def test_one_life_again(seed, quietly):
    client, server, _ = seed.split("-")
    life = live(seed, A_LIFE, client=client, server=server)

    assert life.deliveries >= A_LIFE


def test_the_same_seed_is_the_same_life(quietly):
    one, other = (live("disk-disk-7", 300, client="disk", server="disk") for _ in range(2))

    assert one.story == other.story
    assert one.deliveries == other.deliveries
    assert one.world.now == other.world.now


# The same by hypothesis, which looks for the shortest way to a failure.


class Events(RuleBasedStateMachine):
    """Whatever may happen, in any order; the ledger looks on after each step, and everything must settle in the end."""

    ordeal = None

    @initialize(seed=st.integers(0, 2**32), client=st.sampled_from(KEEPING), server=st.sampled_from(KEEPING))
    def begin(self, seed, client, server):
        self.ordeal = Ordeal(seed, client=client, server=server, kept_limit=50)
        self.ends = {"client": self.ordeal.client_end, "server": self.ordeal.server_end}

    @rule(end=st.sampled_from(("client", "server")), count=st.integers(1, 60), hops=st.integers(0, 2))
    def send(self, end, count, hops):
        self.ordeal.send(self.ends[end], count, hops)

    @rule(seconds=st.floats(0, 10))
    def advance(self, seconds):
        self.ordeal.advance(seconds)

    @rule()
    def cut(self):
        self.ordeal.cut()

    @rule(count=st.integers(1, 4000), end=st.sampled_from((None, "client", "server")))
    def cut_after(self, count, end):
        self.ordeal.cut_after(count, end and self.ends[end])

    @rule()
    def heal(self):
        self.ordeal.heal()

    @rule()
    def drop(self):
        self.ordeal.drop()

    @rule(end=st.sampled_from(("client", "server")), seconds=st.floats(0.01, 12))
    def stall(self, end, seconds):
        self.ordeal.stall(self.ends[end], seconds)

    @rule(end=st.sampled_from(("client", "server")))
    def lose_unnoticed(self, end):
        self.ordeal.lose_unnoticed(self.ends[end])

    @rule(end=st.sampled_from(("client", "server")))
    def crash(self, end):
        self.ordeal.crash(self.ends[end])

    @rule(end=st.sampled_from(("client", "server")))
    def restart(self, end):
        self.ordeal.restart(self.ends[end])

    @rule()
    def back_up(self):
        self.ordeal.back_up()

    @rule()
    def restore(self):
        self.ordeal.restore()

    @rule()
    def absence(self):
        self.ordeal.cut()
        self.ordeal.advance(45)

    @rule(slow=st.floats(0, 1), fail=st.floats(0, 0.5), replies=st.integers(0, 3), sends=st.integers(0, 3))
    def mood(self, **mood):
        self.ordeal.mood = mood

    @invariant()
    @precondition(lambda self: self.ordeal is not None)
    def holds(self):
        self.ordeal.check()

    def teardown(self):
        if self.ordeal is not None and self.ordeal.problem is None:
            self.ordeal.finish()


def test_whatever_happens_in_whatever_order(quietly):
    run_state_machine_as_test(Events, settings=settings(max_examples=20, stateful_step_count=25, print_blob=False))


@pytest.mark.slow
def test_whatever_happens_a_thousand_times(quietly):
    run_state_machine_as_test(Events, settings=settings(max_examples=500, stateful_step_count=60, print_blob=False))


# Deadlock search: both ends at their bounds, and handlers that send.


def comes_to_rest(life):
    """All of it is handled in a few minutes, and neither end has given up."""
    until = life.world.now + 300
    while life.world.now < until and not life.is_settled():
        life.advance(1.0)
    life.claim(life.is_settled(), "does not come to rest", life.mood, *life.unsettled())
    life.claim(not life.client_end.reasons + life.server_end.reasons, "ended", life.client_end.reasons)
    delivered = life.deliveries
    life.finish()
    return delivered


@pytest.mark.parametrize(("client", "server"), PAIRS)
def test_two_full_ends_whose_handlers_send_come_to_rest(client, server, quietly):
    crowds = [crowd(f"{client}-{server}-{number}", client=client, server=server) for number in range(8)]

    assert sum(map(comes_to_rest, crowds)) > 200


@given(
    seed=st.integers(0, 2**32),
    ends=st.sampled_from(PAIRS),
    sent=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    hops=st.integers(1, 5),
    mood=st.fixed_dictionaries(
        {
            "slow": st.floats(0, 1),
            "fail": st.floats(0, 0.3),
            "replies": st.integers(0, 4),
            "sends": st.integers(0, 4),
        }
    ),
)
@example(0, ("memory", "memory"), (8, 8), 2, {"slow": 0.5, "fail": 0.0, "replies": 3, "sends": 0})
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_way_of_answering_stops_two_full_ends(quietly, seed, ends, sent, hops, mood):
    life = Ordeal(seed, client=ends[0], server=ends[1], kept_limit=4, kept_bytes=4096)
    life.mood = mood
    life.send(life.client_end, sent[0], hops)
    life.send(life.server_end, sent[1], hops)

    comes_to_rest(life)


@pytest.mark.parametrize("end", ["client", "server"])
def test_an_end_that_really_handles_nothing_is_given_up_as_full_and_that_is_said(end, quietly):
    """A client's handler that never finishes: the server's patience ends. A server's: the client has only its bound."""
    life = Ordeal(1, kept_limit=8)
    others = life.server_end if end == "client" else life.client_end
    never = Deferred()
    (life.client if end == "client" else life.factory).register("m", lambda *_: never)
    life.advance(1)
    life.send(others, 20)
    life.advance(30)

    full = [message.number for message in life.messages.values() if message.state == "full"]
    assert full == list(range(9, 21))
    if end == "client":
        # Both name what they had: the server its eight, the client nothing.
        assert life.server_end.reasons == ["full"]
        assert [message.number for message in life.messages.values() if message.state == "lost"] == list(range(1, 9))
        assert life.client_end.reasons == ["full"]
    else:
        assert life.server_end.reasons == life.client_end.reasons == []
        assert sum(message.state == "waiting" for message in life.messages.values()) == 8


# What such lives have found, as short as it gets.


@pytest.fixture
def ordeal(quietly):
    """Two ends with a disk that takes its time, unless others are asked for; in the end everything settles."""
    made = []

    def ordeal(client="disk", server="disk", **options):
        made.append(Ordeal(1, client=client, server=server, **options))
        return made[-1]

    yield ordeal
    for one in made:
        one.finish()


def test_what_is_sent_before_the_file_is_read_goes_out_in_the_session_that_it_holds(ordeal):
    life = ordeal(commit=1.0)
    life.advance(5)
    sid = life.client._session.channel.session.sid
    life.crash(life.client_end)
    life.send(life.client_end, 3)
    life.advance(20)

    assert life.client._session.channel.session.sid == sid
    assert [message.state for message in life.messages.values()] == ["confirmed"] * 3


def test_a_connection_that_breaks_before_its_session_is_on_the_disk_leaves_what_waits_to_the_next(ordeal):
    life = ordeal("disk", "memory", commit=6.0)
    life.send(life.client_end, 3)
    while not life.factory.heartbeat.sessions.channels:
        life.advance(0.01)
    life.advance(0.02)
    life.drop()
    life.advance(60)

    assert life.client_end.reasons == []
    assert [message.state for message in life.messages.values()] == ["confirmed"] * 3
    assert [head.sid for head in life.client_end.disk.start().heads] == [life.client._session.channel.session.sid]


def test_the_answers_of_a_client_may_go_beyond_its_bound_and_stop_at_twice_that(ordeal):
    """The server is slow, and asks on and on; what it is answered it must take, and it must not be too much."""
    life = ordeal("memory", "memory", kept_limit=8)
    later = Deferred()
    life.factory.register("m", lambda protocol, body: (life.handle(life.server_end, protocol, body), later)[1])
    life.advance(1)
    life.mood["replies"] = 3
    for _ in range(5):
        life.send(life.server_end, 8, hops=1)
        life.advance(0.5)

    # All of the forty were handled, and were answered while there was room.
    replies = [message for message in life.messages.values() if message.reply]
    assert len([one for one in replies if one.state != "forgotten"]) == 16
    assert life.client._session.channel.session.sent == 16
    assert len([one for one in life.messages.values() if one.end is life.server_end and one.finished]) == 40
    life.mood["replies"] = 0
    later.callback(None)


def test_stopping_while_the_heartbeat_convicts_ends_all_the_same(ordeal):
    life = ordeal()
    life.advance(1)
    life.cut()
    while life.client.status.event != "suspect":
        life.advance(0.1)
    life.advance(0.5)
    stopped = []
    life.client.stopService().addCallback(stopped.append)
    life.advance(3)

    assert stopped == [None]
    life.start_client()


@pytest.mark.parametrize("client", KEEPING)
def test_stopping_while_it_opens_begins_nothing(ordeal, client):
    for moment in range(1, 12):
        life = ordeal(client)
        life.advance(0.005 * moment)
        stopped = []
        life.client.stopService().addCallback(stopped.append)
        life.advance(3)

        assert stopped == [None]
        assert life.world.client.calls == []
        life.start_client()


def test_a_session_that_the_client_gave_up_while_the_server_took_it_up_again_ends_on_both(ordeal):
    life = ordeal("memory", "memory")
    life.advance(1)
    sid = life.client._session.channel.session.sid
    life.send(life.server_end, 2)
    life.drop()
    life.advance(0.1)
    while life.factory.heartbeat.sessions.detached:
        life.advance(0.005)
    # The answer to its opening is on its way.
    life.client._session.end("expired")
    life.advance(5)

    assert life.client._session.channel.session.sid not in ("", sid)
    assert life.client_end.reasons == ["expired"]
    assert life.server_end.reasons == ["closed"]


def test_a_message_confirmed_by_one_that_is_refused_is_confirmed_or_comes_again(ordeal):
    """An `ack` that came with what breaks off the connection: whatever becomes of it, the books are right."""
    life = ordeal("memory", "memory")
    life.advance(1)
    life.send(life.server_end, 1)
    life.advance(0.015)
    life.client._session.channel.connection.write(b'{"type":"m","seq":9,"ack":1}')
    life.advance(3)

    assert [message.state for message in life.messages.values()] == ["confirmed"]
    assert life.server_end.reasons == []
