"""Questions to a model over real sockets, in a process that speaks the streaming format, and misbehaves."""

import sys
from pathlib import Path

import pytest
import pytest_twisted
from ports import free_port
from processes import LOOPBACK, Program
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.threads import deferToThread

from heartbeat import HeartbeatClient, HeartbeatServerFactory, Settings
from heartbeat.ai import AI

KEY = "sk-very-secret"
SOON = 5.0


@pytest.fixture(scope="module")
def model():
    """The model's server."""
    with Program([sys.executable, Path(__file__).parent / "ai_server.py"]) as program:
        program.model_url = program.url()
        yield program


class Asker(HeartbeatClient):
    """A client that waits for what it is told."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.heard = []
        self.waiting = None

    def messageReceived(self, message):
        self.heard.append(message)
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.callback(None)

    async def until(self, condition):
        """Wait until what was heard is enough."""
        while not condition(self.heard):
            self.waiting = Deferred()
            await self.waiting.addTimeout(SOON, reactor)
        return self.heard

    async def answer(self, question):
        """Ask, and wait for the end of the answer: its text, and how it ended."""
        self.heard.clear()
        self.send({"type": "onaichat", "id": "q", "text": question})
        heard = await self.until(lambda heard: heard and "delta" not in heard[-1])
        return "".join(one["delta"] for one in heard[:-1]), heard[-1].get("status") or heard[-1]["detail"]


@pytest.fixture
def server():
    """Start a server that asks at this URL, and a client of it; both are gone at the end."""
    ends = []

    async def start(url, **options):
        factory = HeartbeatServerFactory(Settings(), reactor=reactor)
        factory.ai = AI(factory, url=url, model="m", key=KEY, **options)
        port = await serverFromString(reactor, LOOPBACK).listen(factory)
        client = Asker(f"ws://127.0.0.1:{port.getHost().port}/ws", reactor=reactor, chance=lambda: 0.0)
        client.startService()
        ends.append((factory, port, client))
        await client.whenOpen().addTimeout(SOON, reactor)
        return factory, client

    yield start

    async def stop():
        for factory, port, client in ends:
            await client.stopService()
            await port.stopListening()
            await factory.heartbeat.drain().addTimeout(SOON, reactor)
            assert factory.ai.count == 0

    pytest_twisted.blockon(Deferred.fromCoroutine(stop()))


@pytest_twisted.ensureDeferred
async def test_an_answer_is_streamed_and_goes_on_through_a_reconnect(model, server):
    """Real chunks, cut anywhere; the connection is lost in the middle, and the text comes once and in order."""
    _, client = await server(model.model_url)
    text = "".join(f"{number} " for number in range(3000))

    assert await client.answer("count 3000") == (text, "done")
    assert await client.answer("whole") == ("all at once", "done")

    client.heard.clear()
    client.send({"type": "onaichat", "id": "q", "text": "count 3000"})
    await client.until(lambda heard: len(heard) >= 3)
    client._connection.transport.abortConnection()
    heard = await client.until(lambda heard: heard[-1].get("status") == "done")
    assert client.status.event != "unreachable"
    assert "".join(one["delta"] for one in heard[:-1]) == text


@pytest_twisted.ensureDeferred
async def test_whatever_a_models_server_does_a_question_ends_in_a_sentence(model, server):
    _, client = await server(model.model_url, silence=2.0)

    assert await client.answer("stall") == ("thinking", "the model said nothing for 2 s")
    await deferToThread(model.line_with, "gone", SOON)
    assert await client.answer("break") == ("thinking", "the model's answer broke off in the middle")
    sentence = "the model's server sent what is not an object in JSON"
    assert await client.answer("garbage") == ("thinking", sentence)
    refusals = {401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}
    for status, phrase in refusals.items():
        sentence = f"the model's server answered {status} {phrase}: no: Bearer …"
        assert await client.answer(str(status)) == ("", sentence)
    assert await client.answer("count 3") == ("0 1 2 ", "done")


@pytest_twisted.ensureDeferred
async def test_a_models_server_that_is_not_there_is_said_not_to_be(server):
    _, client = await server(f"http://127.0.0.1:{free_port()}/v1")

    text, sentence = await client.answer("count 3")

    assert text == ""
    assert sentence.startswith("the model's server cannot be reached: Connection was refused")


@pytest_twisted.ensureDeferred
async def test_who_leaves_for_good_has_his_answer_aborted(model, server):
    factory, client = await server(model.model_url)
    client.send({"type": "onaichat", "id": "q", "text": "stall"})
    await client.until(lambda heard: heard)
    assert factory.ai.count == 1

    await client.stopService()

    await deferToThread(model.line_with, "gone", SOON)
