"""The log as JSON: an object a line, for machines that collect logs.

A line is ASCII and has no other line in it, whatever a peer had written into an event. Decides nothing about what is
logged: that is what `twisted.logger` is told, by us and by everybody else in the process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from math import isfinite
from typing import IO, Any

from twisted.logger import FileLogObserver, ILogObserver, formatEvent
from twisted.python.logfile import LogFile

from heartbeat.core.errors import SettingError

__all__ = ["FORMATS", "begin", "json_line", "json_observer", "judge"]

FORMATS = ("text", "json")

#: What a line says of its own, in this order; an event's own field of such a name has an underscore more.
MEMBERS = ("time", "level", "namespace", "message", "failure")

# What twisted.python.log adds to an event, or makes one of: where it stood, and how it would have written it.
_LEGACY = frozenset({"format", "isError", "message", "system", "time", "why", "failure", "log_legacy"})

# Where twist keeps what makes its observer of a file; twistd has no such option.
_TWIST = "fileLogObserverFactory"

# Deeper than this nobody looks, and something may hold itself.
_DEEPEST = 4

# Bits of a whole number; what is wider other readers of JSON take for another number.
_WIDEST = 63


def json_line(event: dict[str, Any]) -> str | None:
    """One event as a line of JSON; None for one that says nothing."""
    message, failure = formatEvent(event), event.get("log_failure")
    if not message and failure is None:
        return None
    level = event.get("log_level")
    line = {
        "time": _time(event.get("log_time")),
        "level": getattr(level, "name", "info"),
        "namespace": str(event.get("log_namespace", "-")),
        "message": message,
    }
    if failure is not None:
        line["failure"] = _traceback(failure)
    own = _LEGACY if "log_legacy" in event or "isError" in event else frozenset()
    for name, value in event.items():
        if isinstance(name, str) and not name.startswith("log_") and name not in own:
            shown = _plain(value, _DEEPEST)
            if shown is not _NOTHING:
                line[name + "_" if name in MEMBERS else name] = shown
    # ASCII: neither a line end of Unicode's nor half of a surrogate pair can do anything to whoever reads it.
    return json.dumps(line, ensure_ascii=True, allow_nan=False) + "\n"


def json_observer(file: IO[str]) -> FileLogObserver:
    """An observer (`twisted.logger.ILogObserver`) that writes each event to `file`, as `json_line` says."""
    return FileLogObserver(file, json_line)


def judge(form: str, launcher: Mapping[str, Any]) -> None:
    """Raise SettingError where the log cannot be written so; `launcher` are the options of twistd or of twist."""
    if form not in FORMATS:
        raise SettingError("log_format", form, "one of " + ", ".join(FORMATS))
    if form == "text":
        return
    for option in ("syslog", "logger"):
        if launcher.get(option):
            raise SettingError("log_format", form, f"text where twistd has --{option}, which decides by itself")
    if launcher.get("logfile") == "-" and not launcher["nodaemon"]:
        raise SettingError("log_format", form, "text where twistd has --logfile - and no -n: a daemon has no output")


def begin(launcher: MutableMapping[str, Any], application: Any) -> None:
    """Have twistd, or twist, write its log as JSON; called when it has written nothing yet.

    It goes where it would have gone as text. The observer is the application's, which twistd asks before it makes one.
    """
    if _TWIST in launcher:
        launcher[_TWIST] = json_observer
        return
    name = launcher.get("logfile")
    if launcher["nodaemon"] and name in (None, "", "-"):
        file: Any = sys.stdout
    else:
        file = LogFile.fromFullPath(name or "twistd.log")
        _rotate_on_signal(file)
    application.setComponent(ILogObserver, json_observer(file))


def _rotate_on_signal(file: LogFile) -> None:
    """As twistd does: SIGUSR1 has it begin a new file."""
    which = getattr(signal, "SIGUSR1", None)
    if which is None or signal.getsignal(which):
        return

    def rotate(_signal: int, _frame: Any) -> None:
        from twisted.internet import reactor  # noqa: PLC0415  # twistd has installed it by now

        reactor.callFromThread(file.rotate)

    signal.signal(which, rotate)


_NOTHING = object()


def _plain(value: Any, deeper: int) -> Any:
    """The value as JSON can say it, `_NOTHING` where it cannot."""
    if isinstance(value, list | tuple) and deeper:
        return [shown for part in value if (shown := _plain(part, deeper - 1)) is not _NOTHING]
    if isinstance(value, Mapping) and deeper:
        parts = {name: _plain(part, deeper - 1) for name, part in value.items() if isinstance(name, str)}
        return {_whole(name): part for name, part in parts.items() if part is not _NOTHING}
    for kind, shown in _SHOWN:
        if isinstance(value, kind):
            return shown(value)
    return _NOTHING


def _whole(text: str) -> str:
    """The text without halves of surrogate pairs, over which other readers of JSON stumble."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# A boolean is a whole number to Python, so it comes first.
_SHOWN: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (type(None), lambda value: value),
    (bool, lambda value: value),
    (int, lambda value: int(value) if value.bit_length() <= _WIDEST else _NOTHING),
    (float, lambda value: float(value) if isfinite(value) else str(value)),
    (str, _whole),
    (os.PathLike, lambda value: _whole(str(value))),
)


def _time(seconds: Any) -> str | None:
    """Seconds since 1970 after RFC 3339, in UTC, to the millisecond."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _traceback(failure: Any) -> str:
    try:
        return _whole(str(failure.getTraceback()))
    except Exception as error:  # noqa: BLE001  # what an exception says of itself is the application's code
        return f"(no traceback: {type(error).__name__})"
