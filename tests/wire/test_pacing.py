"""How fast one connection may talk: whoever talks faster is read from more slowly, and sent away when he will not rest.

Each on the short way through the server and on the long one. What comes is counted by its frames and pieces, whatever
they hold; nobody is convicted by a pause of ours.
"""

import json

import pytest
from autobahn.twisted.websocket import WebSocketServerProtocol
from peers import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame

from heartbeat import Settings
from heartbeat.arrivals import Arrivals
from heartbeat.chat import GroupChat
from heartbeat.core.monitor import State
from heartbeat.core.running import RunningTime
from heartbeat.mixin import HeartbeatServerMixin
from heartbeat.pacing import Pacing
from heartbeat.refusals import Refusals
from heartbeat.store import MemoryStore
from heartbeat.testing import MemoryTransport
from heartbeat.web.site import make_site

FAR = "192.0.2.7"

PING_TEXT = frame(b'{"type":"ping"}')
# What a peer may say to have us busy, at a byte or some more apiece.
FRAMES = {
    "JSON pings": PING_TEXT,
    "ping frames": frame(b"", PING),
    "pong frames": frame(b"", PONG),
    "what is no JSON": frame(b"{"),
    "messages of no known type": frame(b'{"type":"x"}'),
    "binary frames": frame(b"\0", BINARY),
    "messages in two pieces": frame(b"{", TEXT, fin=False) + frame(b"}", CONTINUATION),
}

# Messages a second where nothing was set, and as many as may come at once.
RATE = 200
BURST = 2 * RATE


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def serve_by(request, serve, world):
    """A server on either path; its clients come from the open network unless it is said otherwise."""
    world.client_host = FAR

    def serve_by(**settings):
        return serve(fast_path=request.param, **settings)

    return serve_by


def paused(world, at=-1):
    """Whether the server reads nothing from a connection, the latest."""
    return world.connections[at][0].paused


def waited(world, seconds, step=0.05):
    """How long the latest connection is not read from, of these seconds."""
    total = 0.0
    for _ in range(round(seconds / step)):
        total += step if paused(world) else 0.0
        world.advance(step)
    return total


