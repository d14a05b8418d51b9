"""What was read is not kept where it was read: there it cuts the memory into pieces that no reading fits into any more.

Twisted reads into 64 KiB and gives back what was not filled. So for each chunk that outlives its reading a place is
lost that large readings need, and with heads that were kept so a server of a thousand connections grew by half a
megabyte with every 1,500 that came back. Here every chunk is counted that anybody still has.
"""

from sys import getrefcount, getsizeof

import pytest
from peers import request

from heartbeat import HeartbeatClientFactory, HeartbeatClientProtocol, HeartbeatServerProtocol, Settings

#: A chunk that only its list has: that, the name in the loop, and the argument.
_ALONE = 3


class Reading:
    """Takes each chunk in a place that nobody else has, and remembers it."""

    def dataReceived(self, data):
        chunk = bytes(bytearray(data))
        self.factory.read.append(chunk)
        super().dataReceived(chunk)


class Server(Reading, HeartbeatServerProtocol):
    """The server's end."""


class Client(Reading, HeartbeatClientProtocol):
    """The client's."""


def kept(read):
    """Those of these chunks that somebody has besides."""
    return [chunk for chunk in read if getrefcount(chunk) > _ALONE]


@pytest.fixture
def reading(serve):
    """A server of ours, which remembers what it reads."""

    def reading(**settings):
        factory = serve(Server, **settings)
        factory.read = []
        return factory

    return reading


def test_a_chunk_that_somebody_has_is_found():
    """Or the others could not fail."""
    chunk = bytes(bytearray(b"as it was read"))

    assert kept([chunk]) == [chunk]
    assert kept([bytes(bytearray(b"as it was read"))]) == []


#: Whose handshakes are answered the short way, and by Autobahn.
HEADS = {
    "short": (request(), True),
    "of a page with cookies": (request(origin="http://test:9000", cookie="token=" + "x" * 900), True),
    "Autobahn's own": (request(), False),
    "of a subprotocol": (request(sec_websocket_protocol="soap"), True),
}


@pytest.mark.parametrize(("head", "fast_path"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in two"])
def test_of_a_page_no_byte_is_kept_where_it_was_read(reading, connect, head, fast_path, whole):
    """Neither of its head, by which it is known for as long as it stays, nor of what it sends."""
    factory = reading(fast_path=fast_path)
    page = connect()
    page.write(*([head] if whole else [head[:40], head[40:]]))
    assert page.status == 101
    page.say({"type": "onopen", "v": 1})
    for number in range(3):
        page.say({"type": "ping", "n": number}, {"type": "unheard", "seq": number + 1, "text": "x" * 100 * number})

    assert len(factory.read) == (5 if whole else 6)
    assert kept(factory.read) == []
    protocol = page.world.connections[-1][0].protocol
    assert protocol.http_request_data == head


@pytest.mark.parametrize("more", [0, 500, 900, 15_000])
def test_a_head_is_kept_where_python_keeps_what_is_small(reading, connect, more):
    """Above 512 bytes the C library would give it the place of a chunk that was read before."""
    reading(fast_path=True)
    head = request(cookie="x" * more)
    page = connect()
    page.write(head)
    protocol = page.world.connections[-1][0].protocol

    assert max(map(getsizeof, protocol._heartbeat_pieces)) <= 512
    assert protocol.http_request_data == head


@pytest.mark.parametrize("fast_path", [True, False])
def test_between_a_client_and_a_server_no_byte_is_kept_where_it_was_read(reading, world, fast_path):
    """By neither end, while the session lives."""
    factory = reading(fast_path=fast_path, beats="both")
    factory.register("question", lambda protocol, message: protocol.handling.reply({"type": "answer", "to": 1}))
    dialled = HeartbeatClientFactory("ws://test/ws", Settings(), reactor=world.client)
    dialled.protocol, dialled.read = Client, []
    connected = []
    world.endpoint().connect(dialled).addCallback(connected.append)
    world.advance(0.2)
    for _ in range(3):
        connected[0].send({"type": "question"})
        world.advance(7)

    assert len(factory.read) > 6
    assert len(dialled.read) > 6
    assert kept(factory.read) == []
    assert kept(dialled.read) == []
    assert connected[0].http_response_data.startswith(b"HTTP/1.1 101 ")
