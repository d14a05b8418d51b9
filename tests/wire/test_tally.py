"""What a server counts for whoever watches it: each number is raised by what it is named after, and by nothing else."""

import struct

import peers
import pytest
from test_chat import Person

from heartbeat.core.errors import CloseCode
from heartbeat.tally import DETECTION, MOST_DEATHS, REFUSALS, VERDICTS, Histogram, Tally, _ended_by

WALL = 1_800_000_000.0


@pytest.fixture
def served(serve):
    """A server, with a clock on the wall that stands still, and its tally."""

    def served(**settings):
        factory = serve(**settings)
        factory.heartbeat.tally._wall = lambda: WALL
        return factory, factory.heartbeat.tally

    return served


@pytest.fixture
def person(connect):
    """A client of bytes in a session of its own."""
    return lambda name, **more: Person(connect, name, **more)


def numbers(tally):
    """All that is counted, but for ticks, as far as it is not nothing."""
    counted = {name: value for name, value in vars(tally).items() if isinstance(value, int) and value}
    for name in ("closed", "convictions", "resumes_refused"):
        counted |= {(name, word): count for word, count in getattr(tally, name).items() if count}
    for name in ("detection", "round_trips"):
        if len(getattr(tally, name)):
            counted[name] = len(getattr(tally, name))
    return counted


# Who comes and goes.


def test_a_server_that_nobody_has_come_to_has_counted_nothing(served, connect):
    """Nor does who asks for a page, or never asks for anything."""
    _, tally = served()
    assert numbers(tally) == {}

    connect().write(b"GET / HTTP/1.1\r\n\r\n")
    connect().transport.loseConnection()
    assert numbers(tally) == {}


CLOSES = {
    "a code of the wire's": (peers.frame(struct.pack("!H", 1000), peers.CLOSE), ("client", "1000")),
    "a code of nobody's": (peers.frame(struct.pack("!H", 4321), peers.CLOSE), ("client", "other")),
    "no code": (peers.frame(b"", peers.CLOSE), ("client", "none")),
    "what is no frame": (peers.frame(b"x", 3), ("server", "1002")),
    "what is too big": (peers.frame(b"x", length=10_000_000), ("server", "1009")),
}


@pytest.mark.parametrize(("said", "ended"), CLOSES.values(), ids=CLOSES)
def test_who_ended_a_connection_and_how_is_counted(served, connect, world, said, ended):
    """A stranger may choose among thousands of codes; those that mean nothing are counted as one."""
    _, tally = served()
    peer = connect().open()
    assert numbers(tally) == {"opened": 1}

    peer.write(said)
    world.advance(2)
    assert numbers(tally) == {"opened": 1, ("closed", ended): 1}
    assert list(tally.deaths) == []


def test_a_server_that_is_drained_has_ended_its_connections_itself(served, person, world):
    factory, tally = served()
    person("alice")
    factory.heartbeat.drain()
    world.advance(3)

    assert numbers(tally) == {"opened": 1, ("closed", ("server", "1012")): 1}


def test_a_connection_that_breaks_is_a_death_with_its_evidence(served, person, world):
    """Nobody had said goodbye: who it was, when, and what was known of the link."""
    _, tally = served()
    alice = person("alice")
    world.advance(2)
    alice.peer.say({"type": "ping"})
    world.advance(1)
    alice.peer.transport.abortConnection()
    world.advance(0.1)

    assert numbers(tally) == {"opened": 1, ("closed", ("nobody", "none")): 1}
    (death,) = tally.deaths
    assert (death.at, death.client_id, death.reason, death.level) == (WALL, "alice", "broken", 1)
    assert death.peer == "tcp4:127.0.0.1:50000"
    assert death.detail == "the connection broke, and neither end had said goodbye"
    assert death.silent_for == pytest.approx(1.0, abs=0.15)
    assert death.age == pytest.approx(3.1, abs=0.15)


class _Dropped:
    """A protocol that we have aborted without a word."""

    closedByMe = wasClean = False
    remoteCloseCode = localCloseCode = None
    droppedByMe = True


def test_an_abort_of_ours_is_no_death():
    assert _ended_by(_Dropped) == ("server", "none")


# Suspicions, and how they end.


def test_a_peer_that_falls_silent_is_suspected_and_convicted_after_as_long_as_is_told(served, connect, world):
    """The time of detection is that from its last byte, and within the bound; the close that follows is ours."""
    factory, tally = served()
    peer = connect().open()
    peer.say({"type": "ping"})
    world.cut()
    world.advance(12.3)
    assert numbers(tally) == {"opened": 1, "suspicions": 1}

    world.advance(6)
    assert numbers(tally) == {
        "opened": 1,
        "suspicions": 1,
        ("convictions", "silent"): 1,
        "detection": 1,
        ("closed", ("server", "4000")): 1,
    }
    bound = factory.heartbeat_settings.timing().watching_bound
    assert 15.0 <= tally.detection.sum <= bound
    assert tally.detection.counts[DETECTION.index(15.5)] == 1
    (death,) = tally.deaths
    assert (death.reason, death.level, death.at) == ("silent", 0, WALL)
    assert death.silent_for == tally.detection.sum
    assert death.detail.startswith("nothing received for 15.")
    assert death.age == pytest.approx(death.silent_for, abs=0.2)
    assert death.client_id.startswith("c-")


