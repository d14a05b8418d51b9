"""Servers of one fleet in one process, over one real Redis; and what tests look at there."""

import json
import random
import socket
import time
from collections import Counter
from itertools import count
from math import inf
from types import SimpleNamespace
from typing import ClassVar

import hiredis
from peers import Peer
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory

from heartbeat.channel import Channel
from heartbeat.chat import Chat, GroupChat
from heartbeat.client import HeartbeatClient
from heartbeat.cluster.sessions import FleetStore
from heartbeat.cluster.words import as_text, head_of
from heartbeat.core.errors import StoreError
from heartbeat.core.settings import Settings
from heartbeat.factory import HeartbeatServerFactory
from heartbeat.testing import Machine, World

# All sessions: each its name, and the two hashes of what is known of it.
_ALL = """
local found = {}
local start = #ARGV[1] + 3
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. 's:*')) do
  local sid = string.sub(key, start)
  found[#found + 1] = {sid, redis.call('HGETALL', key), redis.call('HGETALL', ARGV[1] .. 'm:' .. sid)}
end
return found
"""


class WholeStore(FleetStore):
    """One that tells all sessions there are when it starts, as other stores do, for those who look at these."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.opened = []

    def open(self, head):
        if head.sid not in self.opened:
            self.opened.append(head.sid)
        return super().open(head)

    def start(self):
        # What comes after a stop goes on with what was before.
        self._lives = 0
        started = super().start()
        if started.called:
            # In the order in which all is asked.
            heads = self._heads()
            return started.addCallback(lambda contents: heads.addCallback(lambda found: contents._replace(heads=found)))
        return started.addCallback(
            lambda contents: self._heads().addCallback(lambda found: contents._replace(heads=found))
        )

    def expire(self, sid, fence, effects):
        def gone(numbers):
            self.opened.remove(sid)
            return numbers

        return super().expire(sid, fence, effects).addCallback(gone)

    def _heads(self):
        return self._redis._made.execute_command("EVAL", _ALL, 0, self._prefix).addCallback(self._in_order)

    def _in_order(self, found):
        heads = [head_of(as_text(sid), *parts) for sid, *parts in found]
        heads.sort(key=lambda head: (inf if head.detached_at is None else head.detached_at, self._place(head.sid)))
        return tuple(heads)

    def _place(self, sid):
        return self.opened.index(sid) if sid in self.opened else inf


#: Short everything, so that clients are soon back.
QUICK = {
    "interval": 2.0,
    "timeout_min": 1.0,
    "timeout_max": 2.0,
    "probe": 1.0,
    "tick": 0.2,
    "delays": (0.1,),
    "attempts": 10_000,
    "open_timeout": 6.0,
    "stable": 1.0,
    "window": 300.0,
    "drain_timeout": 0.0,
    "trust_client_ids": True,
}


class FleetWorld(World):
    """Several server machines, and one with all the clients."""

    def __init__(self):
        super().__init__(latency=0.002)
        self.nodes = []
        self.chance = random.Random(1)

    def advance(self, seconds):
        end = self.now + seconds
        while True:
            machines = [*(node.machine for node in self.nodes), self.client]
            at = max(self.now, min(machine.next_at for machine in machines))
            if at > end:
                break
            self.now = at
            for machine in machines:
                if machine.next_at <= at and not machine.crashed:
                    machine.turn(at)
        self.now = end
        for node in self.nodes:
            node.machine.rightNow = end
        self.client.rightNow = end

    def _complete(self, factory, deferred):
        wanted = factory.owner.wants
        there = [node for node in self.nodes if node.listens]
        node = wanted if wanted in there else self.chance.choice(there) if there else None
        self.refuses = node is None
        if node is not None:
            self.server, self._factory = node.machine, node.factory
        super()._complete(factory, deferred)


class Node:
    """One server: its machine, its way to Redis, its sessions."""

    def __init__(self, fleet, number, **settings):
        self.name = f"n{number}"
        self.fleet = fleet
        self.machine = Machine()
        self.machine.rightNow = fleet.world.now
        self.listens = True
        self._way = fleet.folder / self.name
        self._way.symlink_to(fleet.redis.path)
        self.store = FleetStore(
            f"redis+unix://{self._way}", prefix=fleet.prefix, refresh=fleet.refresh, reactor=fleet.turns.reactor
        )
        self.factory = HeartbeatServerFactory(
            Settings(**(QUICK | fleet.settings | settings)), store=self.store, reactor=self.machine
        )
        Chat(self.factory)
        self.groups = GroupChat(self.factory).groups
        self.sessions = self.factory.heartbeat.sessions
        #: Sessions that have ended here, and why.
        self.ended = []
        self.sessions.ended.append(lambda channel, error: self.ended.append((channel.session.sid, channel.ended)))
        self.lost = []
        self.factory.sessionLost = lambda client_id, error: self.lost.append((client_id, error.messages))
        self.factory.doStart()
        fleet.world.nodes.append(self)

    def start(self):
        self.fleet.result(self.sessions.start())
        self.fleet.until(lambda: self.store._subscription.is_up)
        return self

    def is_cut_off(self):
        """It cannot reach Redis any more; what it has asked may have been done."""
        self._way.unlink()
        if self.store._redis._made is not None:
            self.store._redis._made.failed(StoreError("cut off"))
        self.is_deaf()

    def is_deaf(self):
        """What is published is not heard for a moment."""
        if self.store._subscription is not None and self.store._subscription._line is not None:
            self.store._subscription._line.drop()

    def hears_nothing(self):
        """What is published does not come here, and nobody knows that."""
        self.store._subscription.heard = lambda channel, word: None

    def hears_again(self):
        """It does, and that is known."""
        vars(self.store._subscription).pop("heard", None)
        self.is_deaf()

    def is_back(self):
        self._way.symlink_to(self.fleet.redis.path)

    def drops_all(self):
        """All its connections break, and both ends hear of it."""
        for ends in self._connections():
            for end in ends:
                end._machine.callLater(0, end._lost, ConnectionLost())

    def dies(self):
        """As by `kill -9`."""
        self.machine.crashed = True
        self.fleet.world.nodes.remove(self)
        for ends in self._connections():
            ends[0]._crash()
        for timer in (self.store._timer, self.store._gathering):
            if timer is not None:
                timer.cancel()
        self.store._is_open = False
        self.store._timer = self.store._gathering = None
        self.store._watcher = None
        self.fleet.dead.append((self.store, self.store._subscription and self.store._subscription.stop()))
        redis = self.store._redis
        # Nobody is there to be told of anything.
        for asked in redis._asked:
            asked.answer = Deferred()
            asked.answer.addErrback(lambda _: None)
        redis._stopping = []
        redis._end()

    def stops(self):
        """As it should."""
        self.fleet.world.nodes.remove(self)
        self.listens = False
        for ends in self._connections():
            ends[0]._crash()
        self.factory.doStop()
        return self.fleet.result(self.sessions.stop())

    def _connections(self):
        return [ends for ends in self.fleet.world.connections if ends[0]._machine is self.machine]

    def channel_of(self, client):
        """The channel of a client's session here, None where it is not."""
        return self.sessions.channels.get(client.sid)


