"""The heartbeat for WebSockets on Twisted and Autobahn.

Names are loaded when they are asked for (PEP 562): importing this package installs no reactor, and
`heartbeat.core` is importable without Twisted.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from heartbeat._version import __version__

if TYPE_CHECKING:
    from heartbeat.auth import Authenticator, Credentials
    from heartbeat.client import HeartbeatClient
    from heartbeat.core.errors import (
        HeartbeatError,
        PeerError,
        SessionFull,
        SettingError,
        StoreError,
        Unauthorized,
        Unconfirmed,
        Unreachable,
    )
    from heartbeat.core.link import LinkStatus
    from heartbeat.core.monitor import State
    from heartbeat.core.presence import Presence, Standing
    from heartbeat.core.settings import Settings
    from heartbeat.factory import HeartbeatClientFactory, HeartbeatServerFactory
    from heartbeat.handling import Handling
    from heartbeat.mixin import HeartbeatClientMixin, HeartbeatServerMixin
    from heartbeat.protocol import HeartbeatClientProtocol, HeartbeatServerProtocol
    from heartbeat.service import HeartbeatService
    from heartbeat.sqlite import SqliteStore
    from heartbeat.store import MemoryStore

__all__ = [
    "Authenticator",
    "Credentials",
    "Handling",
    "HeartbeatClient",
    "HeartbeatClientFactory",
    "HeartbeatClientMixin",
    "HeartbeatClientProtocol",
    "HeartbeatError",
    "HeartbeatServerFactory",
    "HeartbeatServerMixin",
    "HeartbeatServerProtocol",
    "HeartbeatService",
    "LinkStatus",
    "MemoryStore",
    "PeerError",
    "Presence",
    "SessionFull",
    "SettingError",
    "Settings",
    "SqliteStore",
    "Standing",
    "State",
    "StoreError",
    "Unauthorized",
    "Unconfirmed",
    "Unreachable",
    "__version__",
]

_HOMES = {
    "Authenticator": "heartbeat.auth",
    "Credentials": "heartbeat.auth",
    "Handling": "heartbeat.handling",
    "HeartbeatClient": "heartbeat.client",
    "HeartbeatClientFactory": "heartbeat.factory",
    "HeartbeatClientMixin": "heartbeat.mixin",
    "HeartbeatClientProtocol": "heartbeat.protocol",
    "HeartbeatError": "heartbeat.core.errors",
    "HeartbeatServerFactory": "heartbeat.factory",
    "HeartbeatServerMixin": "heartbeat.mixin",
    "HeartbeatServerProtocol": "heartbeat.protocol",
    "HeartbeatService": "heartbeat.service",
    "LinkStatus": "heartbeat.core.link",
    "MemoryStore": "heartbeat.store",
    "PeerError": "heartbeat.core.errors",
    "Presence": "heartbeat.core.presence",
    "SessionFull": "heartbeat.core.errors",
    "SettingError": "heartbeat.core.errors",
    "Settings": "heartbeat.core.settings",
    "SqliteStore": "heartbeat.sqlite",
    "Standing": "heartbeat.core.presence",
    "State": "heartbeat.core.monitor",
    "StoreError": "heartbeat.core.errors",
    "Unauthorized": "heartbeat.core.errors",
    "Unconfirmed": "heartbeat.core.errors",
    "Unreachable": "heartbeat.core.errors",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
