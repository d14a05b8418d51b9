"""Rows: the disk under the sessions is full, or takes its time; neither is the line's fault, nor the other end's."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from faults.lab import HERE, NEEDS, Clients, Failed, Lab, Seen, fault, granted, now
from faults.rows import DEFAULTS, START, back_within, kept, nothing_of, ready, serve

__all__: list[str] = []

#: Bytes of the disk that fills up. SQLite's journal alone grows to 4 MB before it begins anew.
SIZE = 32_000_000
#: Seconds that the slow disk takes for each confirmation of what was written.
SLOW = 0.3


def _mount(where: Path) -> str | None:
    """Make a small file system there; why that cannot be, or None."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "faults", str(where)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)  # noqa: S603  # ours
    return done.stderr.strip() or "mount failed" if done.returncode else None


def _unmount(where: Path) -> None:
    subprocess.run(["umount", "--lazy", str(where)], check=True, capture_output=True, timeout=30)  # noqa: S603, S607


def _disks_missing() -> str | None:
    """Why no small file system can be made here."""
    if os.geteuid() != 0:
        return "a small file system needs root"
    with Lab("probe") as lab:
        why = _mount(lab.folder)
        if why is not None:
            return f"a small file system is not allowed: {why}"
        _unmount(lab.folder)
    return None


NEEDS["small disk"] = _disks_missing


def _fill(path: Path) -> None:
    """Write until there is no room for a byte more."""
    with path.open("wb", buffering=0) as file:
        for size in (65_536, 512, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)


def _progress(clients: Clients, since: float) -> dict[str, Any]:
    """What the clients say of themselves, at this moment or after it."""
    return dict(clients.first("progress", since=since).detail)


@fault(
    "disk full under the sessions (SQLite)",
    expected="nothing is acknowledged meanwhile, the beats go on; then nothing is lost or doubled",
    needs=("small disk",),
)
def disk_full(lab: Lab) -> Seen:
    """For longer than the bound of either end, so that a beat that depends on the disk would be found dead."""
    disk = lab.folder / "disk"
    disk.mkdir()
    _mount(disk)
    lab.callback(_unmount, disk)
    server = serve(lab, DEFAULTS, "--store", f"sqlite:{disk / 'sessions.db'}")
    clients = lab.clients(server.url(), 4, rate=5.0)
    ready(clients)
    _fill(disk / "full")
    server.first("line", where=lambda event: "what is asked of it waits" in event.detail["text"])
    full = now()
    # What was answered before is read by then.
    before = _progress(clients, full + 1.0)
    timing = granted(DEFAULTS)
    clients.until(full + max(timing.pinging_bound, timing.watching_bound))
    during = _progress(clients, now())
    if during["handled"] != before["handled"] or during["received"] != before["received"]:
        raise Failed("messages were acknowledged, or passed on, that were on no disk")
    beats, waiting = during["pongs"] - before["pongs"], during["sent"] - during["handled"]
    least = int(len(clients.names) * (now() - full) / (timing.interval + timing.timeout_min))
    if beats < least or waiting < 1:
        raise Failed(f"{beats} beats (at least {least} were to be) and {waiting} messages that wait")
    freed = now()
    (disk / "full").unlink()
    back = clients.back(freed, START)
    nothing_of(("closed", "reconnecting"), server, clients, since=full)
    return kept(
        clients.finish(),
        ends=(server, clients),
        recovered=back - freed,
        recovery_bound=back_within(DEFAULTS),
        note=f"full for {freed - full:.0f} s: {beats} beats, {waiting} messages waited; 4 clients",
    )


@fault(
    f"slow disk under the sessions (SQLite): {SLOW * 1000:.0f} ms for each fsync",
    expected="the beats do not wait for it; nothing is lost or doubled",
    needs=("gcc",),
)
def disk_slow(lab: Lab) -> Seen:
    """A program between the server and its kernel makes it so: there is no device to be had that is slow to confirm."""
    library = lab.folder / "slow_disk.so"
    compiler = shutil.which("gcc") or "gcc"
    lab.program([compiler, "-shared", "-fPIC", "-o", library, HERE / "slow_disk.c", "-ldl"]).wait(START)
    env = {"LD_PRELOAD": str(library), "SLOW_DISK_MS": f"{SLOW * 1000:.0f}"}
    server = serve(lab, DEFAULTS, "--store", f"sqlite:{lab.folder / 'sessions.db'}", env=env)
    # More than such a disk can take: the handlers of a session wait for it, each for its own commit.
    clients = lab.clients(server.url(), 4, rate=4.0)
    ready(clients)
    began = now()
    before = _progress(clients, began)
    clients.until(began + 10.0)
    during = _progress(clients, now())
    handled, most = (
        during["handled"] - before["handled"],
        len(clients.names) * ((during["at"] - before["at"]) / SLOW + 1),
    )
    if handled > most:
        raise Failed(f"{handled} messages were handled, and at most {most:.0f} can be: the disk is not slow")
    rtts = sorted(event.detail["rtt"] for event in clients.events("pong", since=began) if event.detail["rtt"])
    quarter, median = rtts[len(rtts) // 4], rtts[len(rtts) // 2]
    # What waits for such a disk waits for the commit that is under way, and then for its own.
    if quarter > SLOW / 2:
        raise Failed(f"the beats wait for the disk: three of four take {quarter:.3f} s or more")
    nothing_of(("closed", "reconnecting"), server, clients, since=began)
    return kept(
        clients.finish(),
        ends=(server, clients),
        note=f"{len(rtts)} beats, half of them within {median * 1000:.1f} ms; {handled} messages handled; 4 clients",
    )