class Fleet:
    """The servers and their clients; a letter's number is in its text, and its way is known to the last step."""

    _prefixes = count()

    def __init__(self, redis, folder, turns, *, refresh=60.0, **settings):
        self.redis = redis
        self.folder = folder
        self.turns = turns
        self.refresh = refresh
        self.settings = settings
        self.prefix = f"fleet{next(Fleet._prefixes)}:"
        self.world = FleetWorld()
        self.clients = []
        self.dead = []
        self._numbers = count()
        self._sent = count(1)

    def node(self, **settings):
        """One more server, that has started."""
        return Node(self, next(self._numbers), **settings).start()

    def client(self, name, wants=None, *, make=None, **settings):
        """One more client, whose session is open."""
        client = (make or Teller)(self, name, wants, **settings)
        self.clients.append(client)
        client.startService()
        self.until(lambda: client.sid)
        return client

    def step(self):
        """A moment passes: for Redis a short one, for the machines one that fits to it."""
        began = time.monotonic()
        self.turns.reactor.iterate(0.001)
        self.world.advance(min(0.1, max(0.005, 5 * (time.monotonic() - began))))

    def pass_by(self, seconds):
        """So much time passes on the machines."""
        until = self.world.now + seconds
        while self.world.now < until:
            self.step()

    def until(self, condition, seconds=20):
        until = time.monotonic() + seconds
        while not (is_so := condition()):
            assert time.monotonic() < until, "it never is"
            self.step()
        return is_so

    def result(self, asked):
        came = []
        asked.addBoth(came.append)
        self.until(lambda: came)
        if hasattr(came[0], "raiseException"):
            came[0].raiseException()
        return came[0]

    def page(self, node, client_id=None, **opening):
        """A page of bytes, connected to this server; with a session where it says who it is."""
        made = []
        factory = Factory.forProtocol(lambda: made.append(Peer(self.world)) or made[0])
        factory.owner = SimpleNamespace(wants=node)
        self.world.endpoint().connect(factory)
        self.world.advance(0.02)
        page = made[0].open()
        if client_id is not None:
            page.say({"type": "onopen", "v": 1, "client_id": client_id} | opening, {"type": "ping"})
            self.until(lambda: page.messages or page.closed_with)
        return page

    def asks(self, *command):
        """Redis' answer, whoever lives."""
        return redis_answer(self.redis, *command)

    def next_number(self):
        return next(self._sent)

    # What must be true.

    def settle(self, seconds=30):
        """All letters are told of, and all that is kept is confirmed; then the books are looked at."""
        try:
            self.until(lambda: not self.unsettled(), seconds)
        except AssertionError:
            raise AssertionError(self.unsettled()[:20]) from None
        for client in self.clients:
            client.check()
        self.recount()

    def unsettled(self):
        left = [client.name for client in self.clients if not client.is_there]
        for client in self.clients:
            left += [
                (client.name, number, state, client.told.get(number))
                for number, state in client.letters.items()
                if state == "waiting" or (client.told.get(number) or ["queued"])[-1] == "queued"
            ]
            channel = client._session.channel
            if channel.session.kept:
                left.append((client.name, "keeps", len(channel.session.kept)))
        for node in self.world.nodes:
            for channel in node.sessions.channels.values():
                if channel.connection is not None and channel.session.kept:
                    left.append((node.name, channel.session.client_id, "is kept", len(channel.session.kept)))
            left += [(node.name, asked.name, "is asked") for asked in node.store._redis._asked]
            left += [(node.name, "reads") for _ in node.sessions._reading]
        return left

    def recount(self):
        """What Redis has counted is what there is; and where a session is, there it is in memory, and nowhere else."""
        books = Books(self)
        books.look_at_sessions()
        books.look_at_names()
        books.look_at_groups()
        for node in self.world.nodes:
            weight = 0
            for channel in node.sessions.channels.values():
                (waiting, queued), session = channel.session.waiting, channel.session
                groups = sum(mark.startswith("group:") for mark in channel.marks)
                weight += 4096 + 512 * (session.count + waiting) + session.weight + queued + (512 + 1536) * groups
            assert node.sessions.kept_bytes == weight

    def close(self):
        """All of it stops, and leaves nothing behind."""
        stopped = [client.stopService() for client in self.clients]
        self.until(lambda: all(one is None or one.called for one in stopped))
        for node in tuple(self.world.nodes):
            if not node._way.is_symlink():
                node.is_back()
            node.stops()
        self.until(lambda: all(gone is None or gone.called for _, gone in self.dead))


