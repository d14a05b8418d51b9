"""Whatever arrives, in whatever pieces: no failure is logged, no timer is left, and the next client is served."""

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from peers import connect, frame, request

from heartbeat import HeartbeatClient, HeartbeatServerFactory
from heartbeat.testing import World

#: The words of the wire, and values that somebody may put behind any of them.
NAMES = [
    *(
        "type",
        "status",
        "id",
        "v",
        "beats",
        "interval_ms",
        "watch_ms",
        "timeout_ms",
        "probe_ms",
        "client_id",
        "clients",
    ),
    *("session", "token", "ack", "away", "min_ms", "max_ms", "code", "detail", "re", "limits", "seq", "t"),
]

TYPES = st.sampled_from(["ping", "onopen", "ack", "error", "drain", "chat"])

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["ok", "pong", "online", "client", "server", "both", "none", "c-1", "alice", "", "\ud800", "\0"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)

MESSAGES = st.builds(
    lambda kind, members: {"type": kind} | members, TYPES, st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6)
)


def served(world):
    """Assert that a newcomer is answered; then end everything, and that nothing is left."""
    newcomer = connect(world).open()
    newcomer.say({"type": "ping", "n": 1})
    assert newcomer.messages[-1]["status"] == "pong"
    world.close()
    world.advance(2)
    assert world.delayed_calls == []


def server():
    """A world with a server of ours."""
    world = World()
    world.listen(HeartbeatServerFactory(reactor=world.server))
    return world


@given(handshake=st.booleans(), segments=st.lists(st.binary(max_size=64), max_size=12))
def test_noise_is_refused_or_waited_out(handshake, segments):
    world = server()
    page = connect(world)
    page.write(*([request()] if handshake else []), *segments)
    world.advance(7)

    assert page.ended is not None or (handshake and page.closed_with is None)
    served(world)


@given(
    payloads=st.lists(st.binary(max_size=40) | MESSAGES.map(lambda message: json.dumps(message).encode()), max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=10),
)
def test_frames_mean_the_same_in_whatever_pieces_they_arrive(payloads, cuts):
    data = b"".join(map(frame, payloads))
    cuts = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    heard = []
    for pieces in ([data], [data[start:end] for start, end in pairwise(cuts)]):
        world = server()
        page = connect(world).open()
        page.write(*pieces)
        # Of what is ours to choose, only an id differs.
        heard.append(
            [
                {name: value for name, value in message.items() if name != "client_id"}
                for message in map(json.loads, page.texts)
            ]
        )
        assert page.closed_with in (None, 1007)
        served(world)

    assert heard[0] == heard[1]


@given(messages=st.lists(MESSAGES, max_size=8))
def test_a_server_takes_any_words_and_answers_every_ping_of_theirs(messages):
    world = server()
    page = connect(world).open()
    pings = 0
    for message in messages:
        pings += message["type"] == "ping" and message.get("status") != "pong" and len(json.dumps(message)) <= 1024
        page.say(message)
    world.advance(1)

    assert sum(answer.get("status") == "pong" for answer in page.messages if answer["type"] == "ping") == pings
    assert page.closed_with is None
    served(world)


@given(messages=st.lists(MESSAGES, max_size=8))
def test_a_client_takes_any_words_and_comes_back_if_it_must(messages):
    world = server()
    client = HeartbeatClient("ws://test/ws", reactor=world.client, endpoint=world.endpoint())
    client.startService()
    world.advance(0.03)
    for message in messages:
        protocol = world.connections[-1][0].protocol
        if protocol is not None and protocol.state == protocol.STATE_OPEN:
            protocol.sendMessage(json.dumps(message).encode())
        world.advance(0.01)
    world.advance(30)

    assert client.status.event in ("acknowledged", "waiting", "suspect", "reconnecting", "unreachable")
    client.stopService()
    world.advance(2)
    served(world)
