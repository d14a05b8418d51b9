"""Two ends that are put through everything, and a ledger that knows what each of them must have seen.

Everything happens in virtual time, and all chance comes from one `random.Random(seed)`: the same seed is the same life.
"""

import copy
import json
import random
from dataclasses import dataclass, field
from typing import Any

from durable import DurableStore
from twisted.internet.defer import Deferred

from heartbeat.client import HeartbeatClient
from heartbeat.core.errors import SessionFull, Unconfirmed
from heartbeat.core.settings import Settings
from heartbeat.factory import HeartbeatServerFactory
from heartbeat.store import MemoryStore
from heartbeat.testing import World

#: Short everything, so that an hour of it is cheap.
QUICK = {
    "interval": 2.0,
    "timeout_min": 1.0,
    "timeout_max": 2.0,
    "probe": 1.0,
    "tick": 0.2,
    "drain_timeout": 0.0,
    "delays": (0.3,),
    "attempts": 1000,
    "open_timeout": 3.0,
    "stable": 1.0,
    "window": 30.0,
    "full_patience": 8.0,
    "client_id": "alice",
}

#: How an end keeps its sessions: in its process, on a disk without delay, or on one that takes its time.
KEEPING = ("memory", "instant", "disk")


class Intended(Exception):
    """A handler fails on purpose."""


@dataclass(eq=False, slots=True)
class Message:
    """What the ledger knows of one message.

    `state`: `waiting` for its Deferred; `draft`, a reply that may yet be taken back; `spare`, one that may never have
    been sent; `kept` on the sender's disk, or in its session without a Deferred; `confirmed`; `lost` and named as such;
    `full`, never taken; `forgotten`, went with its process before anybody had it; `gone` with a process that kept no
    sessions: handled or not, nobody can know.
    """

    number: int
    end: "End"
    channel: Any
    reply: bool
    state: str
    sid: str = ""
    seq: int | None = None
    finished: bool = False
    told: bool = False

    def leave_process(self):
        """The process that sent it is gone."""
        if self.channel is not None:
            self.sid, self.channel = self.channel.session.sid, None

    def is_of(self, channel):
        """Whether it belongs to this session."""
        return self.channel is channel or (self.channel is None and self.sid == channel.session.sid != "")


@dataclass(eq=False)
class End:
    """One end: how it keeps its sessions, and what its ledger has seen of it."""

    name: str
    keeping: str
    disk: MemoryStore = field(default_factory=MemoryStore)
    store: DurableStore | None = None
    #: Messages that are neither confirmed nor lost; and those that this process has named.
    open: dict = field(default_factory=dict)
    named: dict = field(default_factory=dict)
    #: In this process: the number expected next of each session, and the sessions with a handler at work.
    next_seq: dict = field(default_factory=dict)
    busy: set = field(default_factory=set)
    #: Said of every session that ended: the reason.
    reasons: list = field(default_factory=list)

    @property
    def lasts(self):
        """Whether its sessions outlive its process."""
        return self.keeping != "memory"

    def committed(self):
        """What is on the disk: how far each session has handled, and the messages that are kept."""
        if not self.lasts:
            return {}, {}
        heads = {head.sid: head.handled for head in self.disk.start().heads}
        kept = {key_of(json.loads(one.payload)): sid for sid in heads for one in self.disk.replay(sid, 0)}
        return heads, kept


def key_of(message):
    """By what the ledger knows a message: its id, or of which one it is the error."""
    return ("error", message["re"]) if message["type"] == "error" else message["id"]


class Client(HeartbeatClient):
    """The client under test."""

    ordeal: "Ordeal"

    def sessionLost(self, error):
        self.ordeal.session_lost(self.ordeal.client_end, error)

    def startService(self):
        self.before = self._session.channel
        super().startService()

    def _connect(self):
        # What was sent before its file was read goes out in the session that was found there.
        before, self.before = self.before, None
        if before is not None:
            self.ordeal.moved(before, self._session.channel)
        super()._connect()


class ServerFactory(HeartbeatServerFactory):
    """The server under test."""

    ordeal: "Ordeal"

    def sessionLost(self, client_id, error):
        assert client_id == "alice"
        self.ordeal.session_lost(self.ordeal.server_end, error)


