"""What a soak prints, and its verdict: a line a minute, then all that must hold, and whether it does.

Reads what a run has collected; starts nothing.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from faults.soak_run import Soak
from faults.soak_verdict import Allowed, Check, flat, rate_is_flat

__all__ = ["Table", "as_figures", "report", "say", "verdict"]

#: By how much the log may grow faster in the last third than in the middle one: what befalls is drawn by lot.
_LOG_SHARE = 0.15

#: Resident memory: two per cent, or 2 MiB for each process.
_MEMORY, _KIB = 0.02, 2048

_COLUMNS = (
    "minute",
    "server MiB",
    "files",
    "calls",
    "objects",
    "log KiB/min",
    "links",
    "sessions",
    "active",
    "clients MiB",
    "files",
    "calls",
    "objects",
    "faults",
    "convicted",
    "reopened",
    "messages",
    "lost",
    "twice",
    "CPU % server",
    "proxy",
    "clients",
)


def say(text: str) -> None:
    """A line for who waits."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Table:
    """The lines of the minutes; `rows` keeps them."""

    def __init__(self, soak: Soak) -> None:
        self._soak = soak
        self.rows: list[dict[str, float]] = []

    def start(self) -> None:
        """A line at the end of each minute from now on, and one in the end of what is shorter."""
        seconds = self._soak.plan.seconds
        for minute in range(1, max(1, int(seconds // 60)) + 1):
            self._soak.at(self._soak.began + min(60.0 * minute, seconds), lambda minute=minute: self.tell(minute))

    def tell(self, minute: int) -> None:
        """One line."""
        row = {"minute": minute} | self._server() | self._clients() | self._messages() | self._cpu()
        self.rows.append(row)
        if len(self.rows) == 1:
            say(" | ".join(_COLUMNS))
        say(" | ".join(_cell(value, head) for value, head in zip(row.values(), _COLUMNS, strict=True)))

    def _server(self) -> dict[str, float]:
        server, logs = self._soak.latest["server"], self._soak.series["server log"]
        since = [sample for sample in logs if sample[0] >= logs[-1][0] - 61]
        growth = 60 * (since[-1][1] - since[0][1]) / (since[-1][0] - since[0][0]) if len(since) > 1 else 0.0
        return {
            "server rss": server["rss"] / 1024,
            "server descriptors": server["descriptors"],
            "server delayed": server["delayed"],
            "server objects": server["objects"],
            "log a minute": growth / 1024,
            "connections": server["connections"],
            "sessions": server["sessions"],
            "active": server["presence"]["active"],
        }

    def _clients(self) -> dict[str, float]:
        crowds = [self._soak.latest.get(program.name, {}) for program in self._soak.crowds]
        summed = {
            name: sum(one.get(name, 0) for one in crowds) for name in ("rss", "descriptors", "delayed", "objects")
        }
        return {f"clients {name}": value / 1024 if name == "rss" else value for name, value in summed.items()}

    def _messages(self) -> dict[str, float]:
        soak = self._soak
        return {
            "faults": sum(soak.judge.faults.values()),
            "convicted": soak.judge.counts["convicted by clients"] + soak.judge.counts["convicted by the server"],
            "reopened": soak.total("reopened"),
            "messages": soak.total("received") + soak.total("heard"),
            "lost": soak.lost(),
            "twice": soak.total("doubled"),
        }

    def _cpu(self) -> dict[str, float]:
        cpu = {name: self._soak.cpu_since(name) for name in self._soak.programs}
        clients = sum(share for name, share in cpu.items() if name.startswith("clients"))
        return {"cpu server": cpu["server"], "cpu proxy": cpu["proxy"], "cpu clients": clients}


def _cell(value: float, head: str) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return text.rjust(len(head))


def verdict(soak: Soak) -> list[Check]:
    """All that must hold."""
    return [*_growth(soak), *_links(soak), *_messages(soak), *_end(soak)]


def _growth(soak: Soak) -> list[Check]:
    plan = soak.plan
    measured = {
        name: [sample for sample in samples if plan.warm <= sample[0] <= plan.seconds]
        for name, samples in soak.series.items()
    }
    few, many = Allowed(number=4, noisy=True), Allowed(share=0.01, noisy=True)
    objects = Allowed(share=0.02, noisy=True)
    rows = (
        ("server: resident memory", "server rss", Allowed(share=_MEMORY, number=_KIB), " KiB"),
        ("server: descriptors beyond one a link", "server beyond", few, ""),
        ("server: delayed calls", "server delayed", few, ""),
        ("server: objects", "server objects", objects, ""),
        ("server: blocks of memory", "server blocks", objects, ""),
        ("clients: resident memory", "clients rss", Allowed(share=_MEMORY, number=_KIB * plan.processes), " KiB"),
        ("clients: descriptors", "clients descriptors", many, ""),
        ("clients: delayed calls", "clients delayed", many, ""),
        ("clients: objects", "clients objects", objects, ""),
        ("clients: blocks of memory", "clients blocks", objects, ""),
    )
    checks = [flat(what, measured.get(name, []), allowed, unit) for what, name, allowed, unit in rows]
    return [*checks, rate_is_flat("server: log", soak.series["server log"], 0.0, plan.seconds, _LOG_SHARE)]


def _links(soak: Soak) -> list[Check]:
    counts = soak.judge.counts
    return [
        _none("convictions of a living end on a link that was well", counts["false"]),
        _none("links that ended without a cause", counts["unexplained"]),
        _none("silent links that outlived their bound", counts["outlived"]),
        _none("sessions that were not resumed", soak.total("anew")),
    ]


def _messages(soak: Soak) -> list[Check]:
    return [
        _none(f"lost, of {soak.summed('sent').total():,} messages to one", soak.never_came()),
        _none(f"lost, of {soak.total('to_hear'):,} that a group was to hear", soak.unheard()),
        _none("doubled", soak.total("doubled")),
        _none("not taken, for want of room", soak.total("refused")),
        _none("messages without word of what became of them", soak.total("outstanding")),
    ]


def _end(soak: Soak) -> list[Check]:
    connected, clients = soak.total("open"), soak.plan.clients
    return [
        Check("clients connected in the end", str(connected), str(clients), connected == clients),
        _none("connections that the server has when all have left", soak.latest["server"]["connections"]),
        _none("complaints, in logs and of programs", len(soak.complaints)),
        _none("programs that ended badly", soak.ended_badly),
    ]


def _none(what: str, count: int) -> Check:
    return Check(what, f"{count:,}", "0", count == 0)


def report(soak: Soak, table: Table, checks: list[Check]) -> None:
    """All that was seen, the verdict, what was wrong one by one, and how many checks have passed."""
    for line in (*_of_faults(soak), *_of_programs(soak, table)):
        say(line)
    wide = [max(len(getattr(check, part)) for check in checks) for part in ("what", "seen", "expected")]
    for check in checks:
        cells = (text.ljust(width) for text, width in zip((check.what, check.seen, check.expected), wide, strict=True))
        say(" | ".join((*cells, "yes" if check.passed else "NO")))
    for line in (*soak.judge.wrong[:20], *soak.complaints[:20]):
        say(line)
    passed = sum(check.passed for check in checks)
    say(f"\n{passed} passed, {len(checks) - passed} failed")


def _of_faults(soak: Soak) -> list[str]:
    plan, counts = soak.plan, soak.judge.counts
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(soak.judge.faults.items()))
    longest = f", the last after {max(soak.judge.noticed):.1f} s" if soak.judge.noticed else ""
    return [
        (
            f"\n{plan.clients} clients, {plan.minutes:g} minutes, seed {plan.seed}; each client had a fault every"
            f" {plan.fault_every:g} s, and processes stood still: {kinds}"
        ),
        (
            f"{counts['convicted by clients']} convictions by clients, {counts['convicted by the server']} by the"
            f" server; links opened again {soak.total('reopened')} times, sessions resumed {soak.total('resumed')}"
            f" times, {soak.total('unreachable')} times unreachable at first, {soak.total('visitors')} visitors"
        ),
        (
            f"{len(soak.judge.noticed)} ends of silent links noticed it{longest} (bound {soak.judge.bound:.1f} s, and"
            " 1 s to close)"
        ),
        f"what became of messages to one: {dict(soak.summed('finals'))}; missed in groups: {soak.total('missed')}",
    ]


def _of_programs(soak: Soak, table: Table) -> list[str]:
    late = ", ".join(
        f"{name} {len(times)} times, {max(times):.1f} s at most" for name, times in soak.judge.late.items()
    )
    count = max(1, len(table.rows))
    server, proxy, clients = (
        sum(row[f"cpu {who}"] for row in table.rows) / count for who in ("server", "proxy", "clients")
    )
    last = soak.latest["server"]
    return [
        f"programs that were late, or stopped: {late or 'none'}; settled in {soak.settled_in:.0f} s",
        (
            f"the server when all have left: {last['rss'] / 1024:.1f} MiB, {last['descriptors']} descriptors,"
            f" {last['delayed']} delayed calls, {last['objects']} objects, {last['sessions']} sessions,"
            f" {last['known']} names known; refused so far: {last['refused']}"
        ),
        f"of one core: server {server:.0f} %, proxy {proxy:.0f} %, clients {clients:.0f} %\n",
    ]


def as_figures(soak: Soak, table: Table, checks: list[Check]) -> dict[str, Any]:
    """All of it, for a file."""
    return {
        "plan": asdict(soak.plan),
        "rows": table.rows,
        "series": dict(soak.series),
        "faults": dict(soak.judge.faults),
        "counts": dict(soak.judge.counts),
        "noticed": sorted(soak.judge.noticed),
        "late": dict(soak.judge.late),
        "server in the end": soak.latest["server"],
        "progress": soak.progress,
        "wrong": soak.judge.wrong,
        "complaints": soak.complaints,
        "checks": [asdict(check) for check in checks],
    }
