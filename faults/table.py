"""The table: what each row has seen, over one run or several, as text for a terminal and as Markdown for the document.

Formats and counts; runs nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from faults.lab import Fault, Seen

__all__ = ["MARKS", "Result", "as_markdown", "as_text", "rewritten", "sums"]

#: Between these the document has its table.
MARKS = ("<!-- faults -->", "<!-- /faults -->")

_HEADS = ("cause", "expected", "seen", "false convictions", "lost", "doubled", "recovery", "passed")
_WIDTHS = (26, 34, 40, 11, 5, 7, 16, 12)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one row in one run: what was seen, or why nothing was.

    `skipped`: why it could not run here; `failed`: the sentence of what went wrong; `took`: seconds.
    """

    fault: Fault
    seen: Seen | None = None
    skipped: str = ""
    failed: str = ""
    took: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether it has run, and all was as it should be."""
        return self.seen is not None and self.seen.passed

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.skipped and not self.failed:
            return "not run here"
        return "yes" if self.passed else "NO"


def as_text(results: Sequence[Result]) -> str:
    """One run, for a terminal."""
    lines = [_line(_HEADS), "-+-".join("-" * width for width in _WIDTHS)]
    lines += [_line(_cells([result])) for result in results]
    return "\n".join(lines)


def as_markdown(runs: Sequence[Sequence[Result]]) -> str:
    """One or several runs, a row for each fault with the range over the runs."""
    lines = ["| " + " | ".join(_HEADS) + " |", "|" + " --- |" * len(_HEADS)]
    rows = (_cells(results) for results in zip(*runs, strict=True))
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def rewritten(text: str, table: str) -> str:
    """The document with this table between its marks; at its end where it has none yet. Raises ValueError for half."""
    begin, end = MARKS
    if begin not in text and end not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n".lstrip()
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed) or begin in rest or end in tail:
        raise ValueError(f"the document must have {begin} and after it {end}, once each")
    return f"{head}{begin}\n\n{table}\n\n{end}{tail}"


def sums(results: Sequence[Result]) -> str:
    """`N passed, N failed`, and what was not run."""
    skipped = sum(result.verdict == "not run here" for result in results)
    passed = sum(result.passed for result in results)
    line = f"{passed} passed, {len(results) - passed - skipped} failed"
    return f"{line}, {skipped} skipped" if skipped else line


def _cells(results: Sequence[Result]) -> tuple[str, ...]:
    """The row of one fault, over its runs."""
    fault, last = results[0].fault, results[-1]
    # Of several verdicts the worst counts.
    verdicts = {result.verdict for result in results}
    verdict = next(word for word in ("NO", "not run here", "yes") if word in verdicts)
    seen = [result.seen for result in results if result.seen is not None]
    why = next((result.failed or result.skipped for result in results if result.seen is None), "")
    if not seen:
        return (fault.cause, fault.expected, why, "", "", "", "", verdict)
    found = [
        _range([one.detected for one in seen], last.seen.bound if last.seen else seen[-1].bound, "noticed in"),
        seen[-1].note,
        why,
    ]
    return (
        fault.cause,
        fault.expected,
        "; ".join(filter(None, found)),
        _most(seen, lambda one: one.false_convictions),
        _most(seen, lambda one: one.lost),
        _most(seen, lambda one: one.doubled),
        _range([one.recovered for one in seen], seen[-1].recovery_bound),
        verdict,
    )


def _most(seen: Sequence[Seen], count: Callable[[Seen], int]) -> str:
    return str(max(map(count, seen)))


def _range(values: Sequence[float | None], bound: float | None, words: str = "") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "" if bound is None else "never"
    least, most = f"{min(known):.1f}", f"{max(known):.1f}"
    figure = f"{most} s" if least == most else f"{least}-{most} s"
    figure = figure if bound is None else f"{figure} of {bound:.1f} s"
    return f"{words} {figure}".strip()


def _line(cells: Sequence[str]) -> str:
    columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, _WIDTHS, strict=True)]
    height = max(map(len, columns))
    rows = ([column[at] if at < len(column) else "" for column in columns] for at in range(height))
    padded = ((f"{cell:{width}}" for cell, width in zip(row, _WIDTHS, strict=True)) for row in rows)
    return "\n".join(" | ".join(row).rstrip() for row in padded)
