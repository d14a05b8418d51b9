"""Who may watch a server, and who may do something to it.

Whoever is on this machine may watch. To do something, and to watch from anywhere else, the token is to be shown. Knows
nothing of what is watched.
"""

from __future__ import annotations

import ipaddress
import os
import re
from hmac import compare_digest
from pathlib import Path
from typing import Any

from twisted.web.resource import Resource

from heartbeat.core.errors import SettingError
from heartbeat.web.answers import Refusal

__all__ = ["Guard", "is_near", "read_token"]

# Shorter ones can be guessed; what is longer than this is no token.
_SHORTEST, _LONGEST = 16, 1024

_SEPARATOR = re.compile(r"(?<!\\):")
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[^:]+)(?::[0-9]{1,5})?")


def read_token(path: str | os.PathLike[str]) -> bytes:
    """The token in this file: its only line. Raises SettingError (`admin_token`)."""
    try:
        token = Path(path).read_bytes().strip()
    except OSError as error:
        raise SettingError("admin_token", os.fspath(path), f"a file that can be read ({error.strerror})") from None
    if not _SHORTEST <= len(token) <= _LONGEST or not re.fullmatch(rb"[!-~]+", token):
        bound = f"a file with one line of {_SHORTEST} to {_LONGEST} visible ASCII characters"
        raise SettingError("admin_token", os.fspath(path), bound)
    return token


def is_near(description: str) -> bool:
    """Whether an endpoint description surely names a listener for this machine alone."""
    kind, *arguments = _SEPARATOR.split(description)
    if kind == "unix":
        return True
    if kind not in ("tcp", "tcp6", "ssl"):
        return False
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("interface=")]
    return len(named) == 1 and _is_loopback(named[0].replace("\\", ""))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_plain(host: bytes) -> bool:
    """Whether a Host header names an address, or this machine."""
    found = _HOST.fullmatch(host)
    name = found[1].decode("latin-1").lower() if found else ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class Guard:
    """Judges requests by the token, None where there is none; `near` where only this machine can send any."""

    def __init__(self, token: bytes | None, *, near: bool) -> None:
        self._token = token
        self._near = near

    def watches(self, request: Any) -> Resource | None:
        """What a request to see something is refused with; None where it may."""
        if self._shows_token(request):
            return None
        if not self._near:
            return _unauthorized()
        if not _is_plain(request.getHeader(b"host") or b"localhost"):
            # A stranger's page may have its own name mean this machine (DNS rebinding), and would read all of this.
            return Refusal(403, "only by an address, as localhost, or with the token (option --admin-token)")
        return None

    def acts(self, request: Any) -> Resource | None:
        """What a request to do something is refused with; None where it may."""
        if self._token is None:
            return Refusal(403, "nothing can be done here without a token (option --admin-token)")
        return None if self._shows_token(request) else _unauthorized()

    def _shows_token(self, request: Any) -> bool:
        kind, _, shown = (request.getHeader(b"authorization") or b"").partition(b" ")
        return self._token is not None and kind.lower() == b"bearer" and compare_digest(shown.strip(), self._token)


def _unauthorized() -> Resource:
    return Refusal(401, "this needs the token: Authorization: Bearer …", {"www-authenticate": "Bearer"})
