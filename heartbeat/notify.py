"""Word to the service manager that started the process: systemd, or whoever else speaks sd_notify(3).

A few words in one datagram to a socket that the environment names. Waits for no answer, and for nobody who does not
read; what cannot be said is said in the log instead, once.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Self

from twisted.logger import Logger

__all__ = ["Manager"]

_log = Logger()


class Manager:
    """Whoever started us and wants to know how it goes, at the socket `address` (`@…`: an abstract one).

    `patience`: seconds without a word after which he takes us for dead; None where he does not look.
    """

    def __init__(self, address: str, patience: float | None = None) -> None:
        self.patience = patience
        self._address = address
        self._has_complained = False

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Self | None:
        """The one that this environment names; None where there is none."""
        address = environ.get("NOTIFY_SOCKET")
        if not address:
            return None
        return cls(address, _patience_of(environ))

    def ready(self) -> None:
        """We listen, and whoever comes is served."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """We read our files again; `ready` follows."""
        # Of a `Type=notify-reload` it is asked that it says since when.
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """We are on our way out."""
        self._tell("STOPPING=1")

    def alive(self) -> None:
        """The reactor turns."""
        self._tell("WATCHDOG=1")

    def _tell(self, words: str) -> None:
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                line.setblocking(False)
                line.sendto(words.encode(), address)
        except (OSError, AttributeError) as error:
            # A platform without such sockets has no such attribute.
            if not self._has_complained:
                self._has_complained = True
                _log.warn(
                    "the service manager at {address} cannot be told {words}: {error}",
                    address=self._address,
                    words=words.partition("\n")[0],
                    error=error,
                )


def _patience_of(environ: Mapping[str, str]) -> float | None:
    """Seconds, where the watch is over this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        patience = int(environ["WATCHDOG_USEC"]) / 1_000_000
    except (KeyError, ValueError):
        return None
    return patience if patience > 0 else None