class Teller(HeartbeatClient):
    """A client that sends letters, and keeps the books of them.

    `letters`: of each that it sent, `waiting`, `handled`, or the reason why it is not known. `told`: what it was told
    of each. `read`: those of others that it has handled, in that order.
    """

    def __init__(self, fleet, name, wants=None, **settings):
        self.name = name
        self.fleet = fleet
        self.wants = wants
        self.letters = {}
        self.to = {}
        self.told = {}
        self.read = []
        self.others = []
        self.reasons = []
        super().__init__(
            "ws://test/ws",
            settings=Settings(**(QUICK | fleet.settings | settings | {"client_id": name})),
            reactor=fleet.world.client,
            endpoint=fleet.world.endpoint(),
            chance=fleet.world.chance.random,
        )

    @property
    def sid(self):
        return self._session.channel.session.sid

    @property
    def node(self):
        """The server that carries its session."""
        for node in self.fleet.world.nodes:
            channel = node.channel_of(self)
            if channel is not None and channel.connection is not None:
                return node
        return None

    @property
    def is_there(self):
        return self._session.channel.connection is not None

    def writes_to(self, to):
        """Send a letter; its number."""
        number = self.fleet.next_number()
        self.letters[number] = "waiting"
        self.to[number] = to
        sent = self.send({"type": "onchat", "id": f"m{number}", "to": to, "text": str(number)})
        sent.addCallbacks(
            lambda _: self.letters.__setitem__(number, "handled"),
            lambda failure: self.letters.__setitem__(number, str(getattr(failure.value, "reason", failure.value))),
        )
        return number

    def messageReceived(self, message):
        if message["type"] != "onchat":
            self.others.append(message)
        elif "status" in message:
            self.told.setdefault(int(message["id"][1:]), []).append(message["status"])
        else:
            self.read.append((message["from"], int(message["text"])))

    def sessionLost(self, error):
        self.reasons.append(error.reason)

    def vanishes_to(self, node):
        """The same, and the server that it leaves sees nothing of that."""
        self.wants = node
        transport = self._connection.transport
        transport.is_cut = transport.other.is_cut = True
        transport.abortConnection()

    def moves_to(self, node):
        """Its connection breaks, and it comes back to another server."""
        self.wants = node
        connection = self._connection
        if connection is not None:
            connection.transport.abortConnection()

    def check(self):
        """Nothing came twice, all came in order, and each letter has the fate that it was told."""
        assert len(set(self.read)) == len(self.read), "twice"
        for sender in {sender for sender, _ in self.read}:
            numbers = [number for one, number in self.read if one == sender]
            assert numbers == sorted(numbers), "out of order"
        for number, state in self.letters.items():
            told = self.told.get(number, [])
            assert told in (["queued", "delivered"], ["queued", "lost"], ["full"], ["unknown"], ["sent"], []), told
            assert (state == "handled") <= bool(told), (number, state)
            recipients = [one for one in self.fleet.clients if one.name == self.to[number]]
            if told == ["queued", "delivered"] and recipients:
                assert any((self.name, number) in one.read for one in recipients), f"{number} came to nobody"


