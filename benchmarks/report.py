"""What was measured, as tables and as a picture; and on which machine, with which versions.

Medians of the rounds, with the least and the most beside them. Ratios are to Autobahn as it comes, in the same rounds:
they are what may be compared between machines.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contest import CONTESTANTS, HERE, PROJECT
from measures import MEASURES, Column, Measure

YARDSTICK = "autobahn"

#: What a file of raw figures holds: the facts, and by measure the scale, the date, the runs and who was left out.
Kept = dict[str, Any]

_OURS = ("txheartbeat", "twisted", "autobahn", "msgspec", "pyOpenSSL", "cryptography")
_THEIRS = ("websockets", "picows", "aiohttp", "uvicorn", "python-engineio", "uvloop", "orjson")

_PREFACE = """\
# Speed

Written by `benchmarks/speed.py`, not by hand; [README.md](README.md) says how the figures are taken, and how to read
them. Each is the median of the rounds, with the least and the most in brackets. `x` is the ratio to Autobahn as it
comes, in the same rounds, of the first column.
"""

#: The panels of the picture, and whether more is better.
_PANELS = {"ping": "answers a second\n(more is better)", "memory": "memory of a connection\n(less is better)"}
_PANELS["storm"] = "handshakes a second\n(more is better)"
_PLOTTED = (
    *("ours-own", "ours", "floor", "picows-orjson", "picows", "node-ws", "aiohttp", "websockets", "uvicorn"),
    *("engineio", "autobahn"),
)


# The facts.


def facts() -> dict[str, str]:
    """On what, and with what."""
    told = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kernel = ".".join(platform.release().split(".")[:2])
    return {
        "machine": f"{os.cpu_count()} cores ({models[0] if models else platform.machine()}), {memory:.0f} GiB,"
        f" {platform.system()} {kernel}",
        "ours": f"Python {platform.python_version()}, " + ", ".join(_project_versions()),
        "theirs": ", ".join(_versions(_THEIRS)),
        "others": ", ".join((*_node(), *_compiler())),
    }


def _versions(names: tuple[str, ...]) -> list[str]:
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return found


def _project_versions() -> list[str]:
    """Of what the project's own environment has, which may not be ours."""
    asked = f"import importlib.metadata as m; print(*(n + ' ' + m.version(n) for n in {_OURS!r}), sep='\\n')"
    return subprocess.run(
        [PROJECT / "python", "-c", asked], check=True, capture_output=True, text=True
    ).stdout.splitlines()


def _node() -> tuple[str, ...]:
    package = HERE / "node_modules" / "ws" / "package.json"
    if not package.exists() or shutil.which("node") is None:
        return ()
    node = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True)  # noqa: S607  # as started
    return f"Node {node.stdout.strip().removeprefix('v')}", f"ws {json.loads(package.read_text())['version']}"


def _compiler() -> tuple[str, ...]:
    gcc = shutil.which("gcc")
    if gcc is None:
        return ()
    return (
        f"gcc {subprocess.run([gcc, '-dumpfullversion'], check=True, capture_output=True, text=True).stdout.strip()}",
    )


# The tables.


def markdown(kept: Kept, picture: str) -> str:
    """All of it, with the picture of this name, if there is one."""
    told = kept["facts"]
    versions = f"{told['ours']}; beside them, in an environment of their own: {told['theirs']}; {told['others']}"
    lines = [_PREFACE, f"{told['machine']}. {versions}."]
    if picture:
        lines.append(f"\n![The ratios of three measures]({picture})")
    for name, measure in MEASURES.items():
        if name in kept["measures"]:
            lines += _section(measure, kept["measures"][name])
    return "\n".join(lines) + "\n"


def _section(measure: Measure, found: Kept) -> list[str]:
    scale = found["scale"]
    return [
        f"\n## {measure.title.format(**scale)}\n",
        f"{measure.lead.format(**scale)} Rounds: {scale['rounds']} ({found['date']}).\n",
        *_table(measure, found),
        *_remarks(found),
    ]


def _table(measure: Measure, found: Kept) -> list[str]:
    heads = ["server", *(column.title for column in measure.columns), *(["x"] if measure.compared else [])]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for name in measure.contestants:
        runs = good(found, name)
        if runs:
            cells = [CONTESTANTS[name].label, *(_cell(column, runs) for column in measure.columns)]
            cells += [_times(ratio(measure, found, name))] if measure.compared else []
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def good(found: Kept, name: str) -> list[Kept]:
    """The runs of a contestant that did not fail."""
    return [told for told in found["runs"].get(name, ()) if "failed" not in told]


def _cell(column: Column, runs: list[Kept]) -> str:
    figures = [column.of(told) for told in runs]
    shown = [f"{figure:,.{column.digits}f}" for figure in (statistics.median(figures), min(figures), max(figures))]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]}-{shown[2]})"


def ratio(measure: Measure, found: Kept, name: str) -> float | None:
    """Of the first column, the median to Autobahn's; None where one of the two is not there."""
    ours, theirs = good(found, name), good(found, YARDSTICK)
    if not ours or not theirs:
        return None
    of = measure.columns[0].of
    yardstick = statistics.median(map(of, theirs))
    return statistics.median(map(of, ours)) / yardstick if yardstick else None


def _times(number: float | None) -> str:
    return "" if number is None else f"{number:.2f}"


def _remarks(found: Kept) -> list[str]:
    lines = [f"- {CONTESTANTS[name].label} was left out: {why}." for name, why in found["left_out"].items()]
    for name, runs in found["runs"].items():
        said = Counter(told.get("failed") or told.get("remark") for told in runs)
        for sentence, times in said.items():
            if sentence:
                lines.append(f"- {CONTESTANTS[name].label}, in {times} of {len(runs)} runs: {sentence}.")
    return ["", *lines] if lines else []


# The picture.


def plot(kept: Kept, path: Path) -> bool:
    """Draw the ratios of three measures side by side; False where that cannot be done."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    # The same figures make the same file.
    mpl.rcParams.update({"svg.hashsalt": "heartbeat", "svg.fonttype": "none", "font.family": "sans-serif"})
    from matplotlib import pyplot as plt

    panels = [name for name in _PANELS if name in kept["measures"]]
    if not panels:
        return False
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels) + 1.4, 4.6), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], panels, strict=True):
        _panel(axis, MEASURES[name], kept["measures"][name])
    figure.suptitle("Ratios to Autobahn as it comes, which is 1", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    plt.close(figure)
    return True


def _panel(axis: Any, measure: Measure, found: Kept) -> None:
    names = _PLOTTED[::-1]
    ratios = [ratio(measure, found, name) for name in names]
    bars = axis.barh(
        [CONTESTANTS[name].label for name in names],
        [number or 0.0 for number in ratios],
        color=["#b3261e" if name.startswith("ours") else "#8a97a6" for name in names],
        height=0.7,
    )
    axis.axvline(1, color="black", linewidth=0.8, linestyle=":", zorder=0)
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    said = [_times(number) or "not measured" for number in ratios]
    axis.bar_label(bars, said, padding=3, fontsize=8, bbox=behind)
    axis.set_title(_PANELS[measure.name], fontsize=9.5)
    axis.margins(x=0.16)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9)
