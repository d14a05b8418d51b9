"""Peers of a server that speak bytes, so that they can speak wrongly too."""

import json
import struct

from twisted.internet.protocol import Factory, Protocol

KEY = "dGhlIHNhbXBsZSBub25jZQ=="

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
CONTINUATION = 0


def frame(payload=b"", opcode=TEXT, *, fin=True, rsv=0, masked=True, length=None):
    """One frame as a client sends it; `length` is what its header claims."""
    length = len(payload) if length is None else length
    mask_bit = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if length < 126:
        head += bytes([mask_bit | length])
    elif length < 65536:
        head += bytes([mask_bit | 126]) + struct.pack("!H", length)
    else:
        head += bytes([mask_bit | 127]) + struct.pack("!Q", length)
    if not masked:
        return head + payload
    mask = b"\x5a\x01\xff\x80"
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def request(path="/ws", *, version="13", key=KEY, method="GET", **headers):
    """An opening handshake; a header given as None is left out, others are added (`x_forwarded_for`)."""
    lines = {
        "Host": "test:9000",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Version": version,
    }
    lines |= {name.replace("_", "-").title(): value for name, value in headers.items()}
    head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items() if value is not None)]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n"


class Peer(Protocol):
    """A client of bytes; keeps all that it hears. `ended` says when the connection was lost, None before."""

    def __init__(self, world):
        self.world = world
        self.received = b""
        self.ended = None

    def dataReceived(self, data):
        self.received += data

    def connectionLost(self, reason):
        self.ended = self.world.now

    # What it does.

    def write(self, *pieces):
        """Send these bytes, a segment each, and let them be answered."""
        for piece in pieces:
            self.transport.write(piece)
        self.world.advance(0.05)

    def say(self, *payloads):
        """Send text frames, all in one segment; payloads that are no bytes are sent as JSON."""
        texts = [p if isinstance(p, bytes) else json.dumps(p).encode() for p in payloads]
        self.write(b"".join(map(frame, texts)))

    def open(self, path="/ws", **headers):
        """Shake hands."""
        self.write(request(path, **headers))
        assert self.status == 101, self.received
        return self

    def leave(self, code=1000):
        """Close, with a close frame."""
        self.write(frame(struct.pack("!H", code), CLOSE))

    # What it heard.

    @property
    def head(self):
        """The head of the answer to the handshake."""
        return self.received.partition(b"\r\n\r\n")[0].decode("latin-1")

    @property
    def body(self):
        """What followed that head."""
        return self.received.partition(b"\r\n\r\n")[2]

    @property
    def status(self):
        """The HTTP status, None while there is no answer."""
        return int(self.head.split()[1]) if b"\r\n\r\n" in self.received else None

    @property
    def headers(self):
        """The headers of the answer, by their names in lower case."""
        lines = self.head.split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def frames(self):
        """All frames so far, each an opcode and a payload."""
        data, frames = self.body, []
        while len(data) >= 2:
            opcode, length, at = data[0] & 15, data[1], 2
            if length == 126:
                length, at = struct.unpack("!H", data[2:4])[0], 4
            elif length == 127:
                length, at = struct.unpack("!Q", data[2:10])[0], 10
            frames.append((opcode, data[at : at + length]))
            data = data[at + length :]
        return frames

    @property
    def texts(self):
        """The payloads of all text frames so far."""
        return [payload for opcode, payload in self.frames if opcode == TEXT]

    @property
    def messages(self):
        """The same, decoded."""
        return [json.loads(text) for text in self.texts]

    @property
    def closed_with(self):
        """The code of the close frame, None without one."""
        closes = [payload for opcode, payload in self.frames if opcode == CLOSE]
        return struct.unpack("!H", closes[0][:2])[0] if closes else None

    @property
    def close_reason(self):
        """The reason in the close frame."""
        return next(payload for opcode, payload in self.frames if opcode == CLOSE)[2:].decode()


def connect(world):
    """One more peer, connected."""
    peers = []
    world.endpoint().connect(Factory.forProtocol(lambda: peers.append(Peer(world)) or peers[0]))
    world.advance(3 * world.latency)
    assert peers, "nobody listens"
    return peers[0]


class Refusing(Protocol):
    """A server that answers every handshake with the same bytes and hangs up."""

    def __init__(self, answer):
        self.answer = answer

    def dataReceived(self, data):
        self.transport.write(self.answer)
        self.transport.loseConnection()
