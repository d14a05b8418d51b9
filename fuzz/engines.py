"""A fuzzer at work on one target, in a process of its own: atheris where it is installed, else our own breed.

Both tell how far they are in the words of libFuzzer, on standard error: `#executions WHAT cov: … corp: …`.
"""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fuzz.breeding import Breed
from fuzz.corpora import corpus, read, write
from fuzz.findings import HERE, Findings
from fuzz.reached import look_at
from fuzz.targets import LOOKED_AT, Target, load

__all__ = ["Task", "bred", "driven", "has_atheris", "prepared"]

#: Seconds between two lines that tell how far it is.
_OFTEN = 5.0
#: Seconds that no input takes.
_HANGS = 60


def has_atheris() -> bool:
    """Whether atheris is installed."""
    return find_spec("atheris") is not None


def prepared(name: str) -> tuple[Target, set[int]]:
    """A target that tells what is reached, and where it tells it."""
    reached = look_at(LOOKED_AT[name])
    return _quiet(load(name)), reached


def _quiet(target: Target) -> Target:
    from fuzz.logged import quiet  # noqa: PLC0415  # imports Twisted, which is to be imported after the hooks are there

    quiet()
    # What has been imported is never looked at again by the garbage collector.
    gc.collect()
    gc.freeze()
    return target


@dataclass(frozen=True)
class Task:
    """What a fuzzer is to do: with which target, for how long, and at most for how many inputs.

    `folder` is where it keeps what reaches something new, `scratch` one that is thrown away.
    """

    name: str
    folder: Path
    scratch: Path
    seconds: float
    seed: int
    runs: int | None


def bred(task: Task) -> None:
    """Fuzz with our own breed."""
    target, reached = prepared(task.name)
    findings = Findings(task.name, target.try_one)
    breed = Breed(task.seed, target.TOKENS, target.LONGEST)
    for data in (*target.beginnings(), *read(corpus(task.name)), *read(task.folder)):
        breed.try_it(findings.tried, reached, data)
    _told(breed, "INITED")
    again = time.monotonic() + _OFTEN
    for data, is_new in breed.live(findings.tried, reached, task.seconds, task.runs):
        if is_new:
            write(task.folder, data)
        if time.monotonic() > again:
            _told(breed, "pulse")
            again = time.monotonic() + _OFTEN
    _told(breed, "DONE")


def _told(breed: Breed, what: str) -> None:
    size = sum(map(len, breed.kept))
    sys.stderr.write(
        f"#{breed.tried} {what} cov: {len(breed.known)} ft: {len(breed.known)} corp: {len(breed.kept)}/{size}b\n"
    )
    sys.stderr.flush()


def _word(token: bytes) -> str:
    """A line of libFuzzer's dictionary."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n'


def driven(task: Task) -> None:
    """Fuzz with atheris, which never returns. Every other change is one of our own, which know what a word is."""
    import atheris  # type: ignore[import-untyped]  # noqa: PLC0415  # an extra that may be missing

    name, scratch = task.name, task.scratch
    with atheris.instrument_imports(include=list(LOOKED_AT[name])):
        target = load(name)
    findings = Findings(name, _quiet(target).try_one)
    breed = Breed(task.seed, target.TOKENS, target.LONGEST)

    def changed(data: bytes, most: int, seed: int) -> bytes:
        mutated: bytes = breed.changed(data, seed)[:most] if seed & 1 else atheris.Mutate(data, most)
        return mutated

    for data in target.beginnings():
        write(scratch / "beginnings", data)
    (scratch / "words").write_text("".join(map(_word, target.TOKENS)))
    found = HERE / "findings" / name
    found.mkdir(parents=True, exist_ok=True)
    task.folder.mkdir(parents=True, exist_ok=True)
    options = {
        "max_total_time": max(1, round(task.seconds)),
        "seed": task.seed,
        "runs": -1 if task.runs is None else task.runs,
        "max_len": target.LONGEST,
        "dict": scratch / "words",
        "timeout": _HANGS,
        "report_slow_units": _HANGS,
        "rss_limit_mb": 2048,
        "detect_leaks": 0,
        "reload": 0,
        "print_final_stats": 1,
        "artifact_prefix": f"{found}/",
    }
    folders = [task.folder, scratch / "beginnings", *([corpus(name)] if corpus(name).exists() else [])]
    command = [name, *(f"-{option}={value}" for option, value in options.items()), *map(str, folders)]
    atheris.Setup(command, findings.tried, custom_mutator=changed)
    atheris.Fuzz()
