"""A model behind HTTP: asks an OpenAI-compatible server, and tells of its answer as it arrives.

Nothing of HTTP gets out of here: a hearer is told text, and then exactly one end, in a sentence where it is
a bad one. Knows no session. One connection an answer, which is aborted by whoever wants no more of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any, Protocol
from urllib.parse import urlsplit

from twisted.internet import protocol
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer
from zope.interface import implementer

from heartbeat.core.errors import SettingError
from heartbeat.core.messages import encode
from heartbeat.sse import ModelError, Reader, reader_of, well_formed

__all__ = ["Answer", "Hearer", "Model"]

# Of the server's own words.
_MOST_WORDS = 200


class Hearer(Protocol):
    """Whoever hears an answer: text, and then one of the two ends."""

    def said(self, text: str) -> None:
        """The model said this."""
        ...

    def finished(self) -> None:
        """That was all."""
        ...

    def failed(self, why: str) -> None:
        """There will be no more, and this is why."""
        ...


class Model:
    """Where a model is to be asked, and how.

    `url` is the base of its endpoints (`http://127.0.0.1:8080/v1`), `name` the one that is meant among those of the
    server, `key` its secret. After `silence` seconds without a byte an answer has failed. `endpoints` connects,
    where that is not to be done by Twisted's own. Raises SettingError.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        name: str | None = None,
        key: str | None = None,
        silence: float = 120.0,
        endpoints: IAgentEndpointFactory | None = None,
    ) -> None:
        self.reactor = reactor
        self.silence = silence
        self._url = _completions(url)
        self._name = name
        self._key = key = key or None
        self._endpoints = endpoints
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if key is not None and not (key.isascii() and key.isprintable()):
            raise SettingError("ai_key", "what was given", "printable ASCII")
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        if not 0 < silence < inf:
            raise SettingError("ai_silence", silence, "seconds above 0")
        try:
            from treq.client import HTTPClient  # noqa: PLC0415  # needed by those only who configure a model
        except ImportError:
            bound = "left out where treq is not installed (pip install 'txheartbeat[ai]')"
            raise SettingError("ai_url", url, bound) from None
        self._client = HTTPClient

    def ask(self, text: str, hearer: Hearer) -> Answer:
        """Ask it this; it may fail before this returns."""
        connections = _Connections(self.reactor, persistent=False)  # type: ignore[no-untyped-call]  # Twisted's
        agent: Any
        if self._endpoints is None:
            agent = Agent(self.reactor, pool=connections)
        else:
            agent = Agent.usingEndpointFactory(self.reactor, self._endpoints, connections)
        # Its own client, so without cookies of another answer's; and no redirect gets the key, or the text.
        client: Any = self._client(agent)
        body = _Body(self._question(text))
        answer = Answer(self, hearer, connections)
        answer.begin(
            maybeDeferred(
                client.post,
                self._url,
                headers=self._headers,
                data=body,
                allow_redirects=False,
                unbuffered=True,
                reactor=self.reactor,
            )
        )
        return answer

    def sentence(self, error: ModelError) -> str:
        """What went wrong, for the asker: one line, without the key."""
        words = error.words
        if self._key is not None:
            words = words.replace(self._key, "…")
        words = " ".join("".join(one if one.isprintable() else " " for one in words).split())
        if len(words) > _MOST_WORDS:
            words = words[:_MOST_WORDS] + "…"
        return f"{error}: {words}" if words else str(error)

    def _question(self, text: str) -> bytes:
        named = {} if self._name is None else {"model": self._name}
        return encode({**named, "messages": [{"role": "user", "content": well_formed(text)}], "stream": True})