@pytest.mark.parametrize("beats", ["client", "server"])
def test_the_evidence_says_for_how_long_no_ping_was_answered(served, connect, person, world, beats):
    """Three seconds of a probe, where the server watches; those of the ping before it too, where it pings."""
    _, tally = served(beats=beats, interval=1.0)
    person("alice")
    world.advance(2)
    world.cut()
    world.advance(20)

    (death,) = tally.deaths
    assert (death.client_id, death.reason) == ("alice", "silent")
    least = 3.0 if beats == "client" else 6.0
    assert least - 1e-6 <= death.unanswered_for <= death.silent_for


def test_a_suspicion_ends_well_when_the_probe_is_answered(served, connect, world):
    _, tally = served()
    peer = connect().open()
    world.advance(12.5)
    assert numbers(tally) == {"opened": 1, "suspicions": 1}
    (ping,) = [payload for opcode, payload in peer.frames if opcode == peers.PING]

    peer.write(peers.frame(ping, peers.PONG))
    assert numbers(tally) == {"opened": 1, "suspicions": 1, "relieved": 1, "round_trips": 1}
    peer.say({"type": "ping"})
    assert tally.relieved == 1


def test_a_suspicion_that_bytes_end_has_ended_well_once(served, person, world):
    """A server that pings first waits for the answer again: that is the same relief, and no other."""
    _, tally = served(beats="server", interval=1.0)
    alice = person("alice")
    world.advance(10)
    assert tally.suspicions == 1
    alice.peer.say({"type": "nothing", "seq": 1})
    assert tally.relieved == 1
    pings = [one for one in alice.peer.messages if one["type"] == "ping" and "status" not in one]
    alice.peer.say({"type": "ping", "id": pings[-1]["id"], "status": "pong"})
    assert (tally.suspicions, tally.relieved) == (1, 1)


def test_one_that_goes_while_it_is_suspected_is_neither_relieved_nor_kept(served, connect, world):
    _, tally = served()
    peer = connect().open()
    world.advance(12.5)
    peer.transport.abortConnection()
    world.advance(2)

    assert numbers(tally) == {"opened": 1, "suspicions": 1, ("closed", ("nobody", "none")): 1}
    assert tally._suspected == {}


def test_a_peer_that_sends_bytes_and_no_answers_is_convicted_for_that(served, person, world):
    _, tally = served(beats="server", interval=1.0)
    alice = person("alice")
    for _ in range(90):
        world.advance(1)
        alice.peer.transport.write(peers.frame(b"", peers.PONG))

    assert tally.convictions["no-pong"] == 1
    assert tally.deaths[-1].reason == "no-pong"
    assert tally.deaths[-1].busy
    assert tally.deaths[-1].unanswered_for == 60.0


def test_no_ping_of_a_clients_is_counted(served, person, world):
    """An ordinary beat changes no number at all: it costs what it costs without a tally."""
    _, tally = served()
    alice = person("alice")
    before = numbers(tally)
    for _ in range(10):
        world.advance(5)
        alice.peer.say({"type": "ping"})

    assert numbers(tally) == before == {"opened": 1}


# Round trips.


def test_the_round_trips_are_those_of_the_servers_own_pings(served, start_client, world):
    """One by one, as long as the network takes."""
    _, tally = served(beats="server", interval=1.0)
    start_client()
    world.advance(10.5)

    assert 8 <= len(tally.round_trips) <= 11
    # 10 ms each way.
    assert tally.round_trips.sum / len(tally.round_trips) == pytest.approx(0.02, abs=1e-6)


def test_an_answer_during_a_stall_of_ours_says_nothing(served, person, world):
    _, tally = served(beats="server", interval=1.0)
    alice = person("alice")
    world.advance(1.5)
    ping = [one for one in alice.peer.messages if one["type"] == "ping" and "status" not in one][-1]
    world.stall(2.0)
    alice.peer.say({"type": "ping", "id": ping["id"], "status": "pong"})
    world.advance(2.5)

    assert len(tally.round_trips) == 0


# Who comes back.


