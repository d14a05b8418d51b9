"""A client that is asked for a token before each attempt shows a fresh one each time."""

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from heartbeat.core.errors import Unauthorized


class Tickets:
    """An authenticator that knows each token once, and calls whoever shows one `alice`."""

    def __init__(self):
        self.shown = []

    def authenticate(self, credentials):
        if credentials.token in self.shown or not (credentials.token or "").startswith("t"):
            raise Unauthorized("this token was shown before")
        self.shown.append(credentials.token)
        return "alice"


@pytest.fixture
def tickets(serve):
    authenticator = Tickets()
    serve().heartbeat.admission.authenticator = authenticator
    return authenticator


class Source:
    """Makes a token each time it is asked: as it is, as a Deferred, or as a coroutine."""

    def __init__(self, kind):
        self.kind = kind
        self.asked = 0

    def __call__(self):
        self.asked += 1
        return getattr(self, self.kind)(f"t{self.asked}")

    def text(self, token):
        return token

    def deferred(self, token):
        return succeed(token)

    async def coroutine(self, token):
        return token


@pytest.mark.parametrize("kind", ["text", "deferred", "coroutine"])
def test_each_attempt_shows_a_fresh_token(tickets, start_client, world, kind):
    """The server takes none twice."""
    client = start_client(token=Source(kind))
    for _ in range(3):
        world.drop()
        world.advance(8)

    assert tickets.shown == ["t1", "t2", "t3", "t4"]
    assert len(client.all("open")) == 4
    assert client.all("unreachable") == []
    assert client.status.client_id == "alice"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (lambda: fail(OSError("no route")), "could not connect: there is no token to show (no route)"),
        (lambda: 1 / 0, "could not connect: there is no token to show (division by zero)"),
        (lambda: None, "could not connect: a token is text, not NoneType"),
    ],
    ids=["fails", "raises", "is none"],
)
def test_an_attempt_without_a_token_fails_and_is_counted(tickets, start_client, world, source, why):
    """Nothing is shown to the server; after three more attempts the client gives up, in a sentence."""
    client = start_client(token=source)
    world.advance(60)

    assert tickets.shown == []
    assert client.events == ["reconnecting"] * 3 + ["unreachable"]
    assert {status.detail for status in client.told[:3]} == {why}


def test_a_token_that_does_not_come_ends_the_attempt_in_time(tickets, start_client, world):
    """The Deferred is cancelled when the attempt has taken too long, and when the client stops."""
    cancelled = []
    client = start_client(token=lambda: Deferred(cancelled.append))
    world.advance(10)
    assert client.events == ["reconnecting"]
    assert client.told[0].detail == "no answer within 10 s"
    world.advance(2)
    client.stopService()

    assert len(cancelled) == 2
