"""Ports of loopback for programs that must be told theirs before they listen: to each another one."""

import contextlib
import random
import socket

_chance = random.SystemRandom()

#: Those that were given already: whoever has one may not listen yet, and may want it back after a restart.
_given: set[int] = set()


def free_port(chance: random.Random = _chance) -> int:
    """A port that nobody listens on just now and nobody was given before; of those that no program gets unasked.

    One of these a client that calls again and again while nobody listens would one day be given as its own: TCP
    connects it to itself, and the port is taken when the server wants it.
    """
    return ports_in_a_row(1, chance)[0]


def ports_in_a_row(count: int, chance: random.Random = _chance) -> list[int]:
    """So many of them, one after the other."""
    while True:
        first = chance.randrange(10_000, 32_000)
        row = range(first, first + count)
        if not _given.isdisjoint(row):
            continue
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in row:
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            _given.update(row)
            return list(row)
