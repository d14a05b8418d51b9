"""Whatever a client may send, in whatever order: good frames and bad ones, whole and in pieces, with time between them.

All chance comes from one generator, so that a number stands for a whole life. What is drawn knows what would fit (the
next number of a session, the id of the server's ping), and says it mostly, or nothing would live long enough to meet
anything else.
"""

from itertools import accumulate
from struct import pack

from peers import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame, request


class Here:
    """Where something is sent: on a connection with this link, if it is open, alone in its chunk or beside others."""

    def __init__(self, link, *, alone):
        self.alone = alone
        self.asked = 0 if link is None else link.monitor.sent
        self.session = None if link is None else link.session


class Table:
    """Things to draw from, each as often as its weight says."""

    def __init__(self, *rows):
        self._things = [thing for _, thing in rows]
        self._weights = list(accumulate(weight for weight, _ in rows))

    def draw(self, chance):
        at = chance.random() * self._weights[-1]
        return self._things[
            next(number for number, upto in enumerate(self._weights) if at < upto or upto == self._weights[-1])
        ]


# Pings.

# The first of them breaks a rule of the session, mostly.
_NAMES = (
    '"ack"',
    *('"id"', '"t"', '"n"', '""', '"a"', '"\\u0061"', '"a"', '"Type"', '"st\\u0061te"', '"ü"', '"\\ud800"'),
    *('"clients"', '"status"', '"st\\u0061tus"', '"away"', '"type"', '"seq"', '"v"'),
)

_VALUES = (
    *("0", "1", "-1", "-0", "1e5", "1E+2", "0.10", "12345678901234567890", "1e400", "true", "false", "null"),
    *('""', '"x"', '"pong"', '"ping"', '"a:b"', '"}"', '"\\"status\\":"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"'),
    *('"é"', '"😀"', '"\ufffe"', '"\U0010ffff"', "[]", "{}", '{"status":"pong"}', '[{"ack":6},[1,{"a":{}}]]'),
    # None of these is JSON.
    *("NaN", "01", "'x'", '"\x01"', "", "[", '{"a":1'),
)

_SPACES = (*("",) * 20, " ", "\n", "\t \r\n")

_TYPES = ('"type":"ping"',) * 20 + ('"\\u0074ype":"ping"', '"type":"p\\u0069ng"', '"type" : "ping"', '"type":"Ping"')


def ping(chance, here):
    """An ordinary ping."""
    if chance.random() < 0.3:
        return b'{"type":"ping"}'
    return b'{"type":"ping","id":%d,"t":%d.25}' % (chance.randrange(1000), chance.randrange(10**12))


def odd_ping(chance, here):
    """A ping of any shape, and now and then of none."""
    members = [chance.choice(_TYPES)]
    for _ in range(chance.choice((0, 0, 1, 1, 1, 2, 4))):
        value = chance.choice(_VALUES[:-7] if chance.random() < 0.9 else _VALUES)
        member = (
            chance.choice(_NAMES if here.alone else _NAMES[1:])
            + chance.choice(_SPACES)
            + ":"
            + chance.choice(_SPACES)
            + value
        )
        members.insert(chance.randrange(len(members) + 1), member)
    comma = chance.choice(_SPACES) + "," + chance.choice(_SPACES)
    text = chance.choice(_SPACES) + "{" + comma.join(members) + "}" + chance.choice(("", "", "", "\n", "}", ","))
    return text.encode()


def padded_ping(chance, here):
    """A ping of a length at which something else begins."""
    length = chance.choice((124, 125, 126, 127, 128, 1023, 1024, 1025, 80, 94, 95, 96, 97, 98, 99, 100))
    return b'{"type":"ping","pad":"%b"}' % (b"x" * (length - 24))


def acknowledging_ping(chance, here):
    """A ping that says what was handled, mostly the truth."""
    return b'{"type":"ping","id":%d,"ack":%d}' % (chance.randrange(9), _ack(chance, here))


def away_ping(chance, here):
    return chance.choice((b'{"type":"ping","away":true}', b'{"type":"ping","away":false}', b'{"away":1,"type":"ping"}'))


def pong(chance, here):
    """A pong to the latest ping of the server's, or to another."""
    number = chance.choice((here.asked, here.asked, here.asked, here.asked - 1, here.asked + 1, 0))
    return chance.choice(
        (b'{"type":"ping","id":%d,"status":"pong"}', b'{"type":"ping","id":%d,"status":"pong","ack":0}')
    ) % (number)


