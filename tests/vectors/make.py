"""Makes the vectors that are recorded of the Python core, and replays them: `python tests/vectors/make.py`.

The two cores, Python's and JavaScript's, must not drift apart, so both are held to the same files. What a person can
think of is written by hand (transitions.json, wire.json, exchanges.json); what only chance thinks of is recorded here:
random walks through the monitor, sequences of round trips, delays. Chance is seeded, so the files never change by
themselves; a test of either language fails when its core does.

In the files all times are milliseconds, multiples of 125, so that the seconds of Python are exact in binary and a
deadline that is met on the dot is met on the dot in both.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

from heartbeat.core.backoff import Backoff
from heartbeat.core.errors import is_final_close
from heartbeat.core.monitor import Confirm, Convict, Monitor, SendPing, SendProbe, Traffic
from heartbeat.core.rtt import RoundTrip
from heartbeat.core.settings import Timing

HERE = Path(__file__).parent

_EFFECTS: dict[type, Callable[[Any], list[Any]]] = {
    SendPing: lambda effect: ["ping", effect.ping_id],
    SendProbe: lambda effect: ["probe", effect.ping_id],
    Confirm: lambda effect: ["confirm"],
    Convict: lambda effect: ["convict", effect.reason],
}


def read(name: str) -> Any:
    """The vectors in a file of this name."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


#: The hand-written scenarios, and what holds in any scenario that does not say otherwise: its timing, its roles, and
#: how a monitor looks that is fresh.
TRANSITIONS = read("transitions")
TIMING, ROLES, FRESH = TRANSITIONS["timing"], TRANSITIONS["roles"], TRANSITIONS["fresh"]


def ms(seconds: float) -> float | None:
    """Seconds as the files have them: whole where they are, null for never."""
    if seconds == inf:
        return None
    value = seconds * 1000
    return int(value) if value == int(value) else value


class Replay:
    """A Python monitor that is told what a scenario tells."""

    def __init__(self, timing: dict[str, Any], roles: dict[str, Any]) -> None:
        self.monitor = Monitor(timing_of(timing), 0.0, **roles_of(roles))

    def step(self, what: str, arguments: dict[str, Any], now_ms: float) -> Any:
        """Tell it; returns what it answers, as the files have it."""
        return INPUTS[what](self.monitor, now_ms / 1000, **arguments)

    def looks(self, now_ms: float) -> dict[str, Any]:
        """What is to be seen of it."""
        monitor = self.monitor
        return {
            "state": str(monitor.state),
            "next_at_ms": ms(monitor.next_at),
            "busy": monitor.busy,
            "sent": monitor.sent,
            "reason": monitor.reason,
            "unanswered_for_ms": ms(monitor.unanswered_for(now_ms / 1000)),
        }


def timing_of(timing: dict[str, Any]) -> Timing:
    """A timing of the files as Python's; what it does not say is as ever."""
    timing = TIMING | timing
    low, high = timing["timeout_ms"]
    return Timing(
        interval=timing["interval_ms"] / 1000,
        timeout_min=low / 1000,
        timeout_max=high / 1000,
        probe=timing["probe_ms"] / 1000,
        watch=timing["watch_ms"] / 1000,
        tick=timing["tick_ms"] / 1000,
        patience=timing["patience_ms"] / 1000,
        fixed=timing["fixed"],
    )


def roles_of(roles: dict[str, Any]) -> dict[str, Any]:
    """The roles of the files as Python's arguments."""
    roles = ROLES | roles
    return {"pings": roles["pings"], "watches": roles["watches"], "first_ping": roles["first_ping_ms"] / 1000}


def _traffic(given: int, written: int) -> Traffic:
    # A page is not told what the peer's kernel has acknowledged, nor that a frame is growing.
    return Traffic(given, written, delivered=written)


def _effect(effects: tuple[Any, ...]) -> list[Any] | None:
    return _EFFECTS[type(effects[0])](effects[0]) if effects else None


def _judged(name: str) -> Callable[..., Any]:
    def step(monitor: Monitor, now: float, *, given: int = 0, written: int = 0, stalls: int = 0) -> Any:
        return _effect(getattr(monitor, name)(now, _traffic(given, written), stalls))

    return step