class Ordeal:
    """The world, both applications, and the ledger. `mood` says how the handlers behave; see `Ordeal.handle`."""

    def __init__(self, seed, *, client="memory", server="memory", commit=0.02, **settings):
        self.seed = seed
        self.chance = random.Random(seed)
        self.settings = Settings(**(QUICK | settings))
        self.commit = commit
        self.world = World()
        self.client_end = End("client", client)
        self.server_end = End("server", server)
        self.messages = {}
        self.last_assigned = {}
        self.deliveries = self.intended = self.sent = 0
        self.mood = {"slow": 0.0, "fail": 0.0, "replies": 0, "sends": 0}
        #: The session that is ending, and the messages that must be named.
        self.ending = None
        #: A copy of the client's file, if one was made.
        self.backup = None
        #: Sessions that such a copy has brought back.
        self.doubtful = set()
        self.problem = None
        self.client = self.factory = None
        self.story = []
        self.start_server()
        self.start_client()

    def note(self, *what):
        """Remember what was done, for whoever reads a failure."""
        self.story.append((round(self.world.now, 3), *what))

    def claim(self, holds, *what):
        """It must hold; the seed and the end of the story are told where it does not, however deep we are."""
        if not holds:
            tail = "\n  ".join(map(repr, self.story[-15:]))
            said = " ".join(map(str, what))
            self.problem = AssertionError(f"seed {self.seed!r}: {said}\n  {tail}")
            raise self.problem

    # The processes.

    def _store(self, end, reactor):
        if not end.lasts:
            return None
        delay = (lambda: self.chance.random() * self.commit) if end.keeping == "disk" else None
        end.store = DurableStore(end.disk, reactor, delay)
        return end.store

    def start_server(self):
        """A server process begins."""
        self._begin(self.server_end)
        factory = ServerFactory(
            self.settings, store=self._store(self.server_end, self.world.server), reactor=self.world.server
        )
        factory.ordeal = self
        factory.register("m", lambda protocol, message: self.handle(self.server_end, protocol, message))
        factory.register("error", lambda protocol, message: self.handle(self.server_end, protocol, message))
        factory.heartbeat.spread = self.chance.random
        factory.heartbeat.sessions.ended.insert(0, lambda *what: self.session_ends(self.server_end, *what))
        self.factory = factory
        self.world.listen(factory)
        self.world.refuses = False

    def start_client(self):
        """A client process begins."""
        self._begin(self.client_end)
        self.client = Client(
            "ws://test/ws",
            settings=self.settings,
            reactor=self.world.client,
            endpoint=self.world.endpoint(),
            session=self._store(self.client_end, self.world.client),
            chance=self.chance.random,
        )
        self.client.ordeal = self
        self.client.register("m", lambda client, message: self.handle(self.client_end, client, message))
        self.client.register("error", lambda client, message: self.handle(self.client_end, client, message))
        self.client._session._sessions.ended.insert(0, lambda *what: self.session_ends(self.client_end, *what))
        self.client.startService()

    def _begin(self, end):
        handled, _ = end.committed()
        end.next_seq = {sid: upto + 1 for sid, upto in handled.items()}
        end.busy, end.named = set(), {}

    def crash(self, end):
        """The process of this end is killed, and the next one begins."""
        if self.runs_on_a_copy(end):
            return
        self.note("crash", end.name)
        self.world.crash(self.world.client if end is self.client_end else self.world.server)
        if end.store is not None:
            end.store.crash()
        self._reconcile(end)
        self.start_client() if end is self.client_end else self.start_server()

    def back_up(self):
        """Somebody copies the client's file."""
        if self.client_end.lasts and not self.runs_on_a_copy(self.client_end):
            self.note("back up")
            self.backup = copy.deepcopy(self.client_end.disk)

    def restore(self):
        """The client is killed, and the next one begins with an older copy of its file."""
        end = self.client_end
        if self.backup is None or self.runs_on_a_copy(end):
            return
        self.note("restore")
        self.world.crash(self.world.client)
        end.store.crash()
        end.disk, self.backup = self.backup, None
        self._reconcile(end, restored=True)
        self.start_client()

    def runs_on_a_copy(self, end):
        """Whether this end's session comes from an older copy of its file.

        Then its process goes on: what it kept and never wrote would count as written in the next one, and
        take the place of what the server had from the file that is gone. This is the one thing that is not promised.
        """
        handled, _ = end.committed()
        return end is self.client_end and bool(self.doubtful & handled.keys())

    def restart(self, end):
        """The process of this end stops as it should, and the next one begins."""
        if self.runs_on_a_copy(end):
            return
        self.note("restart", end.name)
        stopped = []
        if end is self.client_end:
            self.client.stopService().addCallback(stopped.append)
        else:
            self.world.refuses = True
            self.factory.heartbeat.drain()
            self.advance(1.5)
            self.factory.heartbeat.sessions.stop().addCallback(stopped.append)
            self.factory.doStop()
        awake = max(self.world.now, self.world.client.stalled_until, self.world.server.stalled_until)
        while not stopped:
            self.claim(self.world.now <= awake + 5, "never stopped")
            self.advance(0.5)
        # And with that the process ends.
        self.world.crash(self.world.client if end is self.client_end else self.world.server)
        self._reconcile(end)
        self.start_client() if end is self.client_end else self.start_server()

    def _reconcile(self, end, *, restored=False):
        """A process is gone: the disk says what became of its messages, and what it has handled for good.

        Where the disk is an older one, nobody can know what became of those that are not on it.
        """
        handled, kept = end.committed()
        for key, message in [*end.open.items(), *end.named.items()]:
            message.leave_process()
            if key in kept:
                message.state, message.sid = "kept", kept[key]
                end.open[key] = message
            elif message.state != "lost":
                del end.open[key]
                settled = "confirmed" if message.finished else "forgotten"
                message.state = settled if end.lasts and not restored else "gone"
        for key in kept.keys() - end.open.keys():
            # Confirmed since the copy was made; the server will say so again.
            end.open[key] = message = self.messages[key]
            message.leave_process()
            message.state = "kept"
        if restored:
            # What former processes have said that they handled may still be on its way.
            self.doubtful |= handled.keys()
        for message in self.messages.values():
            if message.end is not end and message.finished and message.state != "confirmed":
                sid = message.channel.session.sid if message.channel is not None else message.sid
                if sid not in self.doubtful and message.seq > handled.get(sid, message.seq):
                    self.claim(end.keeping != "instant", "handled, and not noted", message.number)
                    message.finished = False

    def other(self, end):
        """The other end."""
        return self.server_end if end is self.client_end else self.client_end

    # What goes out.

    def _new(self, end, channel, *, reply, state, key=None):
        self.sent += 1
        message = Message(self.sent, end, channel, reply, state)
        key = self.sent if key is None else key
        self.messages[key] = end.open[key] = message
        return message

    def body(self, number, hops):
        """A message as it is sent."""
        return {"type": "m", "id": number, "hops": hops, "pad": "x" * self.chance.choice((0, 0, 0, 20, 300))}

    def send(self, end, count=1, hops=0):
        """The application of this end sends; whether anybody is there or not."""
        for _ in range(count):
            if end is self.client_end:
                if not self.client.running:
                    return
                self.send_by(end, self.client._session.channel, self.client.send, hops)
            else:
                channels = self.factory.heartbeat.sessions.of("alice")
                if not channels:
                    return
                channel = channels[-1] if self.chance.random() < 0.9 else self.chance.choice(channels)
                self.send_by(end, channel, channel.send, hops)

    def send_by(self, end, channel, send, hops):
        """Send one message in this session."""
        message = self._new(end, channel, reply=False, state="waiting")
        key = message.number
        send(self.body(key, hops)).addCallbacks(
            lambda _: self.confirmed(key, message), lambda failure: self.failed(key, message, failure)
        )

    def moved(self, before, channel):
        """What was sent in one channel goes out in another."""
        for message in self.client_end.open.values():
            if message.channel is before:
                message.channel = channel

    def confirmed(self, key, message):
        """A Deferred fired."""
        self.claim(message.state == "waiting", "confirmed, and was", message.state, key)
        self.claim(message.finished, "confirmed, and never handled", key)
        message.state = "confirmed"
        del message.end.open[key]

    def failed(self, key, message, failure):
        """A Deferred failed."""
        error = failure.value
        if failure.check(SessionFull):
            self.claim(message.state == "waiting" and message.seq is None, "full, and was", message.state, key)
            message.state = "full"
            del message.end.open[key]
            return
        self.claim(failure.check(Unconfirmed), "failed with", error)
        self.claim(key in map(key_of, error.messages), "not among the unconfirmed", key)
        if error.reason in ("stopped", "the server stopped"):
            # It goes on in the store; or went with the process.
            message.told = True
            return
        self.claim(message.state == "lost", "failed, and not named", key, error.reason)
        message.told = True

    # Sessions that end.

    def session_ends(self, end, channel, error):
        """A session is ending: work out what must be named."""
        end.reasons.append(error.reason)
        self.note("ends", end.name, error.reason, len(error.messages))
        must, may = [], set()
        for key, message in end.open.items():
            if message.is_of(channel):
                if message.state in ("draft", "spare"):
                    may.add(key)
                elif message.state != "kept" or message.seq is None or message.seq > channel.session.confirmed:
                    must.append(key)
                else:
                    message.state = "confirmed"
        for key in [key for key, message in end.open.items() if message.state == "confirmed"]:
            del end.open[key]
        self.ending = must, may
        if not error.messages:
            self._named(end, error)

    def session_lost(self, end, error):
        """The application of this end is told of an ended session."""
        self._named(end, error)

    def _named(self, end, error):
        self.claim(self.ending is not None, "told of a session twice", error)
        (must, may), self.ending = self.ending, None
        named = [key_of(message) for message in error.messages]
        self.claim(len(set(named)) == len(named), "named twice", named)
        self.claim(set(must) <= set(named) <= {*must, *may}, "named", named, "and must be", must, may)
        for reply in (False, True):
            numbers = [self.messages[key].number for key in named if self.messages[key].reply is reply]
            self.claim(numbers == sorted(numbers), "named out of order", numbers)
        for key in {*must, *may}:
            message = end.open.pop(key)
            self.claim(message.state in ("waiting", "kept", "draft", "spare"), "named, and was", message.state, key)
            message.state = "lost"
            end.named[key] = message

    # What comes in.

    def handle(self, end, protocol, body):
        """A handler is called: note it, and do what the mood says."""
        handling, key = protocol.handling, key_of(body)
        sid, seq = handling.sid, handling.seq
        message = self.messages.get(key)
        self.claim(message is not None and message.end is not end, "handled, and never sent", body)
        expected = end.next_seq.get(sid, 1)
        self.claim(seq == expected, end.name, "handles", key, "of", sid, "with number", seq, "and not", expected)
        end.next_seq[sid] = seq + 1
        self.claim(sid not in end.busy, "two handlers of one session at once", key)
        self.claim(message.state not in ("confirmed", "full", "forgotten"), "handled, and is", message.state, key)
        if message.seq is None:
            message.seq = seq
            last = self.last_assigned.get((sid, end.name, message.reply), 0)
            self.claim(message.number > last, "out of order", key, "after", last)
            self.last_assigned[sid, end.name, message.reply] = message.number
            self.deliveries += 1
        self.claim(message.seq == seq, key, "had number", message.seq, "and now", seq)
        if message.state in ("draft", "spare"):
            message.state = "kept"
        if body["type"] == "error":
            message.finished = True
            return None
        return self._behave(end, protocol, handling, message, key, body["hops"])

    def _behave(self, end, protocol, handling, message, key, hops):
        chance, mood = self.chance, self.mood
        channel = self._channel_of(end, protocol)
        replies = []
        if hops:
            for _ in range(mood["replies"]):
                reply = self._new(end, handling.sender, reply=True, state="draft")
                try:
                    handling.reply(self.body(reply.number, hops - 1))
                except SessionFull:
                    self._forget(end, [reply])
                    break
                replies.append(reply)
            for _ in range(mood["sends"]):
                self.send_by(end, channel, protocol.send, hops - 1)
        fails = chance.random() < mood["fail"]
        if chance.random() >= mood["slow"]:
            return self._finish(end, handling, message, key, replies, fails)
        end.busy.add(handling.sid)
        later = Deferred()
        reactor = self.world.client if end is self.client_end else self.world.server

        def finish():
            end.busy.discard(handling.sid)
            try:
                later.callback(self._finish(end, handling, message, key, replies, fails))
            except Intended:
                later.errback()

        reactor.callLater(chance.choice((0.0, 0.01, 0.1, 1.0)) * chance.random(), finish)
        return later

    def _channel_of(self, end, protocol):
        return self.client._session.channel if end is self.client_end else protocol._heartbeat.channel

    def _finish(self, end, handling, message, key, replies, fails):
        # One that finishes when its process has let go of the session was not handled: it comes again.
        ended = handling.sender.ended
        message.finished = message.finished or not ended
        if fails:
            self._forget(end, replies)
            if not ended:
                # A client at twice its bound says no more than it must.
                spare = end is self.client_end and not handling.sender.session.has_room_beyond(400)
                state = "spare" if spare else self._after(end)
                self._new(end, handling.sender, reply=True, state=state, key=("error", key))
            self.intended += 1
            raise Intended
        if ended:
            self._forget(end, replies)
        for reply in replies:
            if reply.state == "draft":
                reply.state = self._after(end)

    def _after(self, end):
        # On a disk that takes its time the session may end before the reply is in it.
        return "draft" if end.keeping == "disk" else "kept"

    def _forget(self, end, replies):
        for reply in replies:
            if end.open.pop(reply.number, None) is not None:
                reply.state = "forgotten"

    # Events.

    def advance(self, seconds):
        """Let time pass."""
        self.world.advance(seconds)
        self.check()

    def cut(self):
        self.note("cut")
        self.world.cut()

    def cut_after(self, count, end=None):
        """The network is cut after so many bytes, towards this end or in all."""
        self.note("cut after", count, end and end.name)
        towards = {"client": self.world.client, "server": self.world.server}
        self.world.cut(after=count, towards=end and towards[end.name])

    def heal(self):
        self.note("heal")
        self.world.heal()

    def drop(self):
        self.note("drop")
        self.world.drop()

    def stall(self, end, seconds):
        self.note("stall", end.name, seconds)
        self.world.stall(seconds, self.world.client if end is self.client_end else self.world.server)

    def lose_unnoticed(self, end):
        """This end sees its socket break, the other end does not: a resume comes before the loss is noticed."""
        self.note("unnoticed", end.name)
        self.world.cut()
        if self.world.connections:
            self.world.connections[-1][1 if end is self.client_end else 0].abortConnection()
        self.world.heal()

    # What must be true.

    def check(self):
        """What must be true between any two events."""
        if self.problem is not None:
            raise self.problem
        self.claim(self.ending is None, "a session ended with messages, and nobody was told", self.ending)
        self.claim(self.client.status.event != "unreachable", "gave up", self.client.status)
        for end in (self.client_end, self.server_end):
            for key, message in end.open.items():
                if message.state == "waiting":
                    ended = message.channel.ended
                    self.claim(not ended or message.told, "forgotten with its session", key, ended)
            for key, message in end.named.items():
                self.claim(message.told or message.reply or message.channel is None, "never told", key)
        sessions = self.factory.heartbeat.sessions
        weight = 0
        for channel in sessions.channels.values():
            (waiting, queued), session = channel.session.waiting, channel.session
            weight += 4096 + 512 * (session.count + waiting) + session.weight + queued
        self.claim(sessions.kept_bytes == weight, "books", sessions.kept_bytes, "and there is", weight)
        for channel in (*sessions.channels.values(), self.client._session.channel):
            self.claim(not channel.ended, "an ended session is at work", channel.ended)

    def settle(self, patience=120.0):
        """Everything heals, and all that was sent in a session that lives must be handled and confirmed."""
        self.note("settle")
        self.mood = dict.fromkeys(self.mood, 0)
        self.heal()
        until = self.world.now + patience
        while self.world.now < until and not self.is_settled():
            self.advance(1.0)
        self.claim(self.is_settled(), "does not settle", *self.unsettled())

    def is_settled(self):
        """Whether nothing is left to be handled or confirmed."""
        return not self.unsettled()

    def unsettled(self):
        """What is left."""
        left = []
        living = {channel.session.sid: channel for channel in self.factory.heartbeat.sessions.channels.values()}
        if len(living) != 1 or self.client._session.channel.session.sid not in living:
            return ["not one session", *living]
        for end, channels in (
            (self.client_end, (self.client._session.channel,)),
            (self.server_end, tuple(living.values())),
        ):
            for key, message in tuple(end.open.items()):
                mine = [channel for channel in channels if message.is_of(channel)]
                if message.state == "kept" and mine and message.finished and message.seq <= mine[0].session.confirmed:
                    message.state = "confirmed"
                    del end.open[key]
                elif message.state == "spare" or (message.state == "draft" and not mine):
                    del end.open[key]
                else:
                    left.append((end.name, key, message.state, message.seq, bool(mine)))
            left += [(end.name, "kept", len(c.session.kept)) for c in channels if c.session.kept]
        return left[:10]

    def finish(self):
        """The end: both ends stop, and nothing is left behind."""
        self.settle()
        self.client.stopService()
        self.advance(3.0)
        self.factory.heartbeat.sessions.suspend("done")
        self.world.close()
        self.world.advance(5.0)
        self.claim(self.world.delayed_calls == [], "timers are left", self.world.delayed_calls)