def redis_answer(redis, *words):
    """What Redis answers to one command, on a connection of its own."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(redis.path))
        line.sendall(hiredis.pack_command(words))
        reader = hiredis.Reader()
        while (reply := reader.gets()) is False:
            reader.feed(line.recv(65536))
        return reply


def redis_time(redis):
    """What time it is for Redis, in milliseconds."""
    seconds, micros = map(int, redis_answer(redis, "TIME"))
    return 1000 * seconds + micros // 1000


class Books:
    """All that a fleet has in Redis, counted once more."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.names = {key.decode().removeprefix(fleet.prefix) for key in fleet.asks("KEYS", f"{fleet.prefix}*")}
        self.sids = self.named("s:")
        #: The copies of which the fate is open; and how many receipts each session waits for.
        self.copies = set()
        self.awaited = Counter()
        for receipt in self.named("r:="):
            self.copies |= self.members(f"r:={receipt}")
            self.awaited[receipt.partition("/")[0]] += 1

    def named(self, kind):
        """What keys of this kind there are."""
        return {name.removeprefix(kind) for name in self.names if name.startswith(kind)}

    def members(self, name):
        return {member.decode() for member in self.fleet.asks("SMEMBERS", self.fleet.prefix + name)}

    def known(self, sid):
        """What is known of a session."""
        flat = [word.decode() for word in self.fleet.asks("HGETALL", f"{self.fleet.prefix}s:{sid}")]
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def kept(self, sid):
        """What is kept for it: numbers, payloads, receipts."""
        found = self.fleet.asks("XRANGE", f"{self.fleet.prefix}l:{sid}", "-", "+")
        return [(int(number.partition(b"-")[0]), fields[1], fields[3]) for number, fields in found]

    def look_at_sessions(self):
        """Each session: its numbers, its bytes, its receipts, and the server that has it."""
        held = set()
        for sid in self.sids:
            known, kept = self.known(sid), self.kept(sid)
            assert [seq for seq, *_ in kept] == list(range(int(known["confirmed"]) + 1, int(known["sent"]) + 1))
            assert int(known["bytes"]) == sum(len(payload) for _, payload, _ in kept)
            assert int(known["awaited"]) == self.awaited[sid]
            held |= {f"{sid} {seq}" for seq, _, receipt in kept if receipt}
            for node in self.fleet.world.nodes:
                channel = node.sessions.channels.get(sid)
                assert (channel is not None) == (node.store.node == known["node"]), (sid, node.name, known)
                if channel is not None:
                    session = channel.session
                    numbers = (session.sent, session.confirmed, session.handled, session.fence)
                    assert numbers == tuple(int(known[name]) for name in ("sent", "confirmed", "handled", "fence"))
        assert self.copies <= held

    def look_at_names(self):
        """Whose each session is, and where."""
        clients, nodes = {}, {}
        for sid in self.sids:
            known = self.known(sid)
            clients.setdefault(known["client_id"], set()).add(sid)
            if known["node"]:
                nodes.setdefault(known["node"], set()).add(sid)
        for kind, found in (("c:", clients), ("n:", nodes)):
            assert {name: self.members(kind + name) for name in self.named(kind)} == found

    def hash(self, name):
        """A hash: its members and their values."""
        flat = [word.decode() for word in self.fleet.asks("HGETALL", self.fleet.prefix + name)]
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def look_at_groups(self):
        """Who is in each: every place once, its client counted once; and each place knows where it is."""
        marked, plain = {}, set()
        for name in self.named("g:"):
            places = self.hash(f"g:{name}")
            assert {client: int(n) for client, n in self.hash(f"gc:{name}").items()} == Counter(places.values())
            assert set(self.hash(f"gm:{name}")) <= set(places)
            for place, client in places.items():
                if "/" in place:
                    plain.add((place, name))
                else:
                    assert json.loads(client) == self.known(place)["client_id"]
                    marked.setdefault(place, set()).add(name)
        assert {name for kind in ("gc:", "gm:") for name in self.named(kind)} <= self.named("g:")
        marks = {sid: {mark.removeprefix("group:") for mark in self.hash(f"m:{sid}")} for sid in self.named("m:")}
        assert marks == marked
        noted = {(node, *member.split(" ", 1)) for node in self.named("y:") for member in self.members(f"y:{node}")}
        assert {(f"{node}/{number}", name) for node, number, name in noted} == plain
        here = set()
        for node in self.fleet.world.nodes:
            for place, groups in node.groups.joined.items():
                if isinstance(place, Channel):
                    assert groups == marked.get(place.session.sid)
                    assert {mark.removeprefix("group:") for mark in place.marks} == groups
                else:
                    here |= {(node.groups._name_of(place), name) for name in groups}
            assert {sid for sid, channel in node.sessions.channels.items() if channel.marks} <= set(marked)
            assert set(node.groups._ids) >= {one for one in node.groups.joined if not isinstance(one, Channel)}
            assert {edge: number for number, edge in node.groups._edges.items()} == node.groups._ids
        assert here == plain


