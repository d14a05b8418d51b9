"""Tells `twistd` that `heartbeat` exists; imports nothing of it until it is chosen."""

from twisted.application.service import ServiceMaker

heartbeat = ServiceMaker(
    "heartbeat",
    "heartbeat.tap",
    "A WebSocket heartbeat server: who is alive, within seconds, without false alarms.",
    "heartbeat",
)
