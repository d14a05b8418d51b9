"""The doubles that we ship: what they promise to those who test with them."""

import textwrap

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol

import heartbeat
from heartbeat import testing
from heartbeat.testing import Machine, World


class Notes(Protocol):
    """Keeps what happens to it, and when."""

    def __init__(self, world):
        self.world = world
        self.notes = []

    def note(self, *what):
        self.notes.append((round(self.world.now, 3), *what))

    def connectionMade(self):
        self.note("made")

    def dataReceived(self, data):
        self.note(data)

    def connectionLost(self, reason):
        self.note("lost", reason.type)


@pytest.fixture
def world():
    """A world of our own, with a latency that is easy to count with."""
    world = World(latency=1.0)
    yield world
    world.close()
    assert world.delayed_calls == []


@pytest.fixture
def pair(world):
    """Both ends of a connection, which takes a round trip to make."""

    def pair():
        servers, clients = [], []
        world.listen(Factory.forProtocol(lambda: servers.append(Notes(world)) or servers[-1]))
        world.endpoint().connect(Factory.forProtocol(lambda: Notes(world))).addCallback(clients.append)
        world.advance(2)
        return servers[0], clients[0]

    return pair


def test_the_example_in_its_docstring_is_true():
    example = textwrap.dedent(testing.__doc__.partition("\n\n")[2].partition("\n\nEach machine")[0])
    assert "world.cut()" in example
    names = {name: getattr(heartbeat, name) for name in ("HeartbeatClient", "HeartbeatServerFactory", "Settings")}

    exec(example, {**names, "World": World, "settings": names["Settings"]()})  # noqa: S102  # it is ours


def test_all_that_is_public_is_named():
    assert testing.__all__ == ["Machine", "MemoryTransport", "World"]


# Connections.


def test_bytes_take_a_latency_and_arrive_in_order(world, pair):
    server, client = pair()
    client.transport.write(b"one")
    client.transport.writeSequence([b"two", b"three"])
    world.advance(0.5)
    server.transport.write(b"back")
    world.advance(5)

    assert server.notes == [(2, "made"), (3, b"one"), (3, b"twothree")]
    assert client.notes == [(2, "made"), (3.5, b"back")]
    assert client.transport.written == b"onetwothree"


def test_both_ends_know_where_they_are_and_where_the_other_is(world, pair):
    world.client_host = "192.0.2.7"
    server, client = pair()

    assert server.transport.getPeer().host == client.transport.getHost().host == "192.0.2.7"
    assert server.transport.getHost() == client.transport.getPeer()
    assert world.connections == [(server.transport, client.transport)]


def test_a_transport_takes_what_protocols_ask_of_one(pair):
    server, _ = pair()

    server.transport.setTcpNoDelay(True)
    server.transport.registerProducer(object(), True)
    server.transport.unregisterProducer()


def test_a_closed_connection_ends_on_both_ends_after_what_was_written(world, pair):
    server, client = pair()
    server.transport.write(b"bye")
    server.transport.loseConnection()
    server.transport.loseConnection()
    server.transport.write(b"never")
    world.advance(5)

    assert server.notes[-1] == (2, "lost", ConnectionDone)
    assert client.notes[1:] == [(3, b"bye"), (3, "lost", ConnectionDone)]


def test_an_aborted_connection_is_lost_on_both_ends_and_says_no_more(world, pair):
    server, client = pair()
    server.transport.write(b"on its way")
    client.transport.abortConnection()
    client.transport.abortConnection()
    world.advance(5)

    assert client.notes[1:] == [(2, "lost", ConnectionAborted)]
    assert server.notes[1:] == [(3, "lost", ConnectionLost)]


def test_all_connections_can_be_dropped(world, pair):
    server, client = pair()
    world.drop()
    world.advance(5)

    assert server.notes[1:] == client.notes[1:] == [(2, "lost", ConnectionLost)]
    assert world.connections == []


# Connecting.


@pytest.fixture
def connect(world):
    """Begin to connect; what became of it, and when."""

    def connect():
        became = []
        deferred = world.endpoint().connect(Factory.forProtocol(lambda: Notes(world)))
        deferred.addBoth(lambda result: became.append((world.now, getattr(result, "type", type(result)))))
        return deferred, became

    return connect


def test_where_nobody_listens_a_connection_is_refused(world, connect):
    _, became = connect()
    world.advance(5)

    assert became == [(2, ConnectError)]


def test_a_server_can_refuse_and_take_that_back(world, pair, connect):
    pair()
    world.refuses = True
    _, one = connect()
    world.advance(5)
    world.refuses = False
    _, two = connect()
    world.advance(5)

    assert one == [(4, ConnectError)]
    assert two == [(9, Notes)]


def test_a_factory_that_builds_nothing_hangs_up(world):
    factory = Factory()
    factory.buildProtocol = lambda address: None
    world.listen(factory)
    clients = []
    world.endpoint().connect(Factory.forProtocol(lambda: Notes(world))).addCallback(clients.append)
    world.advance(5)

    assert clients[0].notes == [(2, "made"), (3, "lost", ConnectionLost)]