@pytest.mark.parametrize("kind", FRAMES)
def test_two_seconds_worth_may_come_at_once(serve_by, connect, world, kind):
    """A burst is no haste: nothing waits, nothing is counted as refused."""
    factory = serve_by()
    peer = connect().open()
    # Of messages in two pieces each piece costs as much as a message.
    apiece = 3 if "pieces" in kind else 1
    peer.write(FRAMES[kind] * (BURST // apiece))

    assert not paused(world)
    assert factory.refused.get("slowed-down", 0) == 0
    assert peer.closed_with is None


@pytest.mark.parametrize("kind", FRAMES)
def test_who_sends_more_is_not_read_from_for_a_moment(serve_by, connect, world, kind):
    """Half a second's worth too much: read on half a second later, and nobody is closed for that."""
    factory = serve_by()
    peer = connect().open()
    peer.write(FRAMES[kind] * (BURST + RATE // 2))

    assert paused(world)
    assert factory.refused["slowed-down"] == 1
    assert 0.4 <= waited(world, 3) <= 1.3
    assert not paused(world)
    assert peer.closed_with is None
    peer.write(PING_TEXT)
    assert peer.messages[-1].items() >= {"type": "ping", "status": "pong"}.items()


@pytest.mark.parametrize("kind", FRAMES)
def test_who_owes_more_than_ten_seconds_is_closed_1008_with_the_name_of_the_setting(serve_by, connect, world, kind):
    """One chunk of fourteen seconds' worth: answers come before the close, and nothing after it."""
    factory = serve_by()
    peer = connect().open()
    peer.write(FRAMES[kind] * (14 * RATE))
    world.advance(3)

    assert peer.closed_with == 1008
    assert "message_rate" in peer.close_reason
    assert factory.refused["message_rate"] == 1
    assert peer.ended is not None
    assert factory.countConnections == 0
    # RFC 6455, section 5.5.1: "MUST NOT send any more data frames after sending a Close frame".
    assert [opcode for opcode, _ in peer.frames].index(CLOSE) == len(peer.frames) - 1


@pytest.mark.parametrize("kind", FRAMES)
def test_a_flood_that_does_not_end_is_closed_within_seconds(serve_by, connect, world, kind):
    """Five times what is allowed, second by second, in chunks of a tenth."""
    factory = serve_by()
    peer = connect().open()
    for _ in range(100):
        if peer.ended is not None:
            break
        peer.transport.write(FRAMES[kind] * (RATE // 2))
        world.advance(0.1)
    assert peer.closed_with == 1008
    assert world.now < 8
    assert factory.refused["slowed-down"] >= 1


@pytest.mark.parametrize("kind", ["JSON pings", "ping frames"])
def test_who_keeps_to_the_rate_is_never_slowed_down(serve_by, connect, world, kind):
    """A minute at nine tenths of it."""
    factory = serve_by()
    peer = connect().open()
    for _ in range(600):
        peer.transport.write(FRAMES[kind] * (RATE * 9 // 100))
        world.advance(0.1)

    assert factory.refused == {}
    assert len(peer.frames) == 600 * (RATE * 9 // 100)


@pytest.mark.parametrize("kind", ["JSON pings", "ping frames"])
def test_each_frame_of_a_chunk_counts_as_much_as_one_that_comes_alone(serve_by, connect, world, kind):
    """So many in one segment, and so many in a segment each, are slowed down after the same number."""
    factory = serve_by(message_rate=10.0)
    together, apart = connect().open(), connect().open()
    together.write(FRAMES[kind] * 22)
    first = factory.refused["slowed-down"]
    for _ in range(22):
        apart.transport.write(FRAMES[kind])
    world.advance(0.02)

    assert (first, factory.refused["slowed-down"]) == (1, 2)


def test_a_chunk_of_nine_thousand_fragments_of_a_byte_costs_what_nine_thousand_messages_cost(serve_by, connect, world):
    """A text of 9,000 bytes, in as many frames, of which the last may never come."""
    for last in (True, False):
        factory = serve_by()
        peer = connect().open()
        pieces = [frame(b"x", TEXT, fin=False), *([frame(b"x", CONTINUATION, fin=False)] * 8998)]
        peer.write(b"".join(pieces) + frame(b"x", CONTINUATION, fin=last))
        world.advance(3)
        assert peer.closed_with in (1008, 1009), last
        assert factory.refused["message_rate"] + factory.refused["message_limit"] >= 1
        assert factory.refused["slowed-down"] + factory.refused["message_rate"] >= 1


@pytest.mark.slow
def test_fragments_that_hold_something_cost_no_more_than_their_message(serve_by, connect, world):
    """A message of 60,000 bytes in a frame for each KiB is a message."""
    factory = serve_by()
    peer = connect().open()
    text = json.dumps({"type": "x", "text": "y" * 60_000}).encode()
    for _ in range(100):
        at = range(0, len(text), 1024)
        peer.transport.write(
            b"".join(frame(text[n : n + 1024], CONTINUATION if n else TEXT, fin=n + 1024 >= len(text)) for n in at)
        )
    world.advance(0.1)

    assert factory.refused.get("slowed-down", 0) == 0
    assert len(peer.messages) == 100


def test_what_is_said_to_many_costs_more(serve_by, connect, world):
    """One word to 100 members counts as three, so that a group is no lever."""
    factory = serve_by(message_rate=20.0)
    GroupChat(factory)
    members = [connect().open() for _ in range(100)]
    for member in members:
        member.transport.write(frame(json.dumps({"type": "ongroupchat", "group": "room", "action": "join"}).encode()))
    world.advance(3)
    assert members[-1].messages[-1]["members"] == 100
    assert factory.refused.get("slowed-down", 0) == 0
    members[-1].say(*[{"type": "ongroupchat", "group": "room", "action": "say", "text": "hi"}] * 15)

    # 15 x 3 is over the 40 that may come at once; without the fan-out 15 would not be.
    assert factory.refused.get("slowed-down", 0) == 1
    assert members[0].messages[-1]["text"] == "hi"


# Where it holds.


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_this_machines_own_are_not_counted_unless_the_setting_is_given(serve_by, connect, world, host):
    """By default a program here may be as fast as it is; a number that was given holds for it too."""
    world.client_host = host
    factory = serve_by()
    peer = connect().open()
    peer.write(FRAMES["ping frames"] * (20 * RATE))
    assert (peer.closed_with, dict(factory.refused)) == (None, {})

    factory = serve_by(message_rate=float(RATE))
    peer = connect().open()
    peer.write(FRAMES["ping frames"] * (20 * RATE))
    assert peer.closed_with == 1008


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        (FAR, {}),
        ("10.0.0.7", {}),
        ("10.0.0.7", {"x_forwarded_for": "198.51.100.9"}),
        ("2001:db8::7", {}),
    ],
)
def test_everybody_else_is_counted(serve_by, connect, world, host, headers):
    """A proxy nearby that nobody trusts is not counted as one client; what comes by each of its connections is."""
    world.client_host = host
    factory = serve_by()
    peer = connect().open(**headers)
    peer.write(FRAMES["ping frames"] * (20 * RATE))

    assert peer.closed_with == 1008
    assert factory.refused["message_rate"] == 1


def test_behind_a_trusted_proxy_on_this_machine_each_is_counted_as_who_he_is(serve_by, connect, world):
    world.client_host = "127.0.0.1"
    factory = serve_by(trust_forwarded=1)
    peer = connect().open(x_forwarded_for="198.51.100.9")
    peer.write(FRAMES["ping frames"] * (20 * RATE))

    assert peer.closed_with == 1008
    assert factory.refused["message_rate"] == 1


# What is nobody's haste.

QUICK = {"interval": 0.1, "timeout_min": 0.05, "timeout_max": 0.05, "probe": 0.05, "tick": 0.01}


def test_a_pause_of_ours_convicts_nobody(serve_by, connect, world):
    """Not read from for a second, by a server that suspects after two tenths: what he said meanwhile counts as said."""
    factory = serve_by(**QUICK)
    told = []
    factory.protocol = type(
        "Told", (factory.protocol,), {"linkChanged": lambda self, status: told.append(status.event)}
    )
    peer = connect().open()
    peer.write(FRAMES["JSON pings"] * (BURST + 5 * RATE))
    world.advance(0.9)
    assert paused(world)
    # It goes on beating, as it would; each second more is read, until the debt is paid.
    for _ in range(100):
        peer.write(PING_TEXT)

    assert peer.closed_with is None
    assert set(told) <= {"open", "acknowledged"}, told
    assert factory.refused["slowed-down"] >= 1


def test_a_dead_peer_is_found_after_a_pause_as_ever(serve_by, connect, world):
    """A flood, and then nothing for ever, over a line that is cut: convicted within the bound."""
    factory = serve_by()
    peer = connect().open()
    peer.write(FRAMES["JSON pings"] * (BURST + 5 * RATE))
    assert paused(world)
    world.cut()
    world.advance(1.0 + factory.heartbeat_settings.timing().watching_bound + 1.2)

    assert factory.countConnections == 0


def enter(connect, **members):
    """A session, with its first beat."""
    peer = connect().open()
    peer.say({"type": "onopen", "v": 1, **members}, {"type": "ping"})
    return peer


def session_of(peer, sent, attempt=1):
    answer = peer.messages[0]
    return {"sid": answer["sid"], "epoch": answer["epoch"], "last": 0, "sent": sent, "try": attempt}


def numbered(upto):
    return [frame(b'{"type":"x","seq":%d}' % seq) for seq in range(1, upto + 1)]


def test_a_replay_is_not_counted(serve_by, connect, world):
    """A thousand messages that were kept come at once when their session is resumed."""
    factory = serve_by()
    factory.register("x", lambda protocol, message: None)
    first = enter(connect)
    first.transport.abortConnection()
    world.advance(0.1)
    back = enter(connect, session=session_of(first, sent=1000))
    assert back.messages[0]["resumed"] is True
    back.write(b"".join(numbered(1000)))
    world.advance(1)

    assert factory.refused.get("slowed-down", 0) == 0
    assert max(message.get("ack", 0) for message in back.messages) == 1000


def test_nobody_is_credited_a_replay_longer_than_what_can_be_kept(serve_by, connect, world):
    """Who says that he has sent millions did not keep them: a session keeps a thousand."""
    factory = serve_by()
    factory.register("x", lambda protocol, message: None)
    first = enter(connect)
    first.transport.abortConnection()
    world.advance(0.1)
    back = enter(connect, session=session_of(first, sent=10**9))
    back.write(FRAMES["ping frames"] * (1000 + BURST + 11 * RATE))
    world.advance(3)

    assert back.closed_with == 1008
    assert factory.refused["message_rate"] == 1


def test_what_piled_up_while_we_stood_still_is_no_haste(serve_by, connect, world):
    """Ten seconds of a stalled server, at nine tenths of the rate: all is read at once, and answered."""
    factory = serve_by()
    peer = connect().open()
    world.advance(1)
    world.stall(10)
    for _ in range(10):
        peer.transport.write(PING_TEXT * (RATE * 9 // 10))
        world.advance(1)
    world.advance(0.5)

    assert factory.refused == {}
    assert len(peer.messages) == 9 * RATE


@pytest.mark.slow
def test_stalls_of_long_ago_are_no_credit_for_a_flood(serve_by, connect, world):
    """A minute of stalls, an hour ago, in which this peer said little: what comes now has not piled up then."""
    factory = serve_by()
    peer = connect().open()
    for _ in range(30):
        world.stall(2)
        world.advance(3)
        peer.write(PING_TEXT)
    for _ in range(600):
        world.advance(6)
        peer.write(PING_TEXT)
    peer.write(FRAMES["ping frames"] * (BURST + 11 * RATE))
    world.advance(3)

    assert peer.closed_with == 1008
    assert factory.refused["message_rate"] == 1


# All of one address together.


def flooders(connect, count, frames):
    """So many connections that each send this at once."""
    peers = [connect().open() for _ in range(count)]
    for peer in peers:
        peer.transport.write(frames)
    return peers


def test_an_address_has_as_many_messages_as_fifty_connections_and_is_only_slowed_down(serve_by, connect, world):
    """Sixty of it, each within his own pace: read from more slowly, nobody closed, and another is not slowed."""
    factory = serve_by(message_rate=10.0)
    peers = flooders(connect, 60, PING_TEXT * 20)
    world.advance(0.1)
    assert factory.refused["slowed-down"] >= 1
    assert "message_rate" not in factory.refused
    before = factory.refused["slowed-down"]

    world.client_host = "198.51.100.9"
    other = connect().open()
    other.write(PING_TEXT * 20)
    assert len(other.messages) == 20
    assert factory.refused["slowed-down"] == before
    world.advance(5)
    assert all(peer.closed_with is None for peer in peers)
    assert all(len(peer.messages) == 20 for peer in peers)


@pytest.mark.slow
def test_when_a_flood_is_over_its_address_is_served_as_ever_soon_after(serve_by, connect, world):
    """A hundred flooders were sent away: who comes from their address ten seconds later is not slowed down."""
    factory = serve_by()
    peers = flooders(connect, 100, FRAMES["ping frames"] * (20 * RATE))
    world.advance(3)
    assert [peer.closed_with for peer in peers] == [1008] * 100
    world.advance(11)
    before = factory.refused["slowed-down"]
    newcomer = connect().open()
    newcomer.write(PING_TEXT * 50)

    assert len(newcomer.messages) == 50
    assert factory.refused["slowed-down"] == before
    assert not paused(world)


def test_a_store_that_is_slow_makes_nobody_hasty(serve_by, connect, world):
    """While an opening is judged nothing is read; what has waited for it is counted like the rest, and no more."""
    factory = serve_by()
    assert isinstance(factory.heartbeat.sessions.store, MemoryStore)
    peer = connect().open()
    peer.say({"type": "onopen", "v": 1}, *[{"type": "ping"}] * (BURST - 1))

    assert factory.refused.get("slowed-down", 0) == 0
    assert peer.messages[-1]["status"] == "pong"


def test_a_paced_link_is_as_healthy_as_any(serve_by, connect, world):
    """Slowed down, and released: acknowledged, and the only timers left are the tick's."""
    factory = serve_by()
    peer = connect().open()
    peer.write(FRAMES["JSON pings"] * (BURST + RATE))
    world.advance(3)
    edge = next(iter(factory.heartbeat.edges))

    assert not paused(world)
    assert edge.link.monitor.state is State.ACKNOWLEDGED
    assert peer.closed_with is None


def test_what_was_credited_is_kept_until_it_is_used():
    """A replay may come little by little: what is left of its credit after that is not taken back."""
    running = RunningTime(0.25, 0.0)
    pacing = Pacing(Arrivals(Settings(message_rate=RATE), None, Refusals()), None, running, 0.0)
    left = 0
    pacing.credit(5 * BURST)
    for second in range(10):
        left, owed, _ = pacing.count(left - 8, running, float(second))
        assert owed == 0

    left, owed, _ = pacing.count(left - 5 * BURST, running, 10.0)
    assert owed == 0
    assert not pacing.hasty


def test_of_whom_nothing_is_known_each_message_is_counted_alone_and_of_others_eight_at_once():
    """And who becomes known may send as much at once as before."""
    running = RunningTime(0.25, 0.0)
    pacing = Pacing(Arrivals(Settings(message_rate=RATE), None, Refusals()), None, running, 0.0)
    assert pacing.count(-1, running, 0.0) == (0, 0, 0)

    pacing.known()

    left, came = 0, 1
    for _ in range((BURST - 1) // 8):
        left, owed, _ = pacing.count(-1, running, 0.0)
        came += 8
        assert (left, owed) == (7, 0)
    assert came == BURST - 7


# Who is read last, on a reactor that knows of that.


class Ranks:
    """Such a reactor, as far as a transport sees it: who is to be read last."""

    def __init__(self):
        self.last = set()
        self.told = 0

    def read_last(self, reader):
        self.told += 1
        self.last.add(reader)

    def read_first(self, reader):
        self.told += 1
        self.last.discard(reader)


@pytest.fixture
def ranks(monkeypatch):
    ranks = Ranks()
    monkeypatch.setattr(MemoryTransport, "reactor", ranks, raising=False)
    return ranks


@pytest.fixture
def is_last(ranks, world):
    """Whether the latest connection is read last."""
    return lambda: world.connections[-1][0] in ranks.last


def test_a_stranger_is_read_last_until_he_has_beaten(serve_by, connect, is_last):
    """And comes back for another beat: until then nothing is known of him but that he has connected."""
    serve_by()
    peer = connect()
    assert is_last()
    peer.open()
    assert is_last()
    peer.say({"type": "ping"})
    assert is_last()

    peer.say({"type": "ping"})

    assert not is_last()


def test_who_has_a_session_is_no_stranger_when_he_has_beaten(serve_by, connect, is_last):
    serve_by()

    enter(connect)

    assert not is_last()


@pytest.mark.parametrize("kind", [kind for kind in FRAMES if kind != "JSON pings"])
def test_who_says_no_beat_stays_a_stranger(serve_by, connect, is_last, world, kind):
    """However slowly he says it."""
    serve_by()
    peer = connect().open()
    for _ in range(20):
        peer.write(FRAMES[kind])
        world.advance(1)

    assert peer.closed_with is None
    assert is_last()


def test_who_was_too_fast_is_read_last_until_he_has_rested(serve_by, connect, is_last, world):
    serve_by()
    peer = connect().open()
    peer.say({"type": "ping"}, {"type": "ping"})
    assert not is_last()

    peer.write(FRAMES["JSON pings"] * (BURST + RATE))
    assert is_last()
    for _ in range(30):
        peer.write(FRAMES["JSON pings"])
        world.advance(0.2)

    assert peer.closed_with is None
    assert not is_last()


def test_who_keeps_to_his_pace_is_never_ranked_again(serve_by, connect, ranks, world):
    """Of a beat no reactor is told: it costs nothing more."""
    serve_by()
    peer = connect().open()
    peer.say({"type": "ping"}, {"type": "ping"})
    told = ranks.told
    for _ in range(100):
        peer.say({"type": "ping"})
        world.advance(0.5)

    assert ranks.told == told


def test_who_is_not_counted_is_no_stranger_when_he_has_come_in(serve_by, connect, is_last, world):
    """A program on this machine."""
    world.client_host = "127.0.0.1"
    serve_by()
    peer = connect()
    assert is_last()

    peer.open()

    assert not is_last()


def test_who_reads_pages_is_read_last(serve, connect, is_last, world):
    site = make_site(world.server)
    serve(site=site)
    peer = connect()
    peer.write(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")

    assert peer.received.startswith(b"HTTP/1.1 ")
    assert is_last()
    world.advance(70)


def test_an_applications_own_connections_are_nobodys_to_rank(serve, connect, ranks):
    """Where the heartbeat is a guest."""

    class Guest(HeartbeatServerMixin, WebSocketServerProtocol):
        pass

    serve(Guest)
    peer = connect().open()
    peer.say({"type": "ping"}, {"type": "ping"})

    assert ranks.last == set()
