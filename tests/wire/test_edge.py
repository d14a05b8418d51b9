"""Between a protocol and its link: every effect is carried out, every limit kept, every mistake caught once."""

from types import SimpleNamespace

import pytest
from autobahn.websocket.protocol import TrafficStats, WebSocketProtocol
from peers import TEXT, frame
from twisted.internet.abstract import FileDescriptor
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from heartbeat.core.client_link import ClientLink
from heartbeat.core.errors import PeerError
from heartbeat.core.link import (
    Abort,
    Answered,
    Asked,
    Deliver,
    Drain,
    Joined,
    Left,
    LinkStatus,
    PingFrame,
    Refused,
    Report,
    Turn,
)
from heartbeat.core.monitor import State
from heartbeat.core.settings import Settings
from heartbeat.edge import Edge
from heartbeat.shared import ClientShared, ServerShared

OPEN, CLOSING, CLOSED, CONNECTING = (
    WebSocketProtocol.STATE_OPEN,
    WebSocketProtocol.STATE_CLOSING,
    WebSocketProtocol.STATE_CLOSED,
    WebSocketProtocol.STATE_CONNECTING,
)

STATUS = LinkStatus(event="suspect", state=None, detail="a sentence")


class Bare:
    """What an edge asks of a protocol; keeps what it was told to do."""

    peer = "somebody"
    wasNotCleanReason = None

    def __init__(self, clock, state=OPEN):
        self.clock = clock
        self.state = state
        self.told = []
        self.trafficStats = TrafficStats()
        self.current_frame = None
        self.data = b""
        self.frame_data = []
        self.transport = SimpleNamespace(abortConnection=lambda: self.told.append("transport aborted"))
        self.fails = None

    def __getattr__(self, name):
        def tell(*arguments, **keywords):
            self.told.append((name, *arguments))
            if self.fails == name:
                raise ZeroDivisionError

        return tell

    def sendMessage(self, payload, **options):
        assert options == {"doNotCompress": True}
        self.told.append(payload)

    def dropConnection(self, abort):
        self.told.append("aborted" if abort else "dropped")
        self.state = CLOSED


class Factory:
    """Keeps who joined and who left."""

    def __init__(self):
        self.reactor = Clock()
        self.told = []

    def clientJoined(self, client_id):
        self.told.append(("joined", client_id))

    def clientLeft(self, client_id):
        self.told.append(("left", client_id))


@pytest.fixture
def factory():
    """A factory on a clock of its own; nothing is left on that in the end."""
    factory = Factory()
    yield factory
    factory.reactor.advance(0)
    assert factory.reactor.calls == []


@pytest.fixture(params=[False, True], ids=["in the wheel", "exact"])
def edge(request, factory):
    """An edge of a protocol that does as it is told, without a link yet."""
    kind = ClientShared if request.param else ServerShared
    edge = Edge(Bare(factory.reactor), kind.of(factory), exact=request.param)
    yield edge
    if not edge.over:
        edge.gone(None)


@pytest.fixture
def server(factory):
    """The same of a server's."""
    edge = Edge(Bare(factory.reactor), ServerShared.of(factory), exact=False)
    yield edge
    if not edge.over:
        edge.gone(None)


def pump(edge, seconds):
    """Let time pass in ticks."""
    for _ in range(round(seconds * 20)):
        edge.shared.ticker.reactor.advance(0.05)


# Effects.

EFFECTS = {
    "text": (b"{}", b"{}"),
    "a ping frame": (PingFrame(b"x"), ("sendPing", b"x")),
    "an abort": (Abort(4000, "silent"), ("sendCloseFrame", 4000, b"silent")),
    "a message": (Deliver({"type": "x"}), ("_heartbeat_deliver", {"type": "x"})),
    "a report": (Report(STATUS), ("linkChanged", STATUS)),
    "an answer": (Answered(0.1, 3), ("pongReceived", 0.1, 3)),
    "a question": (Asked(), ("pingReceived",)),
    "a drain": (Drain(0.0, 5.0), ("_heartbeat_drained", 0.0, 5.0)),
}


@pytest.mark.parametrize(("effect", "done"), EFFECTS.values(), ids=EFFECTS)
def test_every_effect_is_carried_out(edge, effect, done):
    edge.carry((effect,))

    assert edge.protocol.told == [done]


