"""Who is alive over a fleet: several servers and one Redis, and after every step all say what a recount finds."""

import random
import re
import signal
import sys
import time
from collections import Counter
from itertools import count, pairwise
from typing import ClassVar

import pytest
import redis_server
from fleet import redis_answer, redis_time
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import formatEvent
from twisted.python.usage import UsageError

from heartbeat import HeartbeatService
from heartbeat.admin.metrics import Metrics
from heartbeat.admin.view import Lines, View
from heartbeat.cluster import presence as fleets
from heartbeat.cluster import redis as way
from heartbeat.cluster import subscription
from heartbeat.cluster.presence import FleetPresence
from heartbeat.cluster.sessions import FleetStore
from heartbeat.core.errors import SettingError
from heartbeat.core.presence import Presence, Standing
from heartbeat.store import MemoryStore
from heartbeat.tap import Options

pytestmark = redis_server.needs_redis

ACTIVE, AWAY, CONNECTED, SUSPECT, DETACHED = Standing

# Seconds between calls in these tests, where they wait for leases to end.
QUICK = 0.1
LEASE = 3 * QUICK

_prefixes = (f"test{number}:" for number in count())


class Node:
    """A server as far as it counts: its register, and its part in the fleet."""

    def __init__(self, turns, url, prefix, refresh):
        self.turns = turns
        self.presence = Presence(0.0, 0.0)
        self.fleet = FleetPresence(url, refresh=refresh, prefix=prefix, reactor=turns.reactor)
        #: Each call: `begin`, `go on` or `leave`, and of how many clients it told.
        self.calls = []
        #: What was heard of all, each time: distinct active and known clients, connections.
        self.heard = []
        read = self.fleet._redis.read

        def noted(name, *arguments):
            self.calls.append((arguments[1], (len(arguments) - 8) // 2))
            return read(name, *arguments).addCallback(self.note)

        self.fleet._redis.read = noted
        self.fleet.start(self.presence)
        self.connections = []

    def note(self, reply):
        if reply:
            self.heard.append(tuple(reply[5:8]))
        return reply

    def opens(self, client_id, standing=ACTIVE):
        """A connection of this client, announced."""
        connection = self.presence.open(client_id)
        self.presence.announce(connection)
        self.presence.stand(connection, standing)
        self.connections.append(connection)
        return connection

    def closes(self, connection):
        self.connections.remove(connection)
        self.presence.close(connection, 0.0, at_once=True)

    def is_cut_off(self):
        """It does not come to call any more, and does not know why."""
        self.fleet._cancel_timer()
        self.fleet._is_open = False

    def is_back(self):
        self.fleet._is_open = True
        self.fleet._soon()

    def dies(self):
        """As by `kill -9`: it calls no more, and its connections break."""
        self.is_cut_off()
        self.presence.changed = None
        self.fleet._presence = None
        self.turns.result(self.fleet._subscription.stop())
        self.fleet._redis._stopping = []
        self.fleet._redis._end()

    def asks(self, *command):
        """Redis' answer."""
        return self.turns.result(self.fleet._redis._made.execute_command(*command))


class Fleet(list):
    """The nodes that live."""

    def __init__(self, turns, url, refresh, prefix):
        self.turns = turns
        self.url = url
        self.refresh = refresh
        self.prefix = prefix

    def join(self, *, refresh=None):
        """One more; there before it is returned, if Redis is."""
        node = Node(self.turns, self.url, self.prefix, refresh or self.refresh)
        self.append(node)
        return node

    def recounted(self):
        """What there is: distinct active clients, distinct known ones, connections."""
        ids = {(node.presence.standing_of(name), name) for node in self for name in node.presence.client_ids()}
        return (
            len({name for standing, name in ids if standing is ACTIVE}),
            len({name for _, name in ids}),
            sum(node.presence.connections for node in self),
        )

    def agrees(self):
        """Whether all say what a recount finds, and Redis too, as each of them last heard."""
        there = self.recounted()
        return all(
            (node.fleet.is_up, node.fleet.counts, node.presence.clients, node.fleet.nodes, node.heard[-1:])
            == (True, there, there[0], len(self), [there])
            for node in self
        )

    def settle(self, seconds=10):
        """Turn until all agree; how long that took."""
        began = time.monotonic()
        self.turns.until(self.agrees, seconds)
        return time.monotonic() - began

    def kill(self, node):
        self.remove(node)
        node.dies()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A Redis that nothing befalls."""
    with redis_server.RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture
def redis(tmp_path):
    """A Redis of one's own."""
    with redis_server.RedisServer(tmp_path) as redis:
        yield redis


@pytest.fixture
def turns():
    """The reactor."""
    return redis_server.Turns()


@pytest.fixture
def gather(turns):
    """Have a fleet of so many, that agrees; in the end all leave, and nothing of theirs is left."""
    made = []

    def gather(redis, number=2, *, refresh=60.0):
        fleet = Fleet(turns, redis.url, refresh, next(_prefixes))
        made.append(fleet)
        for _ in range(number):
            fleet.join()
        fleet.settle()
        return fleet

    yield gather
    for fleet in made:
        for node in fleet:
            turns.result(node.fleet.stop())
    turns.rest()


@pytest.fixture(autouse=True)
def haste(monkeypatch):
    """Nobody waits before he tells of what has changed, or tries again."""
    monkeypatch.setattr(fleets, "_PAUSE", 0.0)
    monkeypatch.setattr(fleets, "_AGAIN", 0.02)
    monkeypatch.setattr(subscription, "_AGAIN", 0.02)


def noting_clients(method, seen):
    """The method that tells a register of those elsewhere, and notes what it says of all from then on."""

    def noting(presence, number):
        method(presence, number)
        seen.append((presence, presence.clients))

    return noting


def sentences(log):
    return [formatEvent(event) for event in log if event.get("log_namespace", "").startswith("heartbeat.cluster")]


# Counting together.


def test_a_client_on_two_servers_is_one_client_with_two_connections(gather, shared):
    one, other = fleet = gather(shared)

    first = one.opens("alice")
    second = other.opens("alice")
    other.opens("bob", AWAY)
    fleet.settle()
    assert one.fleet.counts == other.fleet.counts == (1, 2, 3)

    one.presence.stand(first, SUSPECT)
    fleet.settle()
    assert one.presence.clients == 1

    other.closes(second)
    fleet.settle()
    assert one.fleet.counts == (0, 2, 2)


def test_a_change_of_our_own_is_counted_before_anybody_was_asked(gather, shared):
    one, other = fleet = gather(shared)
    other.opens("bob")
    fleet.settle()

    alice = one.opens("alice")
    assert (one.presence.clients, one.fleet.counts) == (2, (2, 2, 2))
    one.closes(alice)
    assert (one.presence.clients, one.fleet.counts) == (1, (1, 1, 1))


def test_the_pongs_and_the_answer_to_the_opening_say_how_many_there_are_on_all_servers(gather, shared, serve, connect):
    (other,) = fleet = gather(shared, 1)
    for name in ("bob", "carol"):
        other.opens(name)
    factory = serve()
    here = FleetPresence(shared.url, prefix=fleet.prefix, reactor=fleet.turns.reactor)
    here.start(factory.presence)
    fleet.turns.until(lambda: here.is_up)

    peer = connect().open()
    peer.say({"type": "onopen"}, {"type": "ping", "n": 1})
    assert [message["clients"] for message in peer.messages] == [3, 3]
    other.opens("dave")
    fleet.turns.until(lambda: here.counts.clients == 4)
    peer.say({"type": "ping", "n": 2})
    assert peer.messages[-1]["clients"] == 4

    peer.leave()
    fleet.turns.result(here.stop())
    fleet.settle()


def test_what_changes_is_heard_by_the_others_long_before_they_ask(gather, shared, monkeypatch):
    """The refresh is a minute here; changes that are told one by one are one word to all in a fifth of a second."""
    one = (fleet := gather(shared))[0]
    monkeypatch.undo()
    monkeypatch.setattr(fleets, "_GAP", 0.0)
    calls = [len(node.calls) for node in fleet]

    began = time.monotonic()
    for number in range(100):
        before = len(one.calls)
        one.opens(f"c{number}")
        fleet.turns.until(lambda before=before: len(one.calls) > before and not one.fleet._is_calling)
    changing = time.monotonic() - began
    fleet.settle()

    told, asked = (len(node.calls) - before for node, before in zip(fleet, calls, strict=True))
    assert told >= 100
    assert asked < 6 + 2 * changing / 0.2


def test_where_there_is_always_something_to_tell_it_is_told_once_in_a_while(gather, shared, monkeypatch):
    """Each of a hundred servers would else call Redis as often as that answers."""
    monkeypatch.setattr(fleets, "_GAP", 30.0)
    (one,) = fleet = gather(shared, 1)
    fleet.turns.until(lambda: not one.fleet._is_calling and one.fleet._subscription.is_up)
    one.opens("alice")
    fleet.turns.until(lambda: one.fleet._is_calling)
    one.opens("bob")

    fleet.turns.until(lambda: not one.fleet._is_calling)

    assert one.fleet._timer.getTime() - fleet.turns.reactor.seconds() > 25


def test_what_changes_in_one_turn_is_told_in_one_call_and_beats_are_told_in_none(gather, shared, serve, connect, world):
    (one,) = fleet = gather(shared, 1)
    del one.calls[:]

    for number in range(fleets._SLICE):
        one.opens(f"c{number}")
    fleet.settle()
    assert one.calls == [("go on", fleets._SLICE)]

    factory = serve()
    told = []
    factory.presence.changed = told.append
    peer = connect().open()
    peer.say({"type": "ping"})
    del told[:]
    for _ in range(100):
        peer.say({"type": "ping"})
        world.advance(1)
    peer.leave()
    # It went; that is all.
    assert len(set(told)) == 1
    assert len(peer.messages) == 101


def test_at_rest_a_server_calls_once_a_refresh(gather, shared, turns):
    """It costs two operations, with the look at the other connection: under 0.1 a client and minute from 240 on."""
    (one,) = gather(shared, 1, refresh=QUICK)
    one.opens("alice")
    turns.until(lambda: one.heard[-1:] == [(1, 1, 1)])
    before, began = len(one.calls), time.monotonic()

    turns.until(lambda: len(one.calls) >= before + 4)

    # The first may come at once, and one may be that of its own word.
    assert time.monotonic() - began > 1.5 * QUICK
    assert set(one.calls[before:]) == {("go on", 0)}
    assert 2 * 60 / fleets._REFRESH / 240 <= 0.1


def test_a_server_that_stops_leaves_at_once(gather, shared):
    """Its lease would hold for three minutes."""
    one, other = fleet = gather(shared)
    one.opens("alice")
    other.opens("bob")
    fleet.settle()

    fleet.remove(one)
    fleet.turns.result(one.fleet.stop())

    fleet.settle()
    assert other.fleet.counts == (1, 1, 1)
    assert one.presence.changed is None
    # And may be started again.
    fleet.append(one)
    one.fleet.start(one.presence)
    fleet.settle()
    assert other.fleet.counts == (2, 2, 2)
    modes = [mode for mode, _ in one.calls]
    assert modes[modes.index("leave") :][:2] == ["leave", "begin"]


def test_the_last_to_leave_leaves_nothing_but_the_count_of_changes(gather, shared, turns):
    (one,) = fleet = gather(shared, 1)
    watcher = gather(shared, 1)[0]
    one.opens("alice")
    fleet.settle()

    turns.result(one.fleet.stop())

    assert watcher.asks("KEYS", f"{fleet.prefix}*") == [f"{fleet.prefix}counts".encode()]
    assert watcher.asks("HGET", f"{fleet.prefix}counts", "connections") == b"0"
    fleet.clear()


def test_fleets_under_other_names_or_in_other_databases_do_not_hear_of_each_other(shared, gather, turns):
    (one,) = fleet = gather(shared, 1)
    far = Node(turns, f"{shared.url}?database=1", fleet.prefix, 60.0)
    # Its own word, that it has come, may have it call once more.
    turns.until(
        lambda: (
            far.fleet.is_up
            and far.fleet._subscription.is_up
            and not far.fleet._is_calling
            and far.fleet._timer.getTime() - turns.reactor.seconds() > 1
        )
    )
    one.opens("alice")
    fleet.settle()
    before = len(far.calls)

    one.opens("bob")
    fleet.settle()

    assert (far.presence.clients, len(far.calls)) == (0, before)
    turns.result(far.fleet.stop())


# Those that die.


def test_the_clients_of_a_server_that_died_are_gone_within_its_lease(gather, shared):
    """Some of them are elsewhere by then; and whoever sweeps them would not have called for a minute."""
    (other,) = fleet = gather(shared, 1)
    one = fleet.join(refresh=QUICK)
    for name in ("alice", "bob", "carol"):
        one.opens(name)
    other.opens("alice")
    fleet.settle()
    assert other.fleet.counts == (3, 3, 4)

    ends = float(redis_answer(shared, "ZSCORE", f"{fleet.prefix}nodes", one.fleet.node))
    fleet.kill(one)
    other.opens("bob")
    assert other.turns.until(lambda: other.fleet.counts == (2, 2, 2))

    assert redis_time(shared) >= ends


def test_a_server_that_died_is_swept_in_slices(gather, shared, monkeypatch):
    monkeypatch.setattr(fleets, "_SLICE", 7)
    one, other = fleet = gather(shared, refresh=QUICK)
    for number in range(30):
        one.opens(f"c{number}", ACTIVE if number % 2 else AWAY)
    fleet.settle()
    fleet.kill(one)
    del other.heard[:]

    fleet.settle()

    steps = [one[0] + one[1] for one in other.heard]
    swept = [before - after for before, after in pairwise(steps)]
    assert (max(swept), sum(swept)) == (7, 45)


def test_whoever_was_given_up_while_it_was_cut_off_tells_everything_anew(gather, shared, monkeypatch):
    monkeypatch.setattr(fleets, "_SLICE", 7)
    one, other = fleet = gather(shared, refresh=QUICK)
    for number in range(30):
        one.opens(f"c{number}")
    other.opens("c20")
    fleet.settle()
    seen = []
    monkeypatch.setattr(Presence, "counted_elsewhere", noting_clients(Presence.counted_elsewhere, seen))

    one.is_cut_off()
    other.turns.until(lambda: other.fleet.counts == (1, 1, 1))
    one.closes(one.connections[-1])
    one.opens("new")
    del one.calls[:]
    one.is_back()
    fleet.settle()

    assert other.fleet.counts == (30, 30, 31)
    # Nobody is counted twice while not all of it is told.
    assert max(clients for presence, clients in seen if presence is one.presence) == 30
    assert ("begin", 7) in one.calls
    assert max(told for _, told in one.calls) == 7


# Redis goes, and comes back.


def test_a_redis_that_comes_back_empty_is_told_everything_anew(gather, redis, log):
    one, other = fleet = gather(redis, refresh=QUICK)
    one.opens("alice")
    bob = other.opens("bob")
    fleet.settle()
    del log[:]

    redis.kill()
    fleet.turns.until(lambda: not one.fleet.is_up and not other.fleet.is_up)
    # Heartbeats go on: those of others as last heard, our own as they are.
    other.closes(bob)
    one.opens("carol")
    one.opens("dave")
    assert (one.presence.clients, other.presence.clients) == (4, 1)
    assert one.fleet.counts == (4, 4, 4)
    redis.start()
    fleet.settle()

    assert other.fleet.counts == (3, 3, 3)
    away, back = "clients of other servers are counted as they last were", f"the cluster {redis.url} is there again"
    said = sentences(log)
    assert [sentence for sentence in said if sentence.endswith(away)] == said[:2]
    assert said[0].startswith(f"the cluster {redis.url} is away: ")
    assert said[2:] == [back] * 2


def test_a_redis_that_comes_back_as_it_was_some_time_ago_is_told_everything_anew(gather, redis, monkeypatch):
    """From its last snapshot, or as a replica that had not everything; nobody is counted twice meanwhile."""
    monkeypatch.setattr(fleets, "_SLICE", 7)
    one, other = fleet = gather(redis)
    alice = one.opens("alice")
    crowd = [other.opens(f"c{number}") for number in range(30)]
    fleet.settle()
    one.asks("SAVE")
    one.closes(alice)
    for connection in crowd[:10]:
        other.closes(connection)
    other.opens("alice")
    one.opens("bob")
    fleet.settle()
    seen = []
    monkeypatch.setattr(Presence, "counted_elsewhere", noting_clients(Presence.counted_elsewhere, seen))

    redis.kill()
    fleet.turns.until(lambda: not one.fleet.is_up and not other.fleet.is_up)
    redis.start()
    fleet.settle()

    assert one.fleet.counts == (22, 22, 22)
    # Those of one's own that have gone are not taken for somebody else's.
    assert max(clients for presence, clients in seen if presence is other.presence) <= 22
    assert "begin" in [mode for mode, _ in one.calls[1:]]
    assert "begin" in [mode for mode, _ in other.calls[1:]]


def test_a_redis_that_stands_still_for_longer_than_the_leases_costs_nobody_his_place(gather, redis, log, monkeypatch):
    monkeypatch.setattr(way, "_PATIENCE", 0.3)
    one, other = fleet = gather(redis, refresh=QUICK)
    one.opens("alice")
    bob = other.opens("bob")
    fleet.settle()
    for node in fleet:
        del node.calls[:]
    del log[:]

    redis.pause(signal.SIGSTOP)
    stopped = time.monotonic()
    fleet.turns.until(lambda: not one.fleet.is_up and not other.fleet.is_up)
    other.closes(bob)
    one.opens("carol")
    assert (one.presence.clients, other.presence.clients) == (3, 1)
    fleet.turns.until(lambda: time.monotonic() > stopped + 1.5 * LEASE)
    # Whoever stands still himself from now on has not to do with it.
    monkeypatch.setattr(way, "_PATIENCE", 15.0)
    redis.pause(signal.SIGCONT)
    fleet.settle()

    assert one.fleet.counts == (2, 2, 2)
    assert {mode for node in fleet for mode, _ in node.calls} == {"go on"}
    assert len(sentences(log)) == 4


def test_whoever_died_while_redis_stood_still_is_gone_a_lease_after_that(gather, redis, monkeypatch):
    monkeypatch.setattr(way, "_PATIENCE", 0.3)
    one, other = fleet = gather(redis, refresh=QUICK)
    one.opens("alice")
    other.opens("bob")
    fleet.settle()

    redis.pause(signal.SIGSTOP)
    stopped = time.monotonic()
    fleet.kill(one)
    fleet.turns.until(lambda: time.monotonic() > stopped + LEASE)
    redis.pause(signal.SIGCONT)

    fleet.settle()
    assert other.fleet.counts == (1, 1, 1)


def test_a_server_starts_where_there_is_no_redis_yet_and_is_counted_when_there_is(gather, redis, turns, log):
    redis.kill()
    node = Node(turns, redis.url, next(_prefixes), QUICK)
    node.opens("alice")
    turns.until(lambda: sentences(log))
    until = time.monotonic() + 0.1
    turns.until(lambda: time.monotonic() > until)
    assert (node.presence.clients, node.fleet.is_up) == (1, False)

    redis.start()
    turns.until(lambda: node.fleet.is_up)

    assert node.heard[-1] == (1, 1, 1)
    away, there = sentences(log)
    assert away.startswith(f"the cluster {redis.url} cannot be reached: ")
    assert there == f"clients are counted with those of 0 other server(s), by {redis.url}"
    turns.result(node.fleet.stop())


def test_a_server_can_stop_where_there_is_no_redis(redis, turns):
    node = Node(turns, redis.url, next(_prefixes), QUICK)
    turns.until(lambda: node.fleet.is_up)
    never = Node(turns, f"{redis.url}-none", next(_prefixes), QUICK)

    redis.kill()
    turns.until(lambda: not node.fleet.is_up)
    for one in (node, never):
        turns.result(one.fleet.stop())
        turns.result(one.fleet.stop())

    assert turns.reactor.getDelayedCalls() == []


def test_a_server_can_stop_before_it_is_there(gather, shared, turns):
    """Whichever of its two connections is being made."""
    (other,) = fleet = gather(shared, 1)
    at_once = Node(turns, shared.url, fleet.prefix, 60.0)
    turns.result(at_once.fleet.stop())
    half = Node(turns, shared.url, fleet.prefix, 60.0)
    turns.until(lambda: half.fleet._subscription._connecting)
    turns.result(half.fleet.stop())
    soon = Node(turns, shared.url, fleet.prefix, 60.0)
    turns.until(lambda: soon.fleet._is_calling)
    turns.result(soon.fleet.stop())

    fleet.settle()
    assert other.fleet.nodes == 1


def test_what_changes_while_redis_is_away_is_kept_by_name_and_within_a_bound(gather, redis, monkeypatch):
    monkeypatch.setattr(fleets, "_CHANGES", 20)
    (one,) = fleet = gather(redis, 1, refresh=QUICK)
    redis.kill()
    fleet.turns.until(lambda: not one.fleet.is_up)

    kept = []
    for number in range(200):
        one.closes(one.opens(f"c{number}"))
        kept.append(len(one.fleet._changes))
    one.opens("alice")
    assert 15 < max(kept) <= 21
    redis.start()
    fleet.settle()

    assert one.fleet.counts == (1, 1, 1)


def test_what_redis_refuses_is_said_and_tried_again(gather, shared, log):
    """Whoever has meddled with what is there deletes it, and all is told anew."""
    (one,) = fleet = gather(shared, 1)
    one.asks("SET", f"{fleet.prefix}known", "no hash")
    one.opens("alice")
    fleet.turns.until(lambda: not one.fleet.is_up)
    assert "WRONGTYPE" in sentences(log)[-1]

    one.asks("DEL", *one.asks("KEYS", f"{fleet.prefix}*"))
    fleet.settle()

    assert one.heard[-1] == (1, 1, 1)


def test_no_version_of_what_is_counted_is_used_twice_whatever_becomes_of_redis(gather, shared):
    """Else somebody might take what is new for what he knows."""
    (one,) = fleet = gather(shared, 1)
    for number in range(10):
        one.opens(f"c{number}")
        fleet.settle()
    before = int(one.fleet._version)

    one.asks("DEL", *one.asks("KEYS", f"{fleet.prefix}*"))
    one.opens("alice")
    fleet.settle()

    assert int(one.fleet._version) > before


# The connection on which it hears.


def test_without_it_a_server_asks_once_a_second_and_it_comes_back(gather, shared, monkeypatch):
    monkeypatch.setattr(fleets, "_DEAF", 0.05)
    one, other = fleet = gather(shared)
    monkeypatch.setattr(subscription.Subscription, "_connect", lambda listener: None)
    other.fleet._subscription._line.drop()
    fleet.turns.until(lambda: not other.fleet._subscription.is_up)
    other.fleet._soon()
    fleet.turns.turn()

    one.opens("alice")
    fleet.settle()
    assert other.presence.clients == 1

    monkeypatch.undo()
    other.fleet._subscription._again = None
    other.fleet._subscription._connect()
    fleet.turns.until(lambda: other.fleet._subscription.is_up)
    one.opens("bob")
    fleet.settle()


def test_one_that_is_broken_off_comes_back_and_what_was_missed_is_asked_for(gather, shared):
    one, other = fleet = gather(shared)

    assert one.asks("CLIENT", "KILL", "TYPE", "pubsub") >= 2
    one.opens("alice")
    fleet.settle()

    assert other.presence.clients == 1
    fleet.turns.until(lambda: all(node.fleet._subscription.is_up for node in fleet))


def test_what_may_have_changed_after_a_call_began_is_asked_for_when_that_is_answered(gather, shared):
    """It hears again; or of a change that is newer than the answer. What it knew already is not asked for."""
    (one,) = fleet = gather(shared, 1)
    fleet.turns.until(lambda: not one.fleet._is_calling and one.fleet._subscription.is_up)
    one.fleet._heard(one.fleet._version)
    one.opens("alice")
    fleet.turns.until(lambda: one.fleet._is_calling)
    one.fleet._heard(one.fleet._version)
    fleet.turns.until(lambda: not one.fleet._is_calling)
    one.fleet._heard(one.fleet._version)
    assert one.fleet._timer.getTime() - fleet.turns.reactor.seconds() > 25
    for heard in (one.fleet._subscription.hears, lambda: one.fleet._heard(b"1000")):
        fleet.turns.until(lambda: not one.fleet._is_calling and one.fleet._subscription.is_up)
        one.fleet._soon()
        fleet.turns.until(lambda: one.fleet._is_calling)
        before = len(one.calls)
        heard()
        fleet.turns.until(lambda before=before: len(one.calls) == before + 1)


def test_one_that_answers_nothing_is_left(gather, shared, monkeypatch):
    """As one is of which a firewall has forgotten; here the question went astray."""
    (one,) = fleet = gather(shared, 1, refresh=QUICK)
    listener = one.fleet._subscription
    fleet.turns.until(lambda: listener._line.asked_at > 0)
    line = listener._line
    monkeypatch.setattr(subscription, "_PATIENCE", 0.1)
    monkeypatch.setattr(line, "say", lambda *words: None)

    fleet.turns.until(lambda: listener._line not in (None, line) and listener.is_up)

    fleet.settle()


def test_one_that_is_no_redis_or_refuses_is_left(gather, shared):
    (one,) = fleet = gather(shared, 1)
    listener = one.fleet._subscription
    for said in (b"-ERR not now\r\n", b"HTTP/1.1 400 Bad Request\r\n"):
        line = listener._line
        line.dataReceived(said)
        fleet.turns.until(lambda line=line: listener._line not in (None, line) and listener.is_up)


def test_a_password_is_told_on_both_connections(gather, redis, turns, monkeypatch):
    redis.kill()
    redis.options = (*redis.options, "--requirepass", "se cret", "--port", "0")
    redis.start()
    one = FleetPresence("redis://:se%20cret@127.0.0.1", reactor=turns.reactor, refresh=QUICK)
    assert one._redis.credentials == ["se cret"]
    assert FleetPresence("redis://bob:se%20cret@127.0.0.1")._redis.credentials == ["bob", "se cret"]
    # A URL for a UNIX socket has no place for one.
    socket = str(redis.path)
    monkeypatch.setattr(way, "_endpoint_of", lambda parts, tls, reactor: way.UNIXClientEndpoint(reactor, socket))
    one.start(Presence(0.0, 0.0))

    turns.until(lambda: one.is_up and one._subscription.is_up)

    turns.result(one.stop())


# Everything, at random.


class Walk:
    """Random steps of a fleet; after each all of it must come to say what a recount finds."""

    def __init__(self, fleet, redis, seed):
        self.fleet = fleet
        self.redis = redis
        self.chance = random.Random(seed)
        self.taken = dict.fromkeys(self.STEPS, 0)

    def run(self, steps):
        """So many, of each kind one at least."""
        names, weights = zip(*self.STEPS.items(), strict=True)
        chosen = [*names, *self.chance.choices(names, weights, k=steps - len(names))]
        self.chance.shuffle(chosen)
        for step in chosen:
            self.taken[step] += 1
            getattr(self, step)()
            self.fleet.settle()
            self.look_into_redis()

    #: How often each, beside the others.
    STEPS: ClassVar = {
        "open": 30,
        "close": 20,
        "stand": 30,
        "keep": 5,
        "crowd": 3,
        "join": 3,
        "leave": 2,
        "kill": 2,
        "cut_off": 2,
        "forget": 2,
        "restart": 1,
        "pause": 1,
    }

    def any_node(self):
        return self.chance.choice(self.fleet)

    def open(self):
        self.any_node().opens(self.chance.choice("abcdefg"), self.chance.choice((ACTIVE, AWAY, CONNECTED, SUSPECT)))

    def close(self):
        node = self.any_node()
        if node.connections:
            node.closes(self.chance.choice(node.connections))

    def stand(self):
        node = self.any_node()
        if node.connections:
            connection = self.chance.choice(node.connections)
            node.presence.stand(connection, self.chance.choice((ACTIVE, AWAY, CONNECTED, SUSPECT)))

    def keep(self):
        self.any_node().presence.keep(self.chance.choice("abcdefg"))

    def crowd(self):
        """Much at once, on all of them."""
        for node in self.fleet:
            for _ in range(10):
                self.chance.choice((self.open, self.close, self.stand))()
            for number in self.chance.sample(range(40), 5):
                node.opens(f"c{number}")

    def join(self):
        if len(self.fleet) < 5:
            self.fleet.join()

    def leave(self):
        if len(self.fleet) > 1:
            node = self.fleet.pop(self.chance.randrange(len(self.fleet)))
            self.fleet.turns.result(node.fleet.stop())

    def kill(self):
        if len(self.fleet) > 1:
            # What it was about to tell is lost with it.
            self.open()
            self.fleet.kill(self.any_node())

    def cut_off(self):
        """Long enough to be given up, or not; things happen meanwhile."""
        node = self.any_node()
        node.is_cut_off()
        until = time.monotonic() + self.chance.choice((0.5, 2)) * LEASE
        self.crowd()
        self.fleet.turns.until(lambda: time.monotonic() > until)
        self.close()
        node.is_back()

    def forget(self):
        """Redis loses its memory, and keeps its connections."""
        self.any_node().asks("FLUSHALL")
        self.open()

    def restart(self):
        self.redis.kill()
        self.crowd()
        self.fleet.turns.until(lambda: not any(node.fleet.is_up for node in self.fleet))
        self.redis.start()

    def pause(self):
        self.redis.pause(signal.SIGSTOP)
        self.crowd()
        until = time.monotonic() + self.chance.choice((0.1, 1.5)) * LEASE
        self.fleet.turns.until(lambda: time.monotonic() > until)
        self.redis.pause(signal.SIGCONT)

    def look_into_redis(self):
        """What it holds of the nodes that live adds up to what it counts, as soon as what others left is swept."""
        self.fleet.turns.until(lambda: self.told_by_redis() == self.expected_of_redis(), 10)

    def expected_of_redis(self):
        """For each kind the ids of each node and on how many nodes each id is; connections; nodes."""
        kinds = []
        for is_in in (lambda standing: True, lambda standing: standing is ACTIVE):
            each = [
                {name for name in node.presence.client_ids() if is_in(node.presence.standing_of(name))}
                for node in self.fleet
            ]
            kinds.append((each, Counter(name for own in each for name in own)))
        return kinds, sum(node.presence.connections for node in self.fleet), len(self.fleet)

    def told_by_redis(self):
        """The same of what it holds."""
        prefix, asks = self.fleet.prefix, self.fleet[0].asks
        kinds = []
        for kind in ("known", "active"):
            each = [
                {name.decode() for name in asks("SMEMBERS", f"{prefix}{kind}:{node.fleet.node}")} for node in self.fleet
            ]
            flat = asks("HGETALL", f"{prefix}{kind}")
            counts = {name.decode(): int(number) for name, number in zip(flat[::2], flat[1::2], strict=True)}
            kinds.append((each, Counter(counts)))
        connections = sum(map(int, asks("HVALS", f"{prefix}connections:each")))
        return kinds, connections, asks("ZCARD", f"{prefix}nodes")


def walk(gather, redis, seed, steps, monkeypatch):
    monkeypatch.setattr(fleets, "_SLICE", 5)
    fleet = gather(redis, 3, refresh=QUICK)
    walk = Walk(fleet, redis, seed)
    walk.run(steps)
    return walk.taken


def test_after_whatever_happens_all_say_what_a_recount_finds(gather, redis, monkeypatch):
    walk(gather, redis, 1, 25, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_after_a_lot_has_happened_too(gather, redis, monkeypatch, seed):
    taken = walk(gather, redis, seed, 150, monkeypatch)

    print(taken)
    assert sum(taken.values()) == 150


# As somebody has it who runs a server.


def test_a_url_that_is_none_is_said_in_one_sentence_without_its_password():
    with pytest.raises(SettingError, match=r"^cluster must be redis://.*, not 'redis://user@host/x'$"):
        FleetPresence("redis://user:secret@host/x")


def test_the_service_has_its_clients_counted_with_those_of_the_fleet_from_its_start_to_its_stop(redis, turns, gather):
    (other,) = fleet = gather(redis, 1)
    other.opens("bob")
    here = FleetPresence(redis.url, prefix=fleet.prefix, reactor=turns.reactor)
    service = HeartbeatService(cluster=here, reactor=MemoryReactorClock())
    presence = service.factory.presence
    view = View(service.factory)
    assert (view.unready, view.totals(Lines())["fleet"]["up"]) == ("the sessions have not been read yet", False)

    service.privilegedStartService()
    service.startService()
    turns.until(lambda: here.is_up and presence.clients == 1)
    presence.stand(presence.open("alice"), ACTIVE)
    turns.until(lambda: other.fleet.counts == (2, 2, 2))
    told = {"up": True, "nodes": 2, "clients": 2, "known": 2, "connections": 2}
    assert view.totals(Lines())["fleet"] == told
    assert metrics(view) == {"cluster_up": 1, "nodes": 2, "clients": 2, "known": 2, "connections": 2}

    redis.kill()
    turns.until(lambda: not here.is_up)
    # Clients may be sent here as ever.
    assert view.unready == ""
    assert metrics(view) == {"cluster_up": 0, "nodes": 2, "clients": 2, "known": 2, "connections": 2}
    redis.start()
    turns.until(lambda: here.is_up)
    stopped = service.stopService()
    turns.result(stopped)
    fleet.settle()
    assert (here.is_up, presence.changed) == (False, None)


def metrics(view):
    """What is told of the fleet."""
    text, _ = Metrics(view).text("", Lines())
    lines = re.findall(rb"^heartbeat_(cluster_up|fleet_\w+) (\S+)$", text, re.MULTILINE)
    return {name.decode().removeprefix("fleet_"): float(value) for name, value in lines}


def parsed(*arguments):
    options = Options()
    options.parseOptions(list(arguments))
    return options


def test_the_option_names_the_redis_and_the_file_may_too(tmp_path):
    (tmp_path / "heartbeat.toml").write_text('cluster = "redis://host/2"\nstore = "redis://host/3"\n')

    fleet = parsed("--cluster", "redis://user:secret@host:1/2").service().factory.heartbeat.fleet
    assert fleet.url == "redis://user@host:1/2"
    assert parsed("--config", str(tmp_path / "heartbeat.toml")).service().factory.heartbeat.fleet.address[2] == 2
    assert parsed().service().factory.heartbeat.fleet is None


WRONG = {
    ("--cluster=redis",): "--cluster must be redis://",
    ("--cluster=http://host",): "--cluster must be redis://",
    ("--cluster=redis://u:secret@h", "--store=redis://u:secret@h:6379/0"): (
        "--store must be one that no other server has, and so not in the database of --cluster redis://u@h, "
        "not 'redis://h:6379/0'"
    ),
}


@pytest.mark.parametrize(("arguments", "sentence"), WRONG.items())
def test_a_wrong_one_is_one_sentence(arguments, sentence):
    with pytest.raises(UsageError) as refusal:
        parsed(*arguments)

    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("option", ["cluster", "store"])
def test_where_the_extra_is_missing_that_is_said(monkeypatch, option):
    for name in [name for name in sys.modules if name.startswith("heartbeat.cluster.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hiredis", None)

    with pytest.raises(UsageError, match=r"without the extra redis: pip install 'txheartbeat\[redis\]'") as refusal:
        parsed(f"--{option}=redis://u:secret@h")

    assert str(refusal.value).startswith(f"--{option} must be ")
    assert "secret" not in str(refusal.value)


def test_the_sessions_are_the_fleets_unless_another_store_is_named(capsys):
    def store_of(*arguments):
        return parsed("--cluster=redis://host", *arguments).service().factory.heartbeat.sessions.store

    assert (type(store_of()), store_of().path) == (FleetStore, "redis://host")
    assert type(store_of("--store=memory")) is MemoryStore
    with pytest.raises(SystemExit):
        parsed("--help")
    assert "have the sessions in common" in " ".join(capsys.readouterr().out.split())
