"""The oracle: what each end may conclude, and by when it must, from the truth of what could have arrived.

It knows nothing of monitors but what they say aloud; it knows when bytes reached a machine, who stood still and when,
and what the lines were like. The rule is that of docs/protocol.md, put the other way round:

- Whoever convicts by silence has asked at least `probe` seconds of its own running time ago, and nothing has
  reached its machine since. An end that pings asked twice, the first time `timeout_min` before. One that
  watches heard nothing for `watch` before it asked. Who has slept may ask at once.
- And the silence has a cause: for long enough the line did not carry, or the other end stood still or was gone.
- A link over which nothing arrives any more is found out within its bound, again of the end's own running time.

By own running time is meant true time less that in which the machine stood still. Each time it did may count for up to
two ticks that the end did not leave out (lateness of a tick is no stall), which is the only slack there is.
"""

from math import inf

from sockets import CONNECTING, OPEN

from heartbeat.core.errors import CloseCode
from heartbeat.core.presence import Standing
from heartbeat.register import _MESSAGE, SESSION

#: Roundings.
EPSILON = 1e-3


class Oracle:
    """Looks on."""

    def __init__(self, world):
        self.world = world
        self.timing = world.settings.timing()
        self.present = set()
        self.nearest = -inf
        self._counts = None
        # The sessions that are carried, and by which connections of the server's.
        self._carried = {}
        # The connections that were lost last, by whose they were.
        self._last = {}

    # What ends say of their links.

    def reported(self, socket, status):
        """A link has changed."""
        end = socket.transport
        if status.event == "suspect":
            self.world.seen["suspicions"] += 1
            self._suspects(socket, end)
        elif status.event == "dead":
            self.world.note("dead", end.machine.name, status.reason)
            self.world.seen["convicted by " + ("server" if socket.is_server else "client"), status.reason] += 1
            _REASONS[status.reason](self, socket, end)
        elif status.event == "open" and not socket.is_server:
            socket.owner.device.line = end

    def _awake(self, end, since, *, timers=False):
        """Seconds of its own running time since a moment, and by how much an end may count more."""
        now, tick = self.world.now, self.timing.tick
        stood, times = end.machine.stood(since, now, timers=timers)
        return now - since - stood, 2 * tick * times + EPSILON

    def _pings(self, socket):
        """Whether it is the one that pings."""
        if socket.is_server:
            level = socket._heartbeat.link.level
            return level > 0 and self._beats(socket) in ("server", "both")
        return self._beats(socket) in ("client", "both")

    def _beats(self, socket):
        wish = socket.transport.line.wish
        return self.world.settings.beats or wish

    def _suspects(self, socket, end):
        world, timing = self.world, self.timing
        # On one that is closing already no probe goes out any more.
        first = end.asked[socket.state != OPEN]
        if not socket.is_server and end.machine.woken_at >= end.heard_at - timing.tick:
            return
        silent, slack = self._awake(end, end.heard_at)
        asked, _ = self._awake(end, first)
        watched = silent >= timing.watch - slack
        waited = end.heard_at <= first and asked >= timing.timeout_min - slack
        world.claim(watched or waited, self._of(socket), "suspects after", silent, "s, asked", asked, "s ago")
        if watched and not waited and (self._beats(socket) == "none" or not socket._heartbeat.link.level):
            # Nobody says anything unasked; or a hidden page does not.
            return
        least = timing.timeout_min if waited else timing.watch - timing.interval
        self._has_cause(socket, end, min(first if waited else inf, end.heard_at), least, "suspects")

    def _silent(self, socket, end):
        world, timing = self.world, self.timing
        first, last = end.asked
        probed, slack = self._awake(end, last)
        world.claim(end.heard_at <= last, self._of(socket), "convicted, and bytes were there", end.heard_at, last)
        world.claim(probed >= timing.probe - slack, self._of(socket), "convicted", probed, "s after the probe")
        woke = not socket.is_server and end.machine.woken_at >= first - timing.tick
        if woke:
            since = last
        else:
            asked, slack = self._awake(end, first)
            silent, watching_slack = self._awake(end, end.heard_at)
            waited = end.heard_at <= first and asked >= timing.timeout_min + timing.probe - slack
            watched = silent >= timing.watch + timing.probe - watching_slack
            right = waited if self._pings(socket) else watched or (waited and not socket.is_server)
            world.claim(right, self._of(socket), "convicted after", silent, "s, asked", asked, "s ago")
            since = min(first if waited else inf, end.heard_at) if right else last
        self._has_cause(socket, end, since, timing.probe, "convicts")

    def _no_pong(self, socket, end):
        waited, slack = self._awake(end, end.pongs_at)
        self.world.claim(waited >= self.timing.patience - slack, self._of(socket), "no pong for", waited, "s only")

    def _no_answer(self, socket, end):
        waited, slack = self._awake(end, socket.opened_at)
        right = not socket.is_server and waited >= self.world.settings.open_timeout - slack
        self.world.claim(right, self._of(socket), "had no answer for", waited, "s only")

    def _has_cause(self, socket, end, since, least, verb):
        """Nobody's silence comes of itself: the line or the other end was not there for long enough."""
        world, line, now = self.world, end.line, self.world.now
        # What was under way then, was so for a while.
        since -= 2 * (line.delay + line.jitter) + 1.0
        peer = end.other.machine
        total, reached = 0.0, since
        # One whose timers stand still does not ping; it answers all the same.
        for begun, ended in sorted((*line.disturbed, *peer.spans(timers=verb == "suspects"))):
            total += max(0.0, min(ended, now) - max(begun, reached))
            reached = max(reached, min(ended, now))
        takes = least - 2 * (line.delay + line.jitter) - 2 * self.timing.tick
        world.claim(total >= takes, self._of(socket), verb, "without a cause:", total, "s of trouble; it takes", takes)

    def _of(self, socket):
        side = "server" if socket.is_server else "client"
        return f"the {side}'s end of line {socket.transport.line.number}, beats {self._beats(socket)},"

    # The bound.

    def watch(self, socket):
        """A socket was made: it must not outlive its line."""
        self.world.later(1.0, self._look, socket)

    def _look(self, socket):
        end, edge = socket.transport, socket._heartbeat
        if not end.connected or edge.over:
            return
        since, bound = self._bound(socket, end, edge)
        awake, _ = self._awake(end, since, timers=True)
        late = awake - bound
        if not end.machine.paused:
            self.nearest = max(self.nearest, late)
            self.world.claim(late <= EPSILON, self._of(socket), "heard nothing for", awake, "s; its bound is", bound)
        self.world.later(max(0.25, 2 * EPSILON - late), self._look, socket)

    def _bound(self, socket, end, edge):
        """Since when, and within how many seconds, something must have happened to an end."""
        settings, timing = self.world.settings, self.timing
        ticks = 2 * timing.tick
        if socket.state == CONNECTING:
            patience = settings.handshake_timeout if socket.is_server else settings.open_timeout
            return socket.made_at, patience + ticks
        if socket.state != OPEN or edge.dead:
            return max(socket.closing_at, socket.made_at), settings.close_timeout + ticks
        if not socket.is_server and not edge.link.opened:
            return socket.opened_at, settings.open_timeout + ticks
        since = max(end.heard_at, socket.opened_at)
        queued = timing.patience if end.rate else 0.0
        if socket.is_server:
            if not edge.link.level:
                return since, timing.watching_bound + settings.judge_timeout + queued
            bound = timing.pinging_bound + timing.tick if self._pings(socket) else timing.watching_bound
            return max(since, socket.admitted_at), bound + queued
        bound = timing.pinging_bound if self._pings(socket) else timing.watching_bound
        if edge.link.monitor.sent == 1:
            # Its first ping, which it sends whoever is to send the later ones, may be out.
            bound = max(bound, timing.pinging_bound)
        return since, bound + queued

    # Who is there.

    def joined(self, client_id):
        """The server announces somebody."""
        self.world.claim(client_id not in self.present, client_id, "joins, and is there")
        self.present.add(client_id)

    def left(self, client_id):
        """The server announces that somebody is gone."""
        self.world.claim(client_id in self.present, client_id, "leaves, and is not there")
        self.present.discard(client_id)
        edges = self.world.server.shared.edges
        links = [edge.link for edge in edges if edge.link is not None and not edge.link._closed]
        there = [link for link in links if link.client_id == client_id]
        self.world.claim(not there, client_id, "leaves, and is there")
        socket = self._last[client_id]
        code, level = None if socket.closedByMe else socket.remoteCloseCode, socket._heartbeat.link.level
        if code == CloseCode.NORMAL or (code is not None and not level):
            # It has said so.
            return
        absent, slack = self._awake(socket.transport, socket.gone_at)
        grace = self.world.settings.grace
        self.world.claim(absent >= grace - slack, client_id, "leaves after", absent, "s, and its grace is", grace)

    def gone(self, socket):
        """A connection of the server's is gone."""
        socket.gone_at = self.world.now
        if socket._heartbeat.link is not None:
            self._last[socket._heartbeat.link.client_id] = socket
            self.carries_no_more(socket)

    def carries(self, socket):
        """A connection of the server's is told which session it carries, if any."""
        channel = socket._heartbeat.channel
        if channel is not None:
            self._carried[channel.session.sid] = socket

    def carries_no_more(self, socket):
        """It is gone, or another has taken its session over: if it was the one that carried it, nobody does."""
        channel = socket._heartbeat.channel
        if channel is not None and self._carried.get(channel.session.sid) is socket:
            del self._carried[channel.session.sid]
            self.world.ledger.left_at[channel.session.sid] = self.world.now

    def counts_changed(self, server):
        """After a step of the server's: whether its counts are others than before."""
        counts = server.shared.presence._counts
        if counts == self._counts:
            return False
        self._counts = counts.copy()
        return True

    def scan_presence(self, server):
        """The counts are those of all connections there are; so are the books of what is kept."""
        shared, claim = server.shared, self.world.claim
        presence = shared.presence
        best, open_links = {}, 0
        for edge in shared.edges:
            link = edge.link
            if link is None or link._closed:
                continue
            open_links += 1
            standing = link.standing
            best[link.client_id] = min(best.get(link.client_id, Standing.DETACHED), standing)
            if standing is Standing.ACTIVE:
                self._is_active(edge)
        for channel in shared.sessions.channels.values():
            best.setdefault(channel.session.client_id, Standing.DETACHED)
        counts = [0] * len(Standing)
        for name in presence.client_ids():
            # One who is neither connected nor has a session is expected until his absence is announced.
            counts[best.pop(name, Standing.DETACHED)] += 1
        claim(not best, "unknown to the register:", *best)
        told = [presence.count(standing) for standing in Standing]
        claim(told == counts, "the register counts", told, "and there are", counts)
        claim(presence.active == counts[Standing.ACTIVE], "active are", counts[Standing.ACTIVE], "not", presence.active)
        claim(presence.connections == open_links, "connections are", open_links, "not", presence.connections)
        self._scan_sessions(server)

    def _is_active(self, edge):
        """It has beaten lately."""
        end = edge.protocol.transport
        if self.world.now - end.beaten_at <= self.timing.watch:
            return
        silent, _ = self._awake(end, end.beaten_at, timers=True)
        # One that closes is what it was until it is gone.
        limit = self.timing.watch + 2 * self.timing.tick + EPSILON + edge.dead * self.world.settings.close_timeout
        self.world.claim(silent <= limit, self._of(edge.protocol), "is active, and has not beaten for", silent)

    def _scan_sessions(self, server):
        sessions, claim = server.shared.sessions, self.world.claim
        weight = 0
        for channel in sessions.channels.values():
            if channel.ended:
                claim(False, "a session that has ended is at work:", channel.ended)
            (waiting, queued), session = channel.session.waiting, channel.session
            weight += SESSION + _MESSAGE * (session.count + waiting) + session.weight + queued
        claim(sessions.kept_bytes == weight, "the books say", sessions.kept_bytes, "and there is", weight)
        now, limit = server.shared.ticker.now(), self.world.settings.window + 2 * self.timing.tick + EPSILON
        for channel in sessions._detached.values():
            if now - channel.detached_at > limit:
                claim(False, "a session was left alone for", now - channel.detached_at, "s")

    # Timers.

    def scan_timers(self, process):
        """Every timer has an owner that lives."""
        shared, claim = process.shared, self.world.claim
        ticker, sessions = shared.ticker, shared.sessions
        loop = ticker.pulse._loop
        for bucket in ticker.wheel._slots.values():
            for entry in bucket:
                there = entry in shared.edges and not entry.over
                claim(there, process.name, "keeps a place in the wheel of one who is gone")
        owned = {sessions._soon, *(edge._alarm for edge in shared.edges if edge._alarm is not None)}
        if not process.is_server:
            client = process.client
            owned |= {client._opening, client._waiting, client._stable, client._session._expiry}
        claim(ticker.alarms <= owned, process.name, "keeps an alarm of one who is gone")
        funcs = [getattr(call.func, "__self__", call.func) for call in process.machine.calls]
        ours = [one for one in funcs if one is ticker or one is loop or one in ticker.alarms]
        claim(len(ours) == len(set(ours)), process.name, "has set a timer twice")
        rings = len(ours) - (ticker in ours) - (loop in ours)
        claim(rings == len(ticker.alarms), process.name, "lost an alarm")
        used = bool(shared.edges) or (not process.is_server and process.client.running)
        claim(not used or loop in ours, process.name, "has no tick")
        claim(len(shared.edges) <= ticker._users, process.name, "ticks for fewer than there are")


_REASONS = {"silent": Oracle._silent, "no-pong": Oracle._no_pong, "no-answer": Oracle._no_answer}