class Walk:
    """What may happen to three servers and a few clients, by chance; every failure names its seed."""

    WEIGHTS: ClassVar = {
        "write": 30,
        "burst": 8,
        "wait": 14,
        "move": 10,
        "hop": 4,
        "drop": 4,
        "deaf": 4,
        "cut off": 4,
        "back": 6,
        "die": 2,
        "stop": 1,
    }

    def __init__(self, fleet, seed, servers=3, clients=4, make=None):
        self.fleet = fleet
        self.chance = fleet.world.chance = random.Random(seed)
        self.servers = servers
        for _ in range(servers):
            fleet.node()
        self.names = [f"client{number}" for number in range(clients)]
        for name in self.names:
            fleet.client(name, make=make)
        self.cut = []

    def steps(self, count):
        for _ in range(count):
            (what,) = self.chance.choices(list(self.WEIGHTS), list(self.WEIGHTS.values()))
            getattr(self, what.replace(" ", "_"))(self.chance.choice(self.fleet.clients), self.a_node())
            for _ in range(self.chance.choice((0, 0, 1, 5))):
                self.fleet.step()

    def a_node(self):
        return self.chance.choice(self.fleet.world.nodes)

    def write(self, client, node):
        client.writes_to(self.chance.choice(self.names))

    def burst(self, client, node):
        to = self.chance.choice(self.names)
        for _ in range(self.chance.choice((5, 20))):
            client.writes_to(to)

    def wait(self, client, node):
        self.fleet.pass_by(self.chance.random())

    def move(self, client, node):
        client.moves_to(node)

    def hop(self, client, node):
        """From server to server, and back again, as fast as it goes."""
        for _ in range(3):
            client.moves_to(self.a_node())
            self.fleet.pass_by(self.chance.random() * 0.3)

    def drop(self, client, node):
        node.drops_all()

    def deaf(self, client, node):
        node.is_deaf()

    def cut_off(self, client, node):
        if node not in self.cut and len(self.cut) < self.servers - 1:
            self.cut.append(node)
            node.is_cut_off()

    def back(self, client, node):
        if self.cut:
            self.cut.pop(0).is_back()

    def die(self, client, node):
        self.end(node)
        node.dies()
        self.fleet.node()

    def stop(self, client, node):
        if node not in self.cut:
            self.fleet.node()
            node.stops()

    def end(self, node):
        if node in self.cut:
            self.cut.remove(node)

    def finish(self):
        """Everything heals."""
        while self.cut:
            self.cut.pop().is_back()
        self.fleet.settle()
        for client in self.fleet.clients:
            assert client.reasons == [], (client.name, client.reasons)
            for number, state in client.letters.items():
                assert state == "handled", (client.name, number, state)
