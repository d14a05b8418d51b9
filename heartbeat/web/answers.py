"""How the site answers: by what is fixed, or by a refusal.

Knows the bytes that it was given, and nothing of files: no path of a request ever becomes one of the file system's.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from http import HTTPStatus
from typing import Any

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

__all__ = ["TEXT", "Fixed", "Headers", "Readable", "Refusal", "answer", "nothing", "takes"]

#: Of an answer: names in lower case, and values.
Headers = dict[str, str]

TEXT = {"content-type": "text/plain; charset=utf-8"}

_ALWAYS = {
    # To be asked for each time, so that a new version is seen at once.
    "cache-control": "no-cache",
    # Nothing here is to be taken for what it is not said to be.
    "x-content-type-options": "nosniff",
}

_REFUSED = re.compile(rb"q=0(\.0{0,3})?")
_TAG = re.compile(rb'"[^"]*"')


def answer(request: Any, body: bytes, headers: Headers, code: int = 200) -> Any:
    """Answer with this, and end. Of a HEAD request, and with 304, the head alone is sent."""
    # Twisted has no phrase for some of them.
    request.setResponseCode(code, HTTPStatus(code).phrase.encode())
    for name, value in (_ALWAYS | headers).items():
        request.setHeader(name, value)
    if code != 304:
        # RFC 9110, section 8.6: that of a 304 would be the length of what is not sent again.
        request.setHeader("content-length", str(len(body)))
    request.write(body)
    request.finish()
    return NOT_DONE_YET


def takes(request: Any, header: bytes, word: bytes) -> bool:
    """Whether `header`, a list of what a client takes, names this word, and not to refuse it by `q=0`.

    RFC 9110, section 12.4.2. A `*` names nothing: whoever takes anything gets what is plain.
    """
    for item in b",".join(request.requestHeaders.getRawHeaders(header, ())).lower().split(b","):
        name, *parameters = (part.strip() for part in item.split(b";"))
        if name == word:
            return not any(_REFUSED.fullmatch(parameter) for parameter in parameters)
    return False


class Refusal(Resource):
    """A no in one sentence, also to whatever is below."""

    isLeaf = True

    def __init__(self, code: int, sentence: str, headers: Headers | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._code = code
        self._body = f"{sentence}\n".encode()
        self._headers = TEXT | (headers or {})

    def render(self, request: Any) -> Any:
        """Twisted's: answer this request."""
        return answer(request, self._body, self._headers, self._code)


def nothing() -> Refusal:
    """What is at every address that is not a known one."""
    return Refusal(404, "there is nothing here")


class Readable(Resource):
    """What can be read, and nothing else; below it is only what was put there."""

    def getChild(self, path: bytes, request: Any) -> Resource:
        """Twisted's: an address below this one that nothing was put at."""
        return nothing()

    def render(self, request: Any) -> Any:
        """Twisted's: answer this request."""
        if request.method in (b"GET", b"HEAD"):
            return self.read(request)
        return Refusal(405, "this can be read, and nothing else", {"allow": "GET, HEAD"}).render(request)

    def read(self, request: Any) -> Any:
        """Answer a request that wants to read."""
        raise NotImplementedError


class Fixed(Readable):
    """The same bytes for everybody: compressed for those who take that, and not again for those who have them."""

    def __init__(self, body: bytes, kind: str, headers: Headers | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._kind = kind
        self._headers = {"vary": "accept-encoding"} | (headers or {})
        zipped = gzip.compress(body, mtime=0)
        self._plain, self._zipped = (body, _tag_of(body)), (zipped, _tag_of(zipped))

    def read(self, request: Any) -> Any:
        """Answer a request that wants to read."""
        zip_it = takes(request, b"accept-encoding", b"gzip")
        body, tag = self._zipped if zip_it else self._plain
        headers = self._headers | {"etag": tag}
        if _has(request, tag):
            return answer(request, b"", headers, 304)
        headers["content-type"] = self._kind
        if zip_it:
            headers["content-encoding"] = "gzip"
        return answer(request, body, headers)


def _tag_of(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def _has(request: Any, tag: str) -> bool:
    """Whether the client holds what this tag names (RFC 9110, section 13.1.2: by the weak comparison)."""
    held = b",".join(request.requestHeaders.getRawHeaders(b"if-none-match", ()))
    return held.strip() == b"*" or tag.encode() in _TAG.findall(held)