def _ack(chance, here):
    session = here.session
    if session is None:
        return chance.randrange(3) if here.alone else 0
    too_much = (session.sent + 1,) if here.alone else ()
    return chance.choice((session.confirmed,) * 6 + (session.sent,) * 12 + (0, session.confirmed, *too_much))


def ack(chance, here):
    return b'{"type":"ack","ack":%d}' % _ack(chance, here)


# Other words.


def opening(chance, here):
    """A level-1 opening, whose wishes may be granted or be nonsense."""
    wishes = chance.choice(
        (
            b"",
            b"",
            b',"beats":"server"',
            b',"beats":"both","interval_ms":1000',
            b',"beats":"none"',
            b',"interval_ms":300',
            b',"client_id":"alice"',
            b',"session":null',
            b',"session":{"sid":"x","epoch":"y","last":0,"sent":0,"try":1}',
            b',"beats":"mine"',
        )
    )
    return b'{"type":"onopen","v":1%b}' % wishes


def plain_opening(chance, here):
    return b'{"type":"onopen"}'


_KINDS = ("chat", "chat", "chat", "tell", "reply", "wait", "refuse", "unheard of", "error")


def message(chance, here):
    """A message of the application's; in a session mostly with its number."""
    kind = chance.choice(_KINDS)
    members = chance.choice(
        ("", ',"id":"m"', ',"id":7,"text":"grüß dich"', ',"text":"' + "y" * chance.randrange(140) + '"')
    )
    if here.session is not None and chance.random() < 0.9:
        gap = (2,) if here.alone else ()
        seq = here.session.received + chance.choice((1,) * 30 + (0, 0, 0, *gap))
        members += f',"seq":{seq},"ack":{_ack(chance, here)}'
    return f'{{"type":"{kind}"{members}}}'.encode()


def hasty_message(chance, here):
    """One whose handler ends the connection."""
    return chance.choice((b'{"type":"leave"}', b'{"type":"drop"}'))


def nonsense(chance, here):
    return chance.choice(
        (
            *(
                b"",
                b"hello",
                b"{",
                b"[]",
                b"7",
                b"null",
                b'"ping"',
                b"{}",
                b'{"type":7}',
                b'{"type":"drain"}',
                b" ",
                b"\n",
            ),
            *(b'{"type":"ping"', b'{"type":"ping"}{"type":"ping"}', b'\xef\xbb\xbf{"type":"ping"}', b"reply", b"tell"),
            b"x" * chance.choice((1, 124, 125, 126, 127)),
        )
    )


_NOT_UTF_8 = (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80", b"\xf8\x88\x80\x80\x80")


def no_text(chance, here):
    """A ping with bytes in it somewhere that are no UTF-8."""
    good = ping(chance, here)
    at = chance.randrange(len(good) + 1)
    return good[:at] + chance.choice(_NOT_UTF_8) + good[at:]


WORDS = Table(
    (500, ping),
    (80, odd_ping),
    (20, padded_ping),
    (60, acknowledging_ping),
    (6, away_ping),
    (25, pong),
    (20, ack),
    (12, opening),
    (4, plain_opening),
    (80, message),
    (1, hasty_message),
    (12, nonsense),
    (1, no_text),
)


def word(chance, here):
    """The payload of a text frame."""
    return WORDS.draw(chance)(chance, here)


# Frames.


def text(chance, here):
    return frame(word(chance, here))


def masked_otherwise(chance, here):
    """A text frame under any key, zero too."""
    payload = word(chance, here)[:125]
    key = chance.choice(
        (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x81\x82\x83\x84", bytes(chance.randrange(256) for _ in range(4)))
    )
    return bytes((0x81, 0x80 | len(payload))) + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))


