"""Tells `twistd` that `heartbeat` exists, server and reactor; imports nothing of it until it is chosen."""

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker

heartbeat = ServiceMaker(
    "heartbeat",
    "heartbeat.tap",
    "A WebSocket heartbeat server: who is alive, within seconds, without false alarms.",
    "heartbeat",
)
reactor = Reactor("heartbeat", "heartbeat.reactor", "The epoll reactor, in monotonic time and leaner; Linux only.")
