"""Bugs that the simulation must find: each breaks one rule of the core, as an edit of a line or two would.

A simulation that finds none of them would find nothing.
"""

from unittest.mock import patch

from heartbeat.core import monitor
from heartbeat.core.link import NOTHING, Link
from heartbeat.core.monitor import Monitor, State
from heartbeat.core.presence import Presence
from heartbeat.core.running import RunningTime
from heartbeat.core.session import Session
from heartbeat.core.wheel import Wheel
from heartbeat.tables import Tables

_take, _session = Session.take, Tables._session
_Input = monitor._Input


def _count_twice(self, seq, message, size, *, trusted=False):
    taken = _take(self, seq, message, size, trusted=trusted)
    # So is what comes next taken for one that was here before.
    self.received += taken and seq % 7 == 0
    return taken


def _take_again(self, seq, message, size, *, trusted=False):
    self.received = min(self.received, seq - 1)
    return _take(self, seq, message, size, trusted=trusted)


def _tell_received(self):
    self._told = self.received
    return self.received


def _leave_one(self, client):
    del self._clients[client.name]
    return client.announced


def _keep_place(self, entry):
    entry.slot = None


#: What is broken, by what it is called; each is to be entered.
MUTANTS = {
    "what is acknowledged is not heard": lambda: patch.object(Link, "_acknowledged", lambda self, upto: NOTHING),
    "a ping without an answer convicts without a probe": lambda: patch.dict(
        monitor._TABLE, {(State.WAITING, _Input.SILENT): Monitor._silence}
    ),
    "who watches never grows suspicious": lambda: patch.dict(
        monitor._TABLE, {(State.ACKNOWLEDGED, _Input.WATCH): Monitor._watch_anew}
    ),
    "our own stalls count": lambda: patch.object(RunningTime, "at", lambda self, raw: raw - self.late),
    "a message is counted twice": lambda: patch.object(Session, "take", _count_twice),
    "what came before is handled again": lambda: patch.object(Session, "take", _take_again),
    "a message is told as handled when it has come": lambda: patch.object(Session, "tell", _tell_received),
    "nothing is written again": lambda: patch.object(Session, "resume", lambda self, last: self.confirm(last)),
    "the counts keep who is gone": lambda: patch.object(Presence, "_forget", _leave_one),
    "the wheel keeps who is gone": lambda: patch.object(Wheel, "disarm", _keep_place),
    "the fence is ignored": lambda: patch.object(Tables, "_session", lambda self, sid, fence=None: _session(self, sid)),
}
