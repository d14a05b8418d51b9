"""A server that goes: all are asked back, each at another moment, and nobody is cut off in the middle of a message."""

import random
from collections import Counter

import peers
import pytest
from test_chat import Person
from twisted.internet.defer import Deferred

from heartbeat import HeartbeatClient, Settings


@pytest.fixture
def person(connect):
    """A client in a session of its own."""
    return lambda name, **more: Person(connect, name, **more)


def drained(peer):
    """The windows that a peer was told."""
    return [(one["min_ms"], one["max_ms"]) for one in peer.messages if one["type"] == "drain"]


def test_who_is_in_a_session_is_told_a_window_and_closed(serve, person, world):
    factory = serve(drain_after=2.0, drain_rate=4.0)
    alice, bob = person("alice"), person("bob")

    gone = factory.heartbeat.drain()
    world.advance(0.1)

    for one in (alice, bob):
        assert drained(one.peer) == [(2000, 2500)]
        assert one.peer.frames[-1][0] == peers.CLOSE
        assert (one.peer.closed_with, one.peer.close_reason) == (1012, "the server restarts")
    world.advance(1.5)
    assert gone.called


def test_without_anybody_it_is_gone_at_once(serve):
    assert serve().heartbeat.drain().called


def test_a_client_is_not_asked_to_stay_away_for_longer_than_half_of_its_window(serve, person, world):
    factory = serve(drain_after=2.0, drain_rate=0.1, window=60.0, grace=40.0)
    alice, bob = person("alice"), person("bob")
    person("carol")
    person("dave")

    factory.heartbeat.drain()
    world.advance(2)

    assert drained(alice.peer) == drained(bob.peer) == [(2000, 30_000)]


def test_a_message_that_is_being_handled_is_finished_and_acknowledged_before_the_close(serve, person, world):
    factory, at_work = serve(), Deferred()
    factory.register("work", lambda protocol, message: at_work)
    alice, bob = person("alice"), person("bob")
    alice.say(type="work")

    gone = factory.heartbeat.drain()
    world.advance(3)
    assert (alice.peer.closed_with, bob.peer.closed_with) == (None, 1012)
    assert len(drained(alice.peer)) == 1

    at_work.callback(None)
    world.advance(0.3)
    assert alice.peer.messages[-1] == {"type": "ack", "ack": 1}
    assert alice.peer.closed_with == 1012
    world.advance(1.5)
    assert gone.called


def test_what_takes_too_long_is_not_waited_for(serve, person, world):
    factory, at_work = serve(drain_timeout=4.0), Deferred()
    factory.register("work", lambda protocol, message: at_work)
    alice = person("alice")
    alice.say(type="work")

    gone = factory.heartbeat.drain()
    world.advance(3.5)
    assert alice.peer.closed_with is None
    world.advance(1)
    assert alice.peer.closed_with == 1012
    assert not [one for one in alice.peer.messages if one["type"] == "ack"]
    world.advance(1.5)
    assert gone.called


def test_without_any_time_all_are_told_and_closed_at_once(serve, person, connect, world):
    factory = serve(drain_timeout=0.0)
    factory.register("work", lambda protocol, message: Deferred())
    alice, page = person("alice"), connect().open()
    alice.say(type="work")

    gone = factory.heartbeat.drain()
    world.advance(0.1)

    assert drained(alice.peer) == [(1000, 1004)]
    assert (alice.peer.closed_with, page.closed_with) == (1012, 1012)
    world.advance(1.5)
    assert gone.called


def test_a_page_without_a_session_is_told_nothing_and_closed_at_a_moment_of_its_own(serve, connect, world):
    factory = serve(drain_rate=2.0, tick=0.05)
    pages = [connect().open() for _ in range(4)]
    began = world.now

    factory.heartbeat.drain()
    closed = {}
    while len(closed) < 4:
        world.advance(0.05)
        closed |= {
            number: world.now - began for number, page in enumerate(pages) if page.closed_with and number not in closed
        }

    assert sorted(closed.values()) == [pytest.approx(at, abs=0.15) for at in (0.05, 0.5, 1.0, 1.5)]
    assert [page.texts for page in pages] == [[]] * 4


def test_pages_are_all_closed_in_half_of_the_time_however_many_they_are(serve, connect, world):
    factory = serve(drain_rate=0.1, drain_timeout=2.0)
    pages = [connect().open() for _ in range(4)]

    factory.heartbeat.drain()
    world.advance(1.1)

    assert [page.closed_with for page in pages] == [1012] * 4


def test_who_is_still_shaking_hands_is_dropped(serve, connect, world):
    factory = serve()
    slow = connect()
    slow.write(peers.request()[:20])

    gone = factory.heartbeat.drain()
    world.advance(0.1)

    assert slow.ended is not None
    assert gone.called


def test_who_does_not_answer_the_close_is_dropped(serve, person, world):
    factory = serve()
    alice = person("alice")
    alice.peer.transport.pauseProducing()

    gone = factory.heartbeat.drain()
    world.advance(1.5)

    assert gone.called


def test_asked_twice_it_tells_everybody_once(serve, person, world):
    factory = serve()
    alice = person("alice")

    both = [factory.heartbeat.drain(), factory.heartbeat.drain()]
    world.advance(2)

    assert len(drained(alice.peer)) == 1
    assert all(gone.called for gone in both)


def test_a_server_that_starts_again_serves_as_ever(serve, person, world, still_serves):
    factory = serve()
    person("alice")
    factory.heartbeat.drain()
    world.advance(2)
    assert factory.heartbeat.draining is not None

    factory.heartbeat.start()

    assert factory.heartbeat.draining is None
    still_serves()


class Back(HeartbeatClient):
    """Knows when it was connected."""

    def __init__(self, *arguments, **more):
        self.opened = []
        super().__init__(*arguments, **more)

    def linkChanged(self, status):
        if status.event == "open":
            self.opened.append(self.world.now)


def test_a_crowd_comes_back_inside_the_window_and_without_a_peak(serve, world):
    """The busiest second has at most twice as many as the mean, and no attempt was in vain."""
    factory = serve(drain_after=1.0, drain_rate=10.0)
    clients = []
    for number in range(100):
        client = Back(
            "ws://test/ws", settings=Settings(client_id=f"c{number}"), reactor=world.client, endpoint=world.endpoint()
        )
        client.world, client._chance = world, random.Random(number).random
        client.startService()
        clients.append(client)
    world.advance(10)
    assert len(factory.heartbeat.edges) == 100
    began = world.now

    gone = factory.heartbeat.drain()
    world.advance(2)
    assert gone.called
    factory.heartbeat.start()
    world.advance(20)

    back = [client.opened[-1] - began for client in clients]
    assert [len(client.opened) for client in clients] == [2] * 100
    # Ten seconds for a hundred, after the first.
    assert min(back) > 0.9
    assert max(back) < 11.5
    assert max(Counter(int(at) for at in back).values()) <= 2 * 100 / 10
    for client in clients:
        client.stopService()
    world.advance(2)