def test_a_session_that_is_resumed_is_counted_with_what_is_written_again(served, start_client, world):
    """Three messages had been written and not confirmed; two that waited are written for the first time."""
    _, tally = served()
    client = start_client(client_id="alice")
    protocol = world.connections[-1][0].protocol
    channel = protocol._heartbeat.channel
    world.cut(towards=None)
    for n in range(3):
        protocol.send({"type": "note", "n": n})
    world.advance(20)
    assert client.status.event == "reconnecting"
    for n in range(3, 5):
        channel.send({"type": "note", "n": n})
    world.heal()
    world.advance(30)

    assert [message["n"] for message in client.messages] == [0, 1, 2, 3, 4]
    assert (tally.resumes, tally.reconnects, tally.replayed) == (1, 1, 3)
    assert tally.opened == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sid": "s-unknown"}, "unknown"),
        ({"epoch": "e-unknown"}, "epoch"),
        ({"last": 7}, "gap"),
    ],
)
def test_a_session_that_is_not_resumed_is_counted_by_the_reason_that_was_given(served, person, world, change, reason):
    _, tally = served()
    alice = person("alice")
    session = alice.resume() | change
    alice.peer.transport.abortConnection()
    world.advance(1)
    again = person("alice", resume=session)

    assert (again.answer["resumed"], again.answer["reason"]) == (False, reason)
    assert tally.resumes_refused == dict.fromkeys(REFUSALS, 0) | {reason: 1}
    assert (tally.resumes, tally.reconnects) == (0, 1)


def test_one_that_names_somebody_elses_session_has_auth_for_a_reason(served, person):
    _, tally = served()
    alice = person("alice")
    bob = person("bob", resume=alice.resume())

    assert bob.answer["reason"] == "auth"
    assert tally.resumes_refused["auth"] == 1


def test_a_client_that_comes_back_without_its_session_is_a_reconnect(served, person, world):
    """It has another session, which waits; a second tab, and a newcomer, are none."""
    _, tally = served()
    alice = person("alice")
    person("alice")
    person("bob")
    assert tally.reconnects == 0

    for server_end, client_end in world.connections:
        if server_end.protocol._heartbeat.link.client_id == "alice":
            client_end.abortConnection()
    world.advance(1)
    assert alice.peer.ended is not None
    person("alice")
    assert (tally.reconnects, tally.resumes) == (1, 0)


class _Doorman:
    def authenticate(self, credentials):
        return "alice"


def test_a_page_that_is_somebody_and_comes_back_in_its_grace_is_a_reconnect(serve, connect, world):
    """At level 0 an Authenticator's word is how anybody is known again."""
    factory = serve(level0="allow")
    factory.heartbeat.admission.authenticator = _Doorman()
    tally = factory.heartbeat.tally
    page = connect().open("/ws?token=t")
    page.say({"type": "ping"})
    page.transport.abortConnection()
    world.advance(1)
    assert tally.reconnects == 0

    connect().open("/ws?token=t").say({"type": "ping"})
    assert tally.reconnects == 1


# Lateness.


def test_a_tick_that_comes_late_is_noted_with_how_late_it_was(served, connect, world):
    _, tally = served(tick=0.2)
    connect().open()
    world.advance(2)
    assert len(tally.lag) in (10, 11)
    assert tally.lag.sum == pytest.approx(0.0, abs=1e-6)

    world.stall(3.0)
    world.advance(3.3)
    assert tally.lag.sum == pytest.approx(2.9, abs=0.21)
    assert tally.lag.counts[tally.lag.bounds.index(5.0)] == 1


def test_the_time_in_which_nobody_is_connected_is_no_lateness(served, connect, world):
    _, tally = served()
    connect().open().leave()
    world.advance(100)
    connect().open()
    world.advance(1)

    assert tally.lag.sum == pytest.approx(0.0, abs=1e-6)


# How it is kept.


def test_the_last_hundred_deaths_are_remembered(served, connect, world):
    _, tally = served()
    for _ in range(MOST_DEATHS + 3):
        connect().open().transport.abortConnection()
        world.advance(0.05)

    assert len(tally.deaths) == MOST_DEATHS
    assert tally.closed["nobody", "none"] == MOST_DEATHS + 3
    assert tally.deaths[-1].age < 1
    world.advance(0.3)


def test_a_histogram_counts_up_to_and_with_each_bound():
    noted = Histogram((1.0, 2.0))
    for number in (0.0, 1.0, 1.5, 2.0, 2.5, 100.0):
        noted.note(number)

    assert noted.counts == [2, 2, 2]
    assert noted.sum == 107.0
    assert len(noted) == 6


def test_every_word_that_may_come_is_there_from_the_start():
    """A counter that appears with its first event hides that event from whoever asks how much it grew."""
    tally = Tally()

    assert set(tally.convictions) == set(VERDICTS)
    assert set(tally.resumes_refused) == set(REFUSALS)


def test_every_code_of_ours_is_counted_by_its_number():
    class Ended:
        closedByMe = True

    for code in CloseCode:
        Ended.localCloseCode = code
        assert _ended_by(Ended) == ("server", str(int(code)))
