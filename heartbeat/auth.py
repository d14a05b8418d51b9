"""Who is it? The hook by which an application lets clients in, and says who they are.

Finds the token where a client can put one; judges nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from heartbeat.core.errors import Unauthorized
from heartbeat.core.settings import is_client_id

__all__ = ["Authenticator", "Credentials", "Unauthorized", "checked_identity", "credentials_of"]

#: The query parameter and the cookie in which a token is looked for.
TOKEN = "token"  # noqa: S105  # a name, not a secret


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What a client shows.

    `token` is that of its `onopen`, else that of the query, else that of the cookie, all named `token`; None
    without any. `claimed` is the client id that it says is its own. `headers` are the handshake's, by their
    names in lower case; `query` its parameters, with all their values; `peer` the transport's address.
    """

    token: str | None
    claimed: str | None
    headers: Mapping[str, str]
    query: Mapping[str, list[str]]
    cookies: Mapping[str, str]
    origin: str
    peer: Any

    def __repr__(self) -> str:
        # A token has no business in a log.
        return f"Credentials(token={'…' if self.token else None}, claimed={self.claimed!r}, peer={self.peer!r})"


class Authenticator(Protocol):
    """Lets clients in. Given to a server's factory; asked once a connection, before its `onopen` is answered."""

    def authenticate(self, credentials: Credentials) -> str | Deferred[str]:
        """The client id (1 to 64 visible ASCII characters) of whoever shows these; may be a Deferred or coroutine.

        Raises (or fails with) `Unauthorized("a sentence")`, which the client can read; what else it raises is
        logged as a bug, and lets nobody in either.
        """
        ...


def credentials_of(protocol: Any, token: str | None, claimed: str | None) -> Credentials:
    """What the other end of an Autobahn server protocol shows."""
    headers: Mapping[str, str] = protocol.http_headers
    query: Mapping[str, list[str]] = protocol.http_request_params
    cookies = _cookies(headers.get("cookie", ""))
    return Credentials(
        token=token or next(iter(query.get(TOKEN, ())), None) or cookies.get(TOKEN),
        claimed=claimed,
        headers=headers,
        query=query,
        cookies=cookies,
        origin=protocol.websocket_origin or "",
        peer=protocol.transport.getPeer(),
    )


def checked_identity(name: object) -> str:
    """What an authenticator answered. Raises TypeError for what is no client id: a bug of its own."""
    if not is_client_id(name):
        raise TypeError(f"an Authenticator returns a client id of 1 to 64 visible ASCII characters, not {name!r}")
    return str(name)


def _cookies(header: str) -> Mapping[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header).items()}
    except CookieError:
        # Whatever else a page of the same host has set there is not ours to judge.
        return {}