def test_effects_are_carried_out_in_their_order(edge):
    edge.carry((Report(STATUS), b"one", Asked(), b"two"))

    assert edge.protocol.told == [("linkChanged", STATUS), b"one", ("pingReceived",), b"two"]


def test_joins_and_leaves_go_to_the_factory(server, factory):
    server.carry((Joined("alice"), Left("alice")))

    assert factory.told == [("joined", "alice"), ("left", "alice")]


def test_what_a_server_says_wrongly_is_told_to_the_log_and_nobody_else(edge, log):
    edge.carry((Refused(PeerError("bad-json", "not JSON: at all")),))

    assert edge.protocol.told == []
    assert [event["why"] for event in log if "why" in event] == ["what it sent cannot be taken: not JSON: at all"]


@pytest.mark.parametrize("state", [CONNECTING, CLOSING, CLOSED])
def test_nothing_is_sent_unless_the_connection_is_open(edge, state):
    edge.protocol.state = state

    edge.carry((b"{}",))

    assert edge.protocol.told == []


def test_a_conviction_says_why_to_autobahn_and_nothing_more_is_looked_at(edge):
    edge.carry((Abort(4000, "silent"),))

    assert edge.dead
    assert edge.protocol.wasNotCleanReason == "heartbeat timeout (silent)"


# Limits.


def test_at_its_limit_the_edge_does_what_was_said(edge):
    edge.limit(1.0, lambda: edge.protocol.told.append("late"))
    pump(edge, 0.9)
    assert edge.protocol.told == []

    pump(edge, 0.4)
    assert edge.protocol.told == ["late"]
    pump(edge, 5)
    assert edge.protocol.told == ["late"]


def test_what_happened_in_time_has_no_limit(edge):
    edge.limit(1.0, lambda: edge.protocol.told.append("late"))
    edge.unlimit()
    pump(edge, 5)

    assert edge.protocol.told == []


def test_a_new_limit_replaces_the_old(edge):
    edge.limit(1.0, lambda: edge.protocol.told.append("early"))
    edge.limit(2.0, lambda: edge.protocol.told.append("late"))
    pump(edge, 5)

    assert edge.protocol.told == ["late"]


def test_a_connection_that_is_gone_has_no_limit(edge, factory):
    edge.limit(1.0, lambda: edge.protocol.told.append("late"))
    edge.gone(None)
    edge.limit(1.0, lambda: edge.protocol.told.append("late"))

    assert factory.reactor.calls == []
    pump(edge, 5)
    assert edge.protocol.told == []


# Closing.

CLOSES = {
    OPEN: [("sendCloseFrame", 4403, b"forbidden"), "aborted", "transport aborted"],
    CONNECTING: ["aborted", "aborted", "transport aborted"],
    CLOSING: ["aborted", "aborted", "transport aborted"],
}


@pytest.mark.parametrize(("state", "done"), CLOSES.items())
def test_closing_begins_the_handshake_or_drops_and_is_over_in_a_second(edge, state, done):
    edge.protocol.state = state
    edge.close(4403, "forbidden")
    assert edge.protocol.told == done[:1]

    pump(edge, 1.3)
    assert edge.protocol.told == done


def test_what_autobahn_has_closed_already_is_aborted_at_once(edge):
    """It may be waiting to be rid of bytes that a dead peer will never take."""
    edge.protocol.state = CLOSED
    edge.close(4000, "silent")
    assert edge.protocol.told == ["aborted", "transport aborted"]


@pytest.mark.parametrize("reason", ["x" * 200, "\xe9" * 200, "x" + "\N{GRINNING FACE}" * 200])
def test_a_long_reason_ends_within_a_close_frame_and_between_characters(edge, reason):
    edge.close(4403, reason)

    ((_, _, sent),) = edge.protocol.told
    assert 119 < len(sent) <= 123
    assert reason.startswith(sent.decode())


def test_a_transport_that_cannot_abort_is_left_to_autobahn(edge):
    edge.protocol.transport = object()

    edge.drop()

    assert edge.protocol.told == ["aborted"]


# Mistakes.


def test_a_mistake_is_logged_once_and_closes_1011(edge, failures):
    edge.protocol.fails = "linkChanged"

    edge.guarded(edge.carry, (Report(STATUS), b"never"))

    assert len(failures.flush(ZeroDivisionError)) == 1
    assert edge.protocol.told == [("linkChanged", STATUS), ("sendCloseFrame", 1011, b"internal error")]
    assert edge.dead


