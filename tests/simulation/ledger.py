"""The ledger: what became of every message, and of every session, by what was seen from outside.

A stream is what one end of a session tells the other. Its messages are handled in order, each once in the life of a
process; what is confirmed to its sender was handled, and stays so whoever crashes; what is never confirmed is named
when its session ends, and that ends for a reason which is true.
"""

from reasons import justify

from heartbeat.core.errors import SessionFull, Unconfirmed
from heartbeat.core.messages import decode_object


class Message:
    """What is known of one message that an application sent, or answered with.

    `state`: `waiting` for its Deferred; `confirmed`; `failed`, and named; `full`, never taken; `kept` on its sender's
    disk; `forgotten`, went with its process before anybody had it; `gone` with a process that kept nothing: handled
    or not, nobody can know; `answer`, which has no Deferred; `never`, an answer of a handler that failed.
    """

    __slots__ = ("channel", "had", "kind", "number", "of_server", "seq", "sid", "state", "statuses", "to")

    def __init__(self, number, *, of_server, channel, kind, state, to=None):
        self.number = number
        self.of_server = of_server
        self.channel = channel
        self.kind = kind
        self.state = state
        self.to = to
        self.sid = ""
        self.seq = None
        #: Of a chat: whether its recipient had a session, and what its sender was told.
        self.had = None
        self.statuses = []


class Stream:
    """One direction of one session: what stood under which number, as far as it was handled."""

    __slots__ = ("confirmed", "finished", "keys", "last", "names")

    def __init__(self):
        self.names = {}
        self.keys = {}
        self.finished = self.confirmed = 0
        # The highest number of a message, by where it came from.
        self.last = {}