def _answered(monitor: Monitor, now: float, *, id: int | None = None, stalls: int = 0) -> Any:  # noqa: A002  # the wire's word
    rtt = monitor.answered(id, now, stalls)
    return None if rtt is None else ms(rtt)


def _declare(monitor: Monitor, now: float, *, timing: dict[str, Any], roles: dict[str, Any]) -> None:
    monitor.declare(timing_of(timing), now, **roles_of(roles))


def _told(name: str) -> Callable[..., None]:
    def step(monitor: Monitor, now: float) -> None:
        getattr(monitor, name)(now)

    return step


INPUTS: dict[str, Callable[..., Any]] = {
    "open": lambda monitor, now, stalls=0: _effect(monitor.open(now, stalls)),
    "heard": _told("heard"),
    "answered": _answered,
    "check": _judged("check"),
    "confirm": _judged("confirm"),
    "woke": _judged("woke"),
    "pinged": _told("pinged"),
    "declare": _declare,
    "hold": lambda monitor, now, ms: monitor.hold(ms / 1000, now),
    "convict": lambda monitor, now, reason: _effect(monitor.convict(reason)),
    "close": _told("close"),
}


class _Walk:
    """One walk by chance through a monitor, on a grid of an eighth of a second."""

    def __init__(
        self, chance: random.Random, timing: dict[str, Any] | None = None, roles: dict[str, Any] | None = None
    ) -> None:
        self.chance = chance
        # Some peers talk, and never answer.
        self.answers = chance.random() < 0.85
        self.timing = self._some_timing() if timing is None else timing
        self.roles = self._some_roles() if roles is None else roles
        self.replay = Replay(self.timing, self.roles)
        self.now = self.stalls = self.given = self.written = 0
        self.looked: dict[str, Any] = FRESH
        self.begins = self._changes()
        self.steps: list[list[Any]] = []
        self._asked = False

    def _some_timing(self) -> dict[str, Any]:
        chance, timing = self.chance, {}
        if chance.random() < 0.3:
            timing["patience_ms"] = chance.choice((0, 5000, 15_000))
        if chance.random() < 0.2:
            timing["interval_ms"] = chance.choice((500, 1000, 2500))
        if chance.random() < 0.2:
            timing["timeout_ms"] = chance.choice(([250, 4000], [1000, 1000], [500, 12_000]))
        return timing

    def _some_roles(self) -> dict[str, Any]:
        pings = self.chance.random() < 0.7
        return {"pings": pings, "watches": not pings, "first_ping_ms": self.chance.choice((0, 0, 1500))}

    def vector(self, name: str, most: int) -> dict[str, Any]:
        """So many steps of it, or fewer where it ends before."""
        if self.chance.random() < 0.8:
            self._step("open", self._stalling())
        while len(self.steps) < most:
            self._wander()
            if self.looked["state"] == "dead" and self.chance.random() < 0.25:
                break
        if self.chance.random() < 0.3:
            self._step("close", {})
            self._step("heard", {})
        return self._told(name)

    def chatter(self, pings: int) -> dict[str, Any]:
        """A peer that talks and does not answer so many pings; then it answers some, of which not all are known."""
        self._step("open", {})
        while self.looked["sent"] < pings:
            self._step("heard", {})
            self.now = self.looked["next_at_ms"]
            self._step("check", {})
        for ping_id in (1, pings - 64, pings - 63, pings, None):
            self.now += 125
            self._step("answered", {"id": ping_id})
        why = "a page remembers each ping of a connection; there are fewer"
        return {"only": "python", "why": why} | self._told("more pings than are remembered")

    def _wander(self) -> None:
        chance = self.chance
        if self._asked:
            # The reactor turns; once in a while something is read meanwhile.
            if chance.random() < 0.3:
                self._step("heard", {})
                if self.answers and chance.random() < 0.4:
                    self._answer()
            self._step("confirm", self._traffic())
            return
        self._pass()
        kinds = ("check", "heard", "answered", "woke", "pinged", "confirm", "rare")
        weights = (1, 1, 1, 1, 1, 1, 0) if self.looked["state"] == "dead" else (50, 17, 20, 3, 3, 2, 5)
        what = chance.choices(kinds, weights)[0]
        if not self.answers and what == "answered":
            what = "heard"
        if what == "answered":
            # The bytes of a frame are told of before it is; not so where the machine has read them all before.
            if chance.random() < 0.8:
                self._step("heard", {})
            self._answer()
        elif what in ("heard", "pinged"):
            self._step(what, {})
        elif what == "rare":
            self._rare()
        else:
            self._move_bytes()
            self._step(what, self._traffic())

    def _rare(self) -> None:
        what = self.chance.choice(("declare", "convict", "stall"))
        if what == "declare":
            pings = self.chance.random() < 0.5
            roles = {"pings": pings, "watches": not pings, "first_ping_ms": self.chance.choice((0, 3000))}
            timing = {"interval_ms": self.chance.choice((1000, 6000)), "probe_ms": self.chance.choice((1000, 3000))}
            self._step("declare", {"timing": timing, "roles": roles})
        elif what == "convict" and self.chance.random() < 0.3:
            self._step("convict", {"reason": "refused"})
        else:
            self.stalls += 1

    def _pass(self) -> None:
        """Time passes: until something is due, a little longer, or just so."""
        due = self.looked["next_at_ms"]
        kind = self.chance.choices(("due", "late", "some"), (50, 10, 40))[0]
        if due is None or kind == "some":
            self.now += 125 * self.chance.choice((0, 1, 2, 8, 8, 24, 40))
            return
        # A deadline may lie between two points of the grid: then it is met at the next.
        self.now = max(self.now, 125 * -(-int(due) // 125) + (125 if due % 125 else 0))
        if kind == "late":
            self.now += 125 * self.chance.choice((1, 2, 20))

    def _move_bytes(self) -> None:
        if self.chance.random() < 0.2:
            self.given += self.chance.choice((30, 1000, 100_000))
        if self.chance.random() < 0.6:
            self.written += self.chance.choice((0, 30, 500, self.given - self.written))
        self.written = min(self.written, self.given)

    def _stalling(self) -> dict[str, Any]:
        return {"stalls": self.stalls} if self.stalls else {}

    def _traffic(self) -> dict[str, Any]:
        moved = {"given": self.given, "written": self.written} if self.given else {}
        return moved | self._stalling()

    def _answer(self) -> None:
        sent = self.looked["sent"]
        ping_id = self.chance.choices((sent, max(0, sent - self.chance.randint(1, 3)), sent + 1, None), (70, 15, 2, 13))
        self._step("answered", {"id": ping_id[0]} | self._stalling())

    def _step(self, what: str, arguments: dict[str, Any]) -> None:
        result = self.replay.step(what, arguments, self.now)
        self._asked = result == ["confirm"] or (self._asked and what not in ("heard", "confirm", "woke"))
        self.steps.append([[what, arguments, self.now], result, self._changes()])

    def _told(self, name: str) -> dict[str, Any]:
        told = {"timing": self.timing, "roles": self.roles, "begins": self.begins, "steps": self.steps}
        return {"name": name} | told

    def _changes(self) -> dict[str, Any]:
        looks = self.replay.looks(self.now)
        changes = {name: value for name, value in looks.items() if value != self.looked[name]}
        self.looked = looks
        return changes


def walks() -> list[dict[str, Any]]:
    """300 walks through the monitor by chance, and one on purpose; what they tell is what Python's does."""
    chance = random.Random("three hundred walks")
    by_chance = [_Walk(chance).vector(f"walk {n}", chance.choice((10, 20, 30))) for n in range(1, 301)]
    patient = _Walk(chance, timing={"patience_ms": 3_600_000}, roles={"pings": True, "watches": False})
    return [*by_chance, patient.chatter(70)]


def rtt() -> list[dict[str, Any]]:
    """Sequences of round trips, and what follows after each."""
    chance = random.Random("round trips")
    clamp = {"tick_ms": 200, "low_ms": 3000, "high_ms": 6000}
    wide = {"tick_ms": 200, "low_ms": 50, "high_ms": 60_000}
    sequences: list[tuple[str, dict[str, Any], list[float]]] = [
        ("none yet", clamp, []),
        ("one, and the floor holds", clamp, [20]),
        ("one, and the ceiling holds", clamp, [5000]),
        ("one, between the two", clamp, [1500]),
        ("of no time at all", wide, [0, 0, 0]),
        ("steady: the variation dies out, and the tick is left", wide, [100] * 40),
        ("a step up, and down again", wide, [40] * 5 + [900] * 5 + [40] * 5),
        ("one that went astray", wide, [50, 50, 50, 5000, 50, 50, 50]),
        ("parts of a millisecond", wide, [0.25, 0.5, 0.125, 0.75, 0.1]),
        ("a minute", wide, [60_000, 59_000, 61_000]),
    ]
    sequences += [
        (f"by chance {n}", chance.choice((clamp, wide)), [round(chance.lognormvariate(5, 1.5), 3) for _ in range(12)])
        for n in range(1, 21)
    ]
    return [{"name": name, **clamp, "steps": list(_round_trips(clamp, samples))} for name, clamp, samples in sequences]


def _round_trips(clamp: dict[str, Any], samples: list[float]) -> Iterator[list[float | None]]:
    tick, low, high = (clamp[name] / 1000 for name in ("tick_ms", "low_ms", "high_ms"))
    trip = RoundTrip()
    yield [None, None, 0, trip.timeout(tick, low, high) * 1000]
    for sample in samples:
        trip.sample(sample / 1000)
        yield [sample, (trip.srtt or 0) * 1000, trip.rttvar * 1000, trip.timeout(tick, low, high) * 1000]


def backoff() -> dict[str, Any]:
    """Delays before attempts, after a drain, after a restart; and the close codes after which there are none."""
    chance = random.Random("delays")
    edges = (0.0, 0.25, 0.5, 0.75, 1 - 2**-53)
    plans = [([1000, 4000, 16_000], 3), ([1000, 4000], 5), ([1000], 0), ([0, 250], 4)]
    drains = [(0, 5000, 120_000), (2000, 5000, 120_000), (0, 100_000, 20_000), (15_000, 30_000, 20_000), (0, 0, 1000)]
    return {
        "attempts": [
            {"delays_ms": delays, "attempts": attempts, "u": u, "next_delay_ms": _delays(delays, attempts, u)}
            for delays, attempts in plans
            for u in ([edge] * (attempts + 1) for edge in edges)
        ]
        + [
            {"delays_ms": delays, "attempts": attempts, "u": u, "next_delay_ms": _delays(delays, attempts, u)}
            for delays, attempts in plans
            for u in [[chance.random() for _ in range(attempts + 1)]]
        ],
        "drained": [
            {
                "min_ms": shortest,
                "max_ms": longest,
                "window_ms": window,
                "u": u,
                "delay_ms": Backoff.drained(shortest / 1000, longest / 1000, window / 1000, u) * 1000,
            }
            for shortest, longest, window in drains
            for u in (*edges, chance.random())
        ],
        "restarted": [{"u": u, "delay_ms": Backoff.restarted(u) * 1000} for u in (*edges, chance.random())],
        "final": [code for code in range(5000) if is_final_close(code)],
    }


def _delays(delays: list[int], attempts: int, u: list[float]) -> list[float | None]:
    tries = Backoff(tuple(delay / 1000 for delay in delays), attempts)
    found = [tries.next_delay(one) for one in u]
    return [None if delay is None else delay * 1000 for delay in found]


#: The files that are made, and by what.
MADE: dict[str, Callable[[], Any]] = {"walks": walks, "rtt": rtt, "backoff": backoff}


def text_of(vectors: Any) -> str:
    """The vectors as their file has them: one a line, so that a change shows where it is."""
    if isinstance(vectors, list) and not isinstance(vectors[0], dict):
        return json.dumps(vectors) + "\n"
    if isinstance(vectors, list):
        return "[\n" + ",\n".join(json.dumps(one, separators=(",", ":")) for one in vectors) + "\n]\n"
    parts = (f"{json.dumps(name)}: {text_of(part).strip()}" for name, part in vectors.items())
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    for name, make in MADE.items():
        (HERE / f"{name}.json").write_text(text_of(make()), encoding="utf-8")