def test_a_connection_under_way_can_be_cancelled_at_any_time(world, pair, connect):
    pair()
    made = len(world.connections)
    one, first = connect()
    one.cancel()
    world.advance(1)
    two, second = connect()
    world.cut()
    world.advance(5)
    two.cancel()
    world.heal()
    world.advance(5)

    assert first == [(2, CancelledError)]
    assert second == [(8, CancelledError)]
    assert len(world.connections) == made


# A network that is cut.


def test_over_a_cut_network_nothing_arrives_and_nothing_is_said(world, pair):
    server, client = pair()
    client.transport.write(b"on its way")
    world.cut()
    server.transport.write(b"never")
    world.advance(3600)

    assert len(server.notes) == len(client.notes) == 1
    assert server.transport.written == b"never"


def test_over_a_cut_network_an_end_that_aborts_hears_of_it_alone(world, pair):
    server, client = pair()
    world.cut()
    world.drop()
    client.transport.abortConnection()
    world.advance(5)

    assert client.notes[1:] == [(2, "lost", ConnectionAborted)]
    assert len(server.notes) == 1
    server.transport.abortConnection()
    world.advance(1)


def test_new_connections_hang_until_the_network_heals(world, pair, connect):
    pair()
    _, under_way = connect()
    world.advance(1)
    world.cut()
    _, new = connect()
    world.advance(10)
    assert under_way == new == []

    world.heal()
    world.advance(1)
    assert under_way == new == [(13, Notes)]


def test_old_connections_stay_dead(world, pair):
    server, client = pair()
    world.cut()
    world.heal()
    client.transport.write(b"anybody?")
    world.advance(5)

    assert len(server.notes) == 1
    client.transport.abortConnection()
    server.transport.abortConnection()


def test_a_network_is_cut_after_so_many_bytes_in_the_middle_of_a_write(world, pair):
    server, client = pair()
    world.cut(after=5)
    client.transport.write(b"one")
    world.advance(0.5)
    server.transport.write(b"two")
    world.advance(0.1)
    assert not world.is_cut
    client.transport.write(b"three")
    world.advance(5)

    assert world.is_cut
    assert server.notes[1:] == [(3, b"one")]
    assert client.notes[1:] == [(3.5, b"tw")]
    assert server.transport.written + client.transport.written == b"twoonethree"


def test_bytes_towards_one_machine_are_counted_where_it_is_named(world, pair):
    server, client = pair()
    world.cut(after=3, towards=world.client)
    client.transport.write(b"as much as it likes")
    server.transport.write(b"one")
    server.transport.write(b"two")
    world.advance(5)

    assert server.notes[1:] == [(3, b"as much as it likes")]
    assert client.notes[1:] == [(3, b"one")]
    assert world.is_cut


def test_what_is_answered_to_the_last_byte_is_lost(world, pair):
    server, client = pair()
    server.dataReceived = lambda data: server.transport.write(b"answer")
    world.cut(after=3)
    client.transport.write(b"one")
    world.advance(5)

    assert server.transport.written == b"answer"
    assert len(client.notes) == 1


@pytest.mark.parametrize("mend", ["heal", "cut"])
def test_a_cut_to_come_is_forgotten_when_the_network_heals_or_is_cut_before(world, pair, mend):
    server, client = pair()
    world.cut(after=3)
    getattr(world, mend)()
    client.transport.write(b"twelve bytes")
    world.advance(5)

    assert world.is_cut is (mend == "cut")
    assert server.notes[1:] == ([] if mend == "cut" else [(3, b"twelve bytes")])
    world.heal()


# Machines.


def test_a_machine_runs_timers_first_and_then_what_has_arrived():
    """As Twisted's main loop does, which is why a conviction takes a turn of the reactor."""
    machine, order = Machine(), []
    machine.deliver(5.0, lambda: order.append("bytes"))
    machine.callLater(5.0, lambda: order.append("timer"))
    machine.callLater(5.0, lambda: machine.callLater(0, lambda: order.append("next turn")))
    assert machine.next_at == 5.0

    machine.turn(5.0)
    assert order == ["timer", "bytes"]
    machine.turn(5.0)
    assert order == ["timer", "bytes", "next turn"]
    assert machine.next_at == float("inf")


def test_a_timer_may_cancel_or_put_off_another_of_the_same_turn():
    machine, order = Machine(), []
    machine.callLater(1.0, lambda: (cancelled.cancel(), put_off.reset(5.0)))
    cancelled = machine.callLater(1.0, lambda: order.append("cancelled"))
    put_off = machine.callLater(1.0, lambda: order.append("put off"))

    machine.turn(1.0)
    assert order == []
    machine.turn(6.0)
    assert order == ["put off"]


def test_a_stalled_machine_does_everything_afterwards_timers_first(world, pair):
    server, client = pair()
    world.server.callLater(3, server.note, "timer")
    world.stall(10)
    client.transport.write(b"hello?")
    client.transport.loseConnection()
    world.advance(9)
    assert len(server.notes) == 1
    assert world.server.seconds() == 2

    world.advance(1)
    assert server.notes[1:] == [(12, "timer"), (12, b"hello?"), (12, "lost", ConnectionDone)]
    assert world.server.seconds() == world.client.seconds() == 12
    assert world.server.slept() == 0