class Ledger:
    """All messages and all sessions of one world."""

    def __init__(self, world):
        self.world = world
        self.messages = {}
        self.streams = {}
        #: Why sessions ended, at either end: by their names and whether it was the server's.
        self.ended = {}
        #: When the last connection of a session left the server.
        self.left_at = {}
        self.handlings = self.confirmations = self.losses = 0
        self._numbers = 0
        self._ending = None
        # Where letters were handled: by the number of the message.
        self._letters = {}
        # The answer to each message that was handled to its end: by the stream and the number there.
        self._answers = {}

    def new_number(self):
        """The number of a message, by which it is known everywhere."""
        self._numbers += 1
        self.messages[self._numbers] = Message(self._numbers, of_server=None, channel=None, kind="m", state="answer")
        return self._numbers

    def stream(self, sid, *, of_server):
        """What one end of a session tells the other."""
        stream = self.streams.get((sid, of_server))
        if stream is None:
            stream = self.streams[sid, of_server] = Stream()
        return stream

    # What goes out.

    def send(self, process, channel, send, *, to=None):
        """The application of a process sends a message."""
        chance = process.chance
        self._numbers += 1
        number = self._numbers
        message = Message(number, of_server=process.is_server, channel=channel, kind="m", state="waiting", to=to)
        self.messages[number] = process.open[number] = message
        if to is None:
            pad = "x" * chance.choice((0, 0, 0, 20, 300))
            body = {"type": "m", "id": number, "reply": chance.random() < 0.3, "pad": pad}
        else:
            message.kind = "chat"
            body = {"type": "onchat", "id": number, "to": to, "text": "x" * chance.choice((0, 5, 50))}
        send(body).addCallbacks(self._confirmed, self._failed, (process, message), None, (process, message))

    def _confirmed(self, _, process, message):
        world = self.world
        world.claim(message.state == "waiting", "confirmed, and was", message.state, message.number)
        world.claim(message.seq is not None, "confirmed, and never handled", message.number)
        stream = self.stream(message.sid, of_server=message.of_server)
        world.claim(message.seq <= stream.finished, "confirmed, and not handled to its end", message.number)
        stream.confirmed = max(stream.confirmed, message.seq)
        message.state = "confirmed"
        del process.open[message.number]
        self.confirmations += 1

    def _failed(self, failure, process, message):
        world, error = self.world, failure.value
        world.claim(message.state == "waiting", "failed, and was", message.state, message.number)
        if failure.check(SessionFull):
            world.claim(message.seq is None, "full, and was handled", message.number)
            message.state = "full"
        else:
            world.claim(failure.check(Unconfirmed), "failed with", error)
            world.claim(message.number in self._keys_in(error, process), "failed, and not named", message.number)
            if error.reason == "stopped" and process.disk is not None:
                # It goes on in the store, or never was in there: the disk knows.
                return
            if error.reason in ("closed", "stopped") and not process.is_server:
                world.claim(process.stopped is not None, "nobody stops, and it failed as", error.reason)
            message.state = "failed"
            self.losses += 1
        del process.open[message.number]

    def moved(self, process, before, channel):
        """What was sent in one channel goes out in another."""
        for message in process.open.values():
            if message.channel is before:
                message.channel = channel

    # What comes in.

    def handled(self, process, handling, body):
        """A handler is called; returns by what the message is known."""
        world, sid, seq = self.world, handling.sid, handling.seq
        self.handlings += 1
        key = key_of(body, by_server=process.is_server)
        expected = process.next_seq.get(sid, 1)
        world.claim(seq == expected, process.name, "handles", key, "of", sid, "numbered", seq, "and not", expected)
        process.next_seq[sid] = seq + 1
        world.claim(sid not in process.busy, "two handlers of one session at once", key)
        stream = self.stream(sid, of_server=not process.is_server)
        world.claim(seq > stream.confirmed or sid in world.copied, "handled, and was confirmed", key, seq)
        world.claim(stream.names.get(seq, key) == key, "number", seq, "was", stream.names.get(seq), "and is", key)
        is_new = seq not in stream.names
        stream.names[seq] = key
        before = self._answers.pop((sid, process.is_server, seq), None)
        if before is not None and sid not in world.copied:
            # It comes again, so nothing of what followed from it was committed.
            answer = self.messages[before]
            world.claim(answer.seq is None, "answered by", before, "and handled again:", key)
            answer.state = "never"
        if type(key) is int or key[0] != "error":
            # Of errors there may be several about one message: each time somebody was told of it.
            world.claim(stream.keys.get(key, seq) == seq, key, "was number", stream.keys.get(key), "and is", seq)
            stream.keys[key] = seq
        if type(key) is int:
            self._look_at(process, stream, self.messages.get(key), sid, seq, is_new=is_new)
        elif key[0] == "status":
            self._told_status(key, sid, is_new=is_new)
        return key

    def _look_at(self, process, stream, message, sid, seq, *, is_new):
        world = self.world
        world.claim(message is not None, "handled, and never sent")
        state = message.state
        world.claim(state not in ("full", "forgotten", "never"), "handled, and is", state, message.number)
        if state == "answer":
            message.of_server = not process.is_server
        world.claim(message.of_server is not process.is_server, "handled by its own end", message.number)
        if is_new:
            world.claim(message.seq is None, message.number, "was handled in", message.sid, "and now in", sid)
            message.sid, message.seq = sid, seq
            if state != "answer":
                last = stream.last.get(message.kind, 0)
                world.claim(message.number > last, "out of order:", message.number, "after", last)
                stream.last[message.kind] = message.number
        if message.kind == "chat":
            message.had = bool(process.of(message.to))

    def finished(self, process, handling, key, reply, fails):
        """The handler has finished."""
        # One that finishes when its process has let go of the session was not handled: it comes again.
        ended = handling.sender.ended
        if not ended:
            stream = self.stream(handling.sid, of_server=not process.is_server)
            stream.finished = max(stream.finished, handling.seq)
            if type(key) is tuple and key[0] == "letter":
                self._letters.setdefault(key[1], set()).add(handling.sid)
        if reply is None:
            return
        if fails or ended:
            self.messages[reply].state = "never"
        else:
            self._answers[handling.sid, process.is_server, handling.seq] = reply

    def _told_status(self, key, sid, *, is_new):
        _, number, status = key
        world, message = self.world, self.messages.get(number)
        world.claim(message is not None and message.kind == "chat", "told of what was never sent", key)
        world.claim(message.sid == sid, "told in", sid, "and was sent in", message.sid, key)
        if not is_new:
            return
        message.statuses.append(status)
        told = tuple(message.statuses)
        world.claim(told in _STATUSES, "a chat's fate was", *told)
        if status == "delivered":
            world.claim(number in self._letters, "delivered, and never handled", number)
        elif len(told) == 1:
            # As it was when the message was handled in the life of the server that has told of it.
            world.claim(message.had or status == "unknown", "nobody is there, and it is", status, number)
            world.claim(not message.had or status != "unknown", "somebody is there, and it is", status, number)
        else:
            there = [one for one in self._letters.get(number, ()) if (one, True) not in self.ended]
            world.claim(not there, "lost, and handled in", there)

    # Processes that come and go.

    def begins(self, process):
        """A process begins: from its disk it knows how far it has handled what."""
        process.open = {}
        process.begun_at = self.world.now
        process.next_seq = {} if process.disk is None else {head.sid: head.handled + 1 for head in process.disk.heads()}

    def is_gone(self, process):
        """A process has ended: its disk says what became of its messages, and what it has handled for good."""
        world, disk = self.world, process.disk
        heads = () if disk is None else disk.heads()
        kept = {}
        for head in heads:
            keys = [key_of(decode_object(one.payload), by_server=not process.is_server) for one in disk.kept(head.sid)]
            kept |= dict.fromkeys(keys, head.sid)
            stream = self.stream(head.sid, of_server=not process.is_server)
            if head.sid not in world.copied:
                known = head.handled
                world.claim(stream.confirmed <= known, "confirmed were", stream.confirmed, "and on the disk are", known)
            stream.finished = min(stream.finished, head.handled)
        for key in kept:
            if type(key) is int and self.messages[key].state == "failed":
                # It died before the end of the session, of which it had told, was on the disk.
                self.messages[key].state = "kept"
        for number, message in process.open.items():
            message.channel = None
            if number in kept:
                message.state = "kept"
            elif message.seq is None and disk is not None:
                message.state = "forgotten"
            else:
                message.state = "gone"
        process.open = {}

    # Sessions that end.

    def session_ends(self, process, channel, error):
        """A session is over: what was never confirmed is named, and the reason is true."""
        world, sid = self.world, channel.session.sid
        names = self._keys_in(error, process)
        once = [name for name in names if type(name) is int or name[0] != "error"]
        world.claim(len(set(once)) == len(once), "named twice", names)
        for message in process.open.values():
            if message.channel is channel and message.state == "waiting":
                world.claim(message.number in names, "its session ended, and it is not named", message.number)
        for name in names:
            if type(name) is int:
                state = self.messages[name].state
                right = state in ("waiting", "kept", "answer") or sid in world.copied
                world.claim(right, "named, and is", state, name)
        if sid:
            self.ended[sid, process.is_server] = (error.reason, world.now)
        world.note("ends", process.name, sid, error.reason, len(names))
        world.claim(self._ending is None, "nobody was told of", self._ending)
        if error.messages:
            self._ending = error
        justify(process, channel, error.reason)

    def told(self, process, error):
        """An application is told of a session that was lost."""
        self.world.claim(self._ending is error, "told of", error, "and not of", self._ending)
        self._ending = None

    def check(self):
        """Nothing is half said."""
        self.world.claim(self._ending is None, "a session ended, and nobody was told", self._ending)

    def _keys_in(self, error, process):
        return [key_of(body, by_server=not process.is_server) for body in error.messages]

    # The end.

    def unsettled(self):
        """What is yet to be handled or confirmed, of sessions that live on both ends."""
        left = []
        server = self.world.server
        channels = {channel.session.sid: channel for channel in server.channels}
        for process in self.world.clients():
            channel = process.channel
            sid = channel.session.sid
            if sid not in channels:
                left.append((process.name, "has no session", process.client.status.event))
                continue
            mine, theirs = channel.session, channels.pop(sid).session
            for ours, others in ((mine, theirs), (theirs, mine)):
                if ours.count or others.handled != ours.sent or ours.confirmed != ours.sent:
                    left.append((process.name, sid, ours.sent, ours.confirmed, others.handled))
            left += [(process.name, "open", number) for number in process.open]
        left += [("the server keeps", sid) for sid in channels]
        left += [("open", number) for number in server.open]
        return left

    def settled(self):
        """All has come to rest: whatever was promised has happened."""
        world = self.world
        living = {process.channel.session.sid for process in world.clients()}
        for message in self.messages.values():
            if message.sid not in living or message.sid in world.copied or message.seq is None:
                continue
            if message.kind == "chat" and message.state in ("confirmed", "kept", "gone"):
                world.claim(tuple(message.statuses) in _FATES, "a chat's fate is", message.statuses, message.number)
        for (sid, *_), answer in self._answers.items():
            if sid in living and sid not in world.copied:
                world.claim(self.messages[answer].seq is not None, "an answer never came:", answer)


def key_of(body, *, by_server):
    """By what a message is known that the server, or a client, handles."""
    kind = body["type"]
    if kind == "error":
        return ("error", body["re"])
    if kind == "onchat" and not by_server:
        return ("status", body["id"], body["status"]) if "status" in body else ("letter", body["id"])
    return body["id"]


_FATES = {("full",), ("unknown",), ("queued", "delivered"), ("queued", "lost")}
_STATUSES = _FATES | {("queued",)}
