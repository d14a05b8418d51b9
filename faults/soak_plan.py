"""What goes wrong during a soak, and when: one seed's lots, drawn at a steady rate, so that the load stays the same.

Before the measured part each client has had each kind of fault once, and each process has stood still for long. What
is made for an end, or is as large as it ever gets, when something befalls it for the first time is there by then: with
lots alone the rarest kind comes to a client once an hour, and what is measured would be that.

The proxy carries out what befalls links, the soak itself what befalls processes; each draws the same plan. Starts
nothing, and knows no time but seconds from the beginning.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "EVERY",
    "INTERRUPT",
    "KINDS",
    "TOGETHER",
    "Fault",
    "address_of",
    "address_of_visitor",
    "number_of",
    "of_links",
    "of_processes",
    "process_of",
]

#: Clients in one process.
TOGETHER = 400


#: Seconds between two faults of one client, on average.
EVERY = 120.0

#: The same before the measured part, at the least.
_SOONEST = 60.0

#: Every kind with its weight, and the seconds that it lasts at least and at most (0: at once).
KINDS: dict[str, tuple[int, float, float]] = {
    "cut": (4, 0.0, 0.0),  # a FIN to both ends
    "reset": (4, 0.0, 0.0),  # an RST to both ends
    "half-open": (2, 0.0, 0.0),  # from now on every byte is lost, and every close, and nobody is told
    "deaf": (1, 0.0, 0.0),  # the same, but only towards the server
    "dumb": (1, 0.0, 0.0),  # only towards the client
    "away": (1, 8.0, 20.0),  # reset; what connects meanwhile is let in, and gets no byte through
    "pause": (5, 1.0, 4.0),  # every byte waits, both ways: too short to convict anybody
    "stall": (2, 8.0, 20.0),  # long enough for that
    "delay": (3, 10.0, 30.0),  # each byte comes 0.2 to 0.8 s later
    "slow": (3, 10.0, 30.0),  # 256 bytes a second are read from either end
}

#: Of these an end may rightly say that nothing comes any more.
INTERRUPT = frozenset({"half-open", "deaf", "dumb", "away", "pause", "stall"})

#: Seconds between two stops of a client process (SIGSTOP); every fifth is a long one.
_STOP_EVERY = 60.0
_BRIEF, _LONG, _EACH = (1.0, 4.0), (16.0, 20.0), 5


@dataclass(frozen=True, slots=True)
class Fault:
    """One: `at` seconds from the beginning, its kind, whose link or which process, how long, and how much of it."""

    at: float
    kind: str
    whom: int
    lasts: float
    degree: float


def address_of(number: int) -> str:
    """The address on loopback that a client has for itself, by which the proxy and the server know it."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


def address_of_visitor(process: int, number: int) -> str:
    """The address of one who comes by, of this process of clients."""
    return f"127.2.{process}.{number % 250 + 1}"


def number_of(address: str) -> int:
    """The client of this address."""
    _, _, high, low = map(int, address.split("."))
    return high * 250 + low - 1


def process_of(address: str) -> int:
    """The process of the client, or the visitor, of this address."""
    _, network, process, _ = map(int, address.split("."))
    return number_of(address) // TOGETHER if network == 1 else process


def of_links(seed: int, clients: int, every: float = EVERY, warm: float = 0.0) -> Iterator[Fault]:
    """Those of links, without end, in the order of their time; of each client one every so many seconds, on average.

    In the first `warm` seconds each client has one of each kind, as far as these are long enough for that.
    """
    chance = random.Random(f"{seed} links")  # noqa: S311  # lots, not secrets
    kinds, weights = list(KINDS), [weight for weight, _, _ in KINDS.values()]

    def fault(at: float, kind: str, whom: int) -> Fault:
        return Fault(at, kind, whom, chance.uniform(*KINDS[kind][1:]), chance.random())

    at = 0.0
    turns = {whom: chance.sample(kinds, len(kinds)) for whom in range(clients)}
    apart = min(every, max(_SOONEST, warm / len(kinds)))
    for turn in range(min(len(kinds), int(warm / apart))):
        for whom in chance.sample(range(clients), clients):
            at += apart / clients
            yield fault(at, turns[whom][turn], whom)
    while True:
        at += chance.expovariate(clients / every)
        kind = chance.choices(kinds, weights)[0]
        yield fault(at, kind, chance.randrange(clients))


def of_processes(seed: int, processes: int, warm: float = 0.0) -> Iterator[Fault]:
    """Those of client processes: each stands still for a while, with all its clients.

    In the first `warm` seconds they do so for long in turn, as many as there are minutes.
    """
    chance = random.Random(f"{seed} processes")  # noqa: S311  # lots, not secrets
    number = 0
    while True:
        number += 1
        is_warm = number * _STOP_EVERY <= warm
        # The long ones come at even distances, or one third of a soak would have more of them than another.
        bounds = _BRIEF if number % _EACH and not is_warm else _LONG
        whom = (number - 1) % processes if is_warm else chance.randrange(processes)
        at = (number - chance.uniform(0.3, 0.7)) * _STOP_EVERY
        yield Fault(at, "stop", whom, chance.uniform(*bounds), 0.0)