def test_a_stalled_server_is_connected_to_and_accepts_afterwards(world, pair, connect):
    pair()
    world.stall(10)
    _, became = connect()
    world.advance(5)
    assert became == [(4, Notes)]
    assert world.connections[-1][0].protocol is None

    world.advance(10)
    assert world.connections[-1][0].protocol.notes == [(12, "made")]


def test_what_was_given_up_before_it_was_accepted_is_never_seen(world, pair, connect):
    pair()
    world.stall(10)
    connect()
    world.advance(3)
    world.connections[-1][1].abortConnection()
    world.advance(20)

    assert world.connections[-1][0].protocol is None or world.connections[-1][0].protocol.notes[-1][1] == "lost"


def test_a_machine_that_sleeps_stands_still_and_so_does_its_clock(world, pair):
    server, client = pair()
    world.client.callLater(3, client.note, "timer")
    world.sleep(100)
    server.transport.write(b"meanwhile")
    world.advance(101)
    assert client.notes[1:] == [(102, b"meanwhile")]
    assert world.client.seconds() == 3
    assert world.client.slept() == 100

    world.advance(5)
    assert client.notes[2:] == [(105, "timer")]
    assert world.server.seconds() - world.client.seconds() == 100


def test_either_machine_may_stall_or_sleep(world):
    world.stall(5, world.client)
    world.sleep(7, world.server)
    world.advance(10)

    assert (world.client.seconds(), world.server.seconds()) == (10, 3)


# Processes that are killed.


@pytest.mark.parametrize("which", ["server", "client"])
def test_a_process_that_is_killed_hears_of_nothing_and_the_other_end_is_reset(world, pair, which):
    server, client = pair()
    dead, alive = (server, client) if which == "server" else (client, server)
    before = getattr(world, which)
    before.callLater(3, dead.note, "timer")
    alive.transport.write(b"never read")
    world.crash(before)
    dead.transport.write(b"never sent")
    world.advance(5)

    assert dead.notes == [(2, "made")]
    assert alive.notes[1:] == [(3, "lost", ConnectionLost)]
    assert getattr(world, which) is not before
    assert getattr(world, which).seconds() == world.now
    assert world.delayed_calls == []


def test_over_a_cut_network_nobody_hears_of_a_kill(world, pair):
    _, client = pair()
    world.cut()
    world.crash()
    world.advance(3600)

    assert client.notes == [(2, "made")]


def test_where_the_server_was_killed_nobody_listens_until_one_does_again(world, pair, connect):
    pair()
    world.crash()
    _, refused = connect()
    world.advance(3)
    assert refused == [(4, ConnectError)]

    server, client = pair()
    client.transport.write(b"hello")
    world.advance(1)
    assert server.notes[1:] == [(8, b"hello")]
    assert server.transport._machine is world.server


def test_what_a_killed_client_was_connecting_to_comes_to_nothing(world, pair, connect):
    pair()
    made = len(world.connections)
    _, under_way = connect()
    world.advance(1)
    world.cut()
    _, hanging = connect()
    world.advance(2)
    world.crash(world.client)
    world.heal()
    world.advance(5)

    assert under_way == hanging == []
    assert len(world.connections) == made


def test_a_kill_ends_a_stall_and_a_cut_to_come_stays_one(world, pair):
    _, client = pair()
    world.stall(3600)
    world.cut(after=2, towards=world.server)
    world.crash()
    world.advance(1)
    assert client.notes[1:] == [(3, "lost", ConnectionLost)]

    server, client = pair()
    client.transport.write(b"hello")
    world.advance(2)
    assert server.notes[1:] == [(6, b"he")]


def test_a_process_may_be_killed_by_what_happens_in_it():
    world, order = World(), []
    world.server.deliver(1.0, lambda: (order.append("bytes"), world.crash()))
    world.server.deliver(1.0, lambda: order.append("more bytes"))
    world.client.callLater(1.0, lambda: (order.append("timer"), world.crash(world.client)))
    world.client.callLater(1.0, lambda: order.append("another timer"))

    world.advance(5)

    assert sorted(order) == ["bytes", "timer"]
    assert world.delayed_calls == []


# The end.


def test_closing_ends_everything_even_on_a_machine_that_stands_still(pair):
    world = World()
    started = []
    factory = Factory.forProtocol(lambda: Notes(world))
    factory.startFactory = lambda: started.append("started")
    factory.stopFactory = lambda: started.append("stopped")
    world.listen(factory)
    world.endpoint().connect(Factory.forProtocol(lambda: Notes(world)))
    world.advance(1)
    world.stall(3600)
    world.cut()
    failed = []
    world.endpoint().connect(Factory()).addErrback(failed.append)

    world.close()

    assert started == ["started", "stopped"]
    assert not any(end.connected for ends in world.connections for end in ends)
    assert failed[0].check(ConnectError)
    assert world.delayed_calls == []
    world.close()
