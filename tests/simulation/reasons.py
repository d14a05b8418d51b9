"""Why a session may end, and what must be true then.

One row a reason and an end: each says by what the world knows that this reason holds.
"""

from oracle import EPSILON


def justify(process, channel, reason):
    """A session has ended, for this reason: claim that it is true."""
    world, sid = process.world, channel.session.sid
    rows = _SERVERS if process.is_server else _CLIENTS
    world.claim(reason in rows, process.name, "ends a session for no known reason:", reason)
    why_not = rows[reason](world, process, channel, sid)
    world.claim(not why_not, process.name, "ends", sid, "as", reason, "and", why_not)


def _silent_for(world, machine, since):
    """Seconds of a machine's own running time since a moment, and what it may count more."""
    stood, times = machine.stood(since, world.now)
    return world.now - since - stood, 2 * world.settings.tick * times + EPSILON


def _has_forgotten(world, sid):
    """Whether the server is another that knows nothing of those before it."""
    return world.server_disk is None and world.server_lives > 1


def _ended_there(reason):
    def row(world, process, channel, sid):
        there = world.ledger.ended.get((sid, True))
        if there is not None and (reason == "unknown" or there[0] == reason):
            return ""
        return "" if reason == "unknown" and _has_forgotten(world, sid) else f"the server's ended as {there}"

    return row


def _expired_here(world, process, channel, sid):
    """By a client: the server said so, or nothing was heard from it for the window."""
    there = world.ledger.ended.get((sid, True))
    if there is not None and there[0] == "expired":
        return ""
    silent, slack = _silent_for(world, process.machine, process.device.heard_at)
    return "" if silent >= world.settings.window - slack else f"heard something {silent} s ago"


def _expired(world, process, channel, sid):
    """By the server: nobody carried it for the window."""
    since = max(world.ledger.left_at.get(sid, 0.0), process.begun_at)
    alone, slack = _silent_for(world, process.machine, since)
    return "" if alone >= world.settings.window - slack else f"was left alone for {alone} s only"


def _closed(world, process, channel, sid):
    """By the server: the client has said so, or never used it."""
    streams = (world.ledger.streams.get((sid, of_server)) for of_server in (True, False))
    used = any(stream is not None and stream.names for stream in streams)
    return "it was used, and goes on at its client" if used and (sid, False) not in world.ledger.ended else ""


def _full(world, process, channel, sid):
    return "" if channel.session.is_full else "it has room"


def _copied(world, process, channel, sid):
    return "" if sid in world.copied else "there is no copy of it"


_CLIENTS = {
    "superseded": _copied,
    "gap": _copied,
    "epoch": lambda world, process, channel, sid: "" if _has_forgotten(world, sid) else "the server is the same",
    "unknown": _ended_there("unknown"),
    "expired": _expired_here,
    "full": _ended_there("full"),
    "closed": lambda world, process, channel, sid: "" if process.stopped is not None else "nobody stops it",
    "unreachable": lambda world, process, channel, sid: "it was open" if sid else "",
}

_SERVERS = {"expired": _expired, "closed": _closed, "full": _full}