def test_a_mistake_at_the_limit_does_not_stop_the_tick(edge, failures):
    edge.limit(1.0, lambda: 1 / 0)
    pump(edge, 2)

    assert len(failures.flush(ZeroDivisionError)) == 1
    pump(edge, 2)
    assert edge.shared.ticker.now() == pytest.approx(4)


# The link.


@pytest.fixture
def linked(factory):
    """A client's edge with a link, which has just opened."""
    shared = ClientShared.of(factory)
    edge = Edge(Bare(factory.reactor), shared, exact=True)
    link = ClientLink(Settings(), shared.ticker.running, edge.now())
    edge.start(link, link.open(edge.now()))
    yield edge
    if not edge.over:
        edge.gone(None)


def test_without_a_link_nothing_is_ours(edge):
    edge.heard()
    edge.pong(b"heartbeat 1")
    edge.woke(0.0)
    edge._confirm()

    assert edge.receive(b'{"type":"ping"}', False) is False
    assert edge.protocol.told == []


def test_with_one_what_is_ours_is_taken(linked):
    linked.protocol.told.clear()

    assert linked.receive(b'{"type":"ping","status":"pong","id":1,"clients":4}', False) is True
    assert [told[0] for told in linked.protocol.told] == ["linkChanged", "pongReceived"]


def test_a_limit_of_the_handshake_ends_when_the_websocket_is_open(factory):
    shared = ClientShared.of(factory)
    edge = Edge(Bare(factory.reactor), shared, exact=True)
    edge.limit(1.0, lambda: edge.protocol.told.append("late"))
    edge.start(ClientLink(Settings(), shared.ticker.running, edge.now()))
    pump(edge, 2)

    assert edge.protocol.told == []
    edge.gone(None)


def test_a_turn_is_taken_before_a_conviction_and_is_nothing_once_the_connection_is_gone(linked, factory):
    linked.protocol.told.clear()
    linked.carry((Turn(),))
    linked.gone(None)
    factory.reactor.advance(0)

    assert linked.protocol.told == []


def test_the_machine_slept_and_the_link_probes(linked):
    linked.receive(b'{"type":"ping","status":"pong","id":1}', False)
    linked.protocol.told.clear()

    linked.woke(linked.now())

    assert linked.protocol.told[0] == b'{"type":"ping","id":2}'
    assert linked.protocol.told[1][0] == "linkChanged"


def test_whom_nobody_reads_any_more_is_not_judged_by_his_silence(linked):
    """Not even where a probe was out when the connection was cut."""
    linked.receive(b'{"type":"ping","status":"pong","id":1}', False)
    linked.woke(linked.now())
    assert linked.link.monitor.state is State.SUSPECT
    linked.carry((Turn(),))
    linked.cut(4001, "another connection has resumed this session")
    linked.protocol.told.clear()

    pump(linked, 0.9)
    linked.woke(linked.now())
    pump(linked, 30)

    assert linked.link.monitor.state is State.SUSPECT
    assert linked.protocol.told == ["aborted", "transport aborted"]


# What the transport knows.


@pytest.fixture
def owing(linked):
    """A transport of Twisted's that owes 100 bytes of the 300 it was given."""
    transport = FileDescriptor(MemoryReactorClock())
    transport.connected = 1
    transport.write(b"x" * 100)
    linked.protocol.transport = transport
    linked.protocol.trafficStats.outgoingOctetsWireLevel = 300
    return linked


def test_the_traffic_is_what_was_given_and_what_of_it_has_left(owing):
    assert owing.traffic() == (300, 200, 200, False)


def test_of_an_unknown_transport_everything_has_left(linked):
    linked.protocol.trafficStats.outgoingOctetsWireLevel = 300

    assert linked.traffic() == (300, 300, 300, False)


def test_a_frame_that_arrives_in_pieces_is_growing(serve, connect, world):
    serve()
    page = connect().open()
    edge = world.connections[-1][0].protocol._heartbeat
    whole = frame(b'{"type":"ping","x":"' + b"x" * 500 + b'"}', TEXT)
    assert not edge.traffic().growing

    page.write(whole[:100])
    assert edge.traffic().growing
    page.write(whole[100:])
    assert not edge.traffic().growing