class Answer(protocol.Protocol):
    """One answer on its way. Tells its hearer of one end, or of none where it was aborted."""

    def __init__(self, model: Model, hearer: Hearer, connections: _Connections) -> None:
        self._model = model
        self._hearer = hearer
        self._connections = connections
        self._requested: Deferred[None] | None = None
        self._reader: Reader | None = None
        self._over = False
        self._paused = False
        self._timer: Any = None

    def begin(self, requested: Deferred[Any]) -> None:
        """The request is under way."""
        self._time()
        self._requested = requested.addCallbacks(self._answered, self._unanswered)

    def pause(self) -> None:
        """Read nothing more for now; that it is silent is our own doing then."""
        if not (self._over or self._paused):
            self._paused = True
            self._untime()
            self.transport.pauseProducing()  # type: ignore[union-attr]  # there is one once something was said

    def resume(self) -> None:
        """Read on."""
        if not self._over and self._paused:
            self._paused = False
            self._time()
            self.transport.resumeProducing()  # type: ignore[union-attr]  # as above

    def abort(self) -> None:
        """Nobody wants it any more."""
        if self._over:
            return
        self._over = True
        self._untime()
        requested, self._requested = self._requested, None
        if requested is not None:
            requested.cancel()
        self._connections.abort()

    # What arrives.

    def _answered(self, response: Any) -> None:
        self._requested = None
        self._time()
        media_type = (response.headers.getRawHeaders(b"content-type") or [b""])[0]
        try:
            self._reader = reader_of(response.code, media_type.decode(errors="replace"))
        except ModelError as error:
            self._end(error)
        else:
            response.deliverBody(self)

    def _unanswered(self, failure: Failure) -> None:
        self._requested = None
        if failure.check(ConnectError, DNSLookupError):
            self._end(ModelError("the model's server cannot be reached", failure.getErrorMessage()))
            return
        reasons = getattr(failure.value, "reasons", None) or [failure]
        self._end(ModelError("the model's server gave no answer", reasons[0].getErrorMessage()))

    def dataReceived(self, data: bytes) -> None:
        """IProtocol: a piece of the body."""
        if self._over or self._reader is None:
            return
        if not self._paused:
            self._time()
        self._read(self._reader.feed, data)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """IProtocol: the body has ended."""
        if self._over or self._reader is None:
            return
        # What is neither counted nor chunked ends with its connection, and nobody can tell whether that was all.
        cleanly = reason.check(ResponseDone, PotentialDataLoss) is not None
        self._read(lambda reader: reader.end(cleanly=cleanly), self._reader)
        self._end(None)

    def _read(self, read: Any, *arguments: Any) -> None:
        """Tell what there is in one piece; a text that came before an error is told before it."""
        texts: list[str] = []
        failed: ModelError | None = None
        try:
            pieces: Iterator[str] = read(*arguments)
            for text in pieces:
                texts.append(text)  # noqa: PERF402  # what came before the error is to stay
        except ModelError as error:
            failed = error
        if whole := "".join(texts):
            self._hearer.said(whole)
        if failed is not None or (self._reader is not None and self._reader.is_over):
            self._end(failed)

    def _end(self, error: ModelError | None) -> None:
        if self._over:
            return
        self.abort()
        if error is None:
            self._hearer.finished()
        else:
            self._hearer.failed(self._model.sentence(error))

    # Silence.

    def _time(self) -> None:
        if self._timer is None:
            self._timer = self._model.reactor.callLater(self._model.silence, self._silent)
        else:
            self._timer.reset(self._model.silence)

    def _untime(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _silent(self) -> None:
        self._timer = None
        said_why = self._reader is not None and self._reader.has_reason
        self._end(None if said_why else ModelError(f"the model said nothing for {self._model.silence:g} s"))


class _Connections(HTTPConnectionPool):
    """The connection of one request. Twisted's own ways of ending one wait for what its other end says to that."""

    _made: Any = None

    def getConnection(self, key: Any, endpoint: Any) -> Deferred[Any]:
        """Twisted's: connect."""
        return super().getConnection(key, endpoint).addCallback(self._note)

    def abort(self) -> None:
        """Have it gone."""
        if self._made is not None:
            self._made.transport.abortConnection()

    def _note(self, made: Any) -> Any:
        self._made = made
        return made


@implementer(IBodyProducer)
class _Body:
    """The body of a request, written at once. Twisted's own is cut up by the global reactor."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """IBodyProducer: write it."""
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """IPushProducer: it is written already."""

    def resumeProducing(self) -> None:
        """IPushProducer: as above."""

    def stopProducing(self) -> None:
        """IProducer: as above."""


def _completions(url: str) -> str:
    """The endpoint that is asked, below this base. Raises SettingError."""
    bound = "the base URL of an OpenAI-compatible server, such as http://127.0.0.1:8080/v1"
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and parts.username is None
    except ValueError:
        good = False
    if not good or " " in url or not url.isprintable():
        raise SettingError("ai_url", url, bound)
    return parts._replace(path=parts.path.rstrip("/") + "/chat/completions", fragment="").geturl()