def in_fragments(chance, here):
    """A text in pieces, with a control frame between them now and then; rarely without its end."""
    payload = word(chance, here)
    cuts = sorted(chance.randrange(len(payload) + 1) for _ in range(chance.choice((1, 1, 2, 3))))
    pieces = [payload[start:end] for start, end in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    whole = chance.random() < 0.97
    found = b""
    for at, piece in enumerate(pieces):
        found += frame(piece, CONTINUATION if at else TEXT, fin=whole and at == len(pieces) - 1)
        if chance.random() < 0.2:
            found += control(chance, here)
    return found


def control(chance, here):
    """A ping or a pong of the WebSocket layer's; the answer to a probe, too."""
    answer = b"heartbeat %d" % here.asked
    payload = chance.choice((b"", b"x" * 125, answer, answer, b"heartbeat x"))
    return frame(payload, chance.choice((PING, PONG, PONG)))


def binary(chance, here):
    return frame(word(chance, here), BINARY)


def wrong(chance, here):
    """A frame that breaks RFC 6455, or is too long."""
    payload = word(chance, here)
    return chance.choice(
        (
            lambda: frame(payload, masked=False),
            lambda: frame(payload, rsv=chance.choice((1, 2, 4, 7))),
            lambda: frame(payload, chance.choice((3, 7, 11, 15))),
            lambda: frame(payload, CONTINUATION),
            lambda: frame(payload[:125], PING, fin=False),
            lambda: frame(b"x" * 126, PING),
            lambda: frame(b"x", CLOSE),
            lambda: b"\x81\xfe" + pack("!H", len(payload)) + frame(payload[:125])[2:],
            lambda: b"\x81\xff" + pack("!Q", len(payload)) + frame(payload[:125])[2:],
            lambda: frame(b"x" * 10, length=2**40),
            lambda: frame(b"x" * 10, length=2**63),
            lambda: frame(b"y" * chance.choice((2048, 2049))),
            lambda: bytes(chance.randrange(256) for _ in range(chance.randrange(1, 40))),
        )
    )()


def close(chance, here):
    code = chance.choice(
        (b"", pack("!H", 1000), pack("!H", 1001) + b"bye", pack("!H", 4000), pack("!H", 1005), b"\x03\xe8\xff")
    )
    return frame(code, CLOSE)


FRAMES = Table(
    (900, text),
    (30, masked_otherwise),
    (20, in_fragments),
    (20, control),
    (5, binary),
    (4, wrong),
    (2, close),
)


def several(chance, link):
    """One frame, or a few."""
    count = chance.choice((1,) * 20 + (2, 2, 3, 7))
    here = Here(link, alone=count == 1)
    return [FRAMES.draw(chance)(chance, here) for _ in range(count)]


def in_chunks(chance, data):
    """Bytes as they may arrive: mostly all at once."""
    if len(data) < 2 or chance.random() < 0.92:
        return [data]
    if chance.random() < 0.1:
        return [data[at : at + 1] for at in range(len(data))]
    cut = chance.randrange(1, len(data))
    return [data[:cut], data[cut:]]


# Everything else that happens.

TIMES = Table((40, 0.01), (40, 0.1), (20, 0.5), (10, 3.0), (6, 6.1), (3, 12.1), (2, 3.2), (1, 16.0), (0.5, 45.0))

SENT = ({"type": "news"}, {"type": "news", "text": "z" * 200}, {"type": "news", "text": "grüß", "n": 1e5})


def send(chance):
    """What the application does of itself, to be done with a protocol."""
    news, volatile = chance.choice(SENT), chance.random() < 0.3
    return chance.choice(
        (
            lambda protocol: protocol.send(news, volatile=volatile),
            lambda protocol: protocol.send(news),
            lambda protocol: protocol.state == protocol.STATE_OPEN and protocol.sendMessage(b"as it is"),
            lambda protocol: protocol.sendPing(b"are you there"),
        )
    )


class Torrent:
    """Whatever may happen to twins, on so many connections at a time; `frames` counts those that were sent."""

    def __init__(self, chance, twins, lines=6):
        self.frames = 0
        self._chance = chance
        self._twins = twins
        self._lines = [twins.connect() for _ in range(lines)]

    def step(self):
        """Something happens."""
        chance, twins = self._chance, self._twins
        what, at = chance.random(), chance.randrange(len(self._lines))
        line = self._lines[at]
        if what < 0.03:
            twins.advance(TIMES.draw(chance))
        elif not twins.is_open(line) and chance.random() < 0.5:
            twins.compare(line)
            self._lines[at] = twins.connect(self._head())
        elif what < 0.04:
            twins.on(line, send(chance))
        elif what < 0.042:
            twins.lose(line)
        else:
            frames = several(chance, twins.link(line))
            self.frames += len(frames)
            twins.feed(line, *in_chunks(chance, b"".join(frames)))

    def compare(self):
        """Assert that all is the same so far."""
        self._twins.compare(*self._lines)
        for line in self._lines:
            self._twins.forget(line)

    def _head(self):
        """A handshake, alone or with something behind it."""
        kind, chance = self._chance.random(), self._chance
        if kind < 0.7:
            return request()
        if kind < 0.9:
            return request() + b"".join(several(chance, None))
        return request(sec_websocket_extensions="permessage-deflate", origin="http://test:9000")
