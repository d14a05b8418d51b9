"""What the suite found, laid beside what it finds of Autobahn alone, and what follows from that.

A case fails a configuration when it FAILED, or when it is worse than Autobahn's: NON-STRICT or UNIMPLEMENTED where that
is neither, or a close that is not as it should be where that one is. Knows nothing of how a case is run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Configuration", "Outcome", "Result", "Verdict", "as_text", "judge"]

#: The suite's words for a case that is as it should be, or that only tells something.
_GOOD = ("OK", "INFORMATIONAL")
#: Its words for a case that is allowed, but not what one would wish for.
_ALLOWED = ("NON-STRICT", "UNIMPLEMENTED")

_COLUMNS = (
    "configuration",
    "cases",
    "OK",
    "NON-STRICT",
    "INFORMATIONAL",
    "FAILED",
    "UNIMPLEMENTED",
    "close",
    "beside Autobahn",
    "past Autobahn's parser",
    "time",
)


@dataclass(frozen=True)
class Configuration:
    """One way to be examined: which end, on which stack, by which path, with or without permessage-deflate."""

    end: str
    stack: str
    deflate: bool = False
    fast: bool = False

    @property
    def name(self) -> str:
        """In words; also what the suite calls the agent."""
        path = {"server": "fast path" if self.fast else "plain path"}.get(self.end, "")
        words = (
            f"{self.stack} {self.end}",
            "" if self.stack == "autobahn" else path,
            "deflate" if self.deflate else "",
        )
        return ", ".join(word for word in words if word)

    @property
    def folder(self) -> str:
        """The name as one of a folder."""
        return self.name.replace(", ", "-").replace(" ", "-")

    @property
    def row(self) -> tuple[bool, bool]:
        """Where it stands in the table: those that are compared below each other."""
        return self.end == "client", self.deflate

    @property
    def measure(self) -> Configuration:
        """What it is measured by."""
        return Configuration(self.end, "autobahn", self.deflate)

    @property
    def is_measure(self) -> bool:
        """Whether others are measured by it."""
        return self == self.measure


@dataclass(frozen=True)
class Outcome:
    """What the suite says of one case: of what was done, and of the close; and where it says it at length.

    `is_late`: the suite's own clock ended it.
    """

    behavior: str
    close: str
    report: Path
    is_late: bool = False


@dataclass
class Result:
    """What came of a configuration: of its cases, and as a server itself has seen it.

    `must_be_fast`: among the cases are texts that the fast path takes; `trouble`: what went wrong besides, each in a
    sentence; `again`: the cases that were examined twice.
    """

    configuration: Configuration
    must_be_fast: bool = False
    cases: tuple[str, ...] = ()
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)
    again: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def checks(self) -> int:
        """How many things could have failed: each case, and the way by which messages came."""
        return len(self.cases) + bool(self.seen)


@dataclass(frozen=True)
class Verdict:
    """What failed of a configuration: around the cases, in them, and the cases of which the suite told nothing."""

    result: Result
    trouble: tuple[str, ...]
    bad: dict[str, str]
    missing: tuple[str, ...]

    @property
    def late(self) -> tuple[str, ...]:
        """The cases that failed because the suite's own clock ended them."""
        return tuple(case for case in self.bad if self.result.outcomes[case].is_late)

    @property
    def failed(self) -> int:
        """How many things failed."""
        return len(self.trouble) + len(self.bad) + len(self.missing)

    def sentences(self) -> Iterator[str]:
        """What failed, case by case."""
        yield from self.trouble
        yield from (f"{case} {why}" for case, why in self.bad.items())
        if self.missing:
            first = " ".join(self.missing[:5])
            yield f"{len(self.missing)} cases have no outcome, the first {first}"


def judge(result: Result, measure: Result | None) -> Verdict:
    """What follows from a result, and that of Autobahn alone."""
    theirs = {} if measure is None or measure is result else measure.outcomes
    judged = {case: _why(found, theirs.get(case)) for case, found in result.outcomes.items()}
    bad = {case: f"{why}: {result.outcomes[case].report}" for case, why in judged.items() if why}
    missing = tuple(case for case in result.cases if case not in result.outcomes)
    return Verdict(result, (*result.trouble, *_wrong_way(result)), bad, missing)


def _wrong_way(result: Result) -> Iterator[str]:
    """Messages must have come by the way that was asked for, or something else was examined."""
    past, fast = result.seen.get("past_autobahn", 0), result.seen.get("fast_connections", 0)
    if result.seen and result.must_be_fast and not (past and fast):
        yield f"no text came by the fast path ({fast} connections were on it)"
    if not result.configuration.fast and (past or fast):
        yield f"{past} messages came past Autobahn's parser, with the fast path off"


def _why(found: Outcome, theirs: Outcome | None) -> str:
    if found.behavior not in (*_GOOD, *_ALLOWED):
        return f"{found.behavior}, close {found.close}" + (f" (Autobahn: {theirs.behavior})" if theirs else "")
    if theirs is None:
        return ""
    if found.behavior in _ALLOWED and found.behavior != theirs.behavior:
        return f"{found.behavior}, and of Autobahn {theirs.behavior}"
    if found.close not in _GOOD and theirs.close in _GOOD:
        return f"closes {found.close}, and Autobahn {theirs.close}"
    return ""


def as_text(verdicts: list[Verdict]) -> str:
    """The table: a row for each configuration."""
    lines = [_COLUMNS, *map(_row, verdicts)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(_COLUMNS))]
    left = {0, _COLUMNS.index("beside Autobahn")}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _row(verdict: Verdict) -> tuple[str, ...]:
    result = verdict.result
    behaviors = Counter(outcome.behavior for outcome in result.outcomes.values())
    closes = sum(outcome.close not in _GOOD for outcome in result.outcomes.values())
    # Whatever else the suite says is no praise, and neither is its silence.
    failed = len(result.cases) - sum(behaviors[word] for word in (*_GOOD, *_ALLOWED))
    beside = "(the measure)" if result.configuration.is_measure else "no worse"
    way = f"{result.seen['past_autobahn']} of {result.seen['texts']} texts" if result.seen else "-"
    return (
        result.configuration.name,
        str(len(result.cases)),
        str(behaviors["OK"]),
        str(behaviors["NON-STRICT"]),
        str(behaviors["INFORMATIONAL"]),
        str(failed),
        str(behaviors["UNIMPLEMENTED"]),
        str(closes),
        f"{verdict.failed} FAILED" if verdict.failed else beside,
        way,
        f"{result.seconds:.0f} s",
    )
