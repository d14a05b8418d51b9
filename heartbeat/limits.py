"""How many connections this process can have: the open-file limit, looked at before it is reached."""

from __future__ import annotations

from heartbeat.core.errors import SettingError

__all__ = ["open_file_limit", "room_for_connections"]

# Files that are not connections: listeners, logs, the reactor's own, a database, a burst of HTTP requests.
_RESERVED = 128


def open_file_limit() -> int | None:
    """How many files this process may have open; None where that is not limited, or not known (Windows)."""
    try:
        import resource  # noqa: PLC0415  # not on every platform
    except ImportError:
        return None
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def room_for_connections(wanted: int | None) -> int | None:
    """The number of connections to serve: `wanted`, or what the open-file limit allows; None is no limit.

    Raises SettingError when `wanted` is more than that.
    """
    limit = open_file_limit()
    if limit is None:
        return wanted
    # A tiny limit still leaves half of itself.
    allowed = max(limit - _RESERVED, limit // 2)
    if wanted is None:
        return allowed
    if wanted > allowed:
        bound = (
            f"at most {allowed} under the open-file limit of {limit} (ulimit -n), of which {limit - allowed} are kept"
        )
        raise SettingError("max_connections", wanted, bound)
    return wanted
