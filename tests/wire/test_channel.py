"""One end of a session at work: what is sent goes through the store, what arrives through a handler, each in turn."""

import gc

import pytest
from twisted.internet.defer import Deferred

from heartbeat import SessionFull, Unconfirmed


@pytest.fixture
def there(world):
    """The server's protocol of the latest connection."""
    return lambda: world.connections[-1][0].protocol


def note(n, **more):
    return {"type": "note", "n": n} | more


@pytest.fixture
def notes(serve):
    """A server that takes notes: those that it took, in order."""
    taken = []
    factory = serve()
    factory.register("note", lambda protocol, message: taken.append(message["n"]))
    return taken


# What goes out.


def test_a_message_is_confirmed_when_its_handler_has_finished(serve, start_client, world):
    finish, sent = Deferred(), []
    serve().register("note", lambda protocol, message: finish)
    client = start_client()
    client.send(note(1)).addCallback(sent.append)
    world.advance(20)
    assert sent == []

    finish.callback(None)
    world.advance(0.1)
    assert sent == [None]


def test_what_is_sent_while_away_is_handled_once_and_in_order_after_the_return(notes, start_client, world):
    client, sent = start_client(), []
    for n in range(5):
        client.send(note(n)).addCallback(sent.append)
    world.advance(0.005)
    world.drop()
    world.advance(0.01)
    for n in range(5, 10):
        client.send(note(n)).addCallback(sent.append)
    world.advance(3)

    assert notes == list(range(10))
    assert sent == [None] * 10
    assert client.events == ["open", "closed", "reconnecting", "open"]


def test_a_server_sends_in_the_session_too_connected_or_not(serve, start_client, world, there):
    serve()
    client, sent = start_client(), []
    protocol = there()
    for n in range(3):
        protocol.send(note(n)).addCallback(sent.append)
    world.drop()
    world.advance(0.1)
    for n in range(3, 6):
        protocol.send(note(n)).addCallback(sent.append)
    assert sent == []
    world.advance(3)

    assert [message["n"] for message in client.messages] == list(range(6))
    assert sent == [None] * 6


def test_a_message_without_a_handler_counts_as_handled_and_comes_back_as_an_error(serve, start_client, world):
    serve()
    client, sent = start_client(), []
    client.send(note(1, id="n1")).addCallback(sent.append)
    world.advance(0.2)

    assert sent == [None]
    assert [(one["code"], one["re"]) for one in client.messages] == [("unknown-type", "n1")]


def test_an_error_that_nobody_takes_is_not_answered(serve, start_client, world, there, failures):
    """Else two ends whose handlers fail could go on for ever."""
    factory = serve()
    client = start_client()

    def fails(*arguments):
        raise ZeroDivisionError

    client.messageReceived = fails
    factory.register("error", fails)
    there().send(note(1))
    world.advance(5)

    assert len(failures.flush(ZeroDivisionError)) == 2
    assert there()._heartbeat.channel.session.sent == 1
    assert client._session.channel.session.sent == 1


def test_a_volatile_message_is_not_numbered_and_not_kept(serve, start_client, world, there):
    taken = []
    factory = serve()
    factory.register("note", lambda protocol, message: taken.append((message["n"], protocol.handling.seq)))
    client, sent = start_client(), []
    protocol = there()
    client.send(note(1), volatile=True).addCallback(sent.append)
    assert sent == [None]
    protocol.send(note(2), volatile=True).addCallback(sent.append)
    world.advance(0.1)
    assert (taken, client.messages, sent) == ([(1, None)], [note(2)], [None, None])

    world.drop()
    world.advance(0.1)
    failed = []
    client.send(note(3), volatile=True).addErrback(failed.append)
    protocol.send(note(4), volatile=True).addErrback(failed.append)
    world.advance(3)

    assert [one.value.messages for one in failed] == [(note(3),), (note(4),)]
    assert (taken, client.messages) == ([(1, None)], [note(2)])


@pytest.mark.parametrize("name", ["seq", "ack"])
def test_the_sessions_own_members_are_not_the_applications(serve, start_client, there, name):
    serve()
    client = start_client()
    for end in (client, there()):
        with pytest.raises(ValueError, match="seq and ack in a message are the session's own"):
            end.send({"type": "note", name: 1})


def test_a_message_over_the_limit_is_refused_before_it_is_kept(serve, start_client, there):
    serve(message_limit=1024)
    client = start_client(message_limit=1024)
    for end in (client, there()):
        with pytest.raises(ValueError, match=r"at most 960 bytes of JSON, not 10\d\d \(setting message_limit\)"):
            end.send(note(1, text="x" * 1000))


def test_what_was_sent_before_the_server_said_how_long_a_message_may_be_is_too_big(serve, make_client, world):
    serve(message_limit=1024)
    client, failed = make_client(), []
    client.startService()
    client.send(note(1, text="x" * 1000)).addErrback(failed.append)
    world.advance(0.2)

    assert (failed[0].value.reason, failed[0].value.messages[0]["n"]) == ("too-big", 1)
    assert client.events == ["open"]
    with pytest.raises(ValueError, match="at most 960 bytes"):
        client.send(note(1, text="x" * 1000))


def test_ignored_messages_of_a_lost_session_are_one_sentence_in_the_log(serve, start_client, world, log, failures):
    factory = serve()
    lost, told = [], []
    client = start_client()
    client.sessionLost = told.append
    factory.sessionLost = lambda client_id, error: lost.append((client_id, error))
    world.cut()
    for n in range(1000):
        client.send(note(n))
    gc.collect()
    world.advance(130)
    client.stopService()
    gc.collect()

    sentences = [event["log_format"] for event in log if event["log_namespace"] == "heartbeat.sessions"]
    assert len(sentences) == 1
    (error,) = told
    assert (error.reason, [message["n"] for message in error.messages]) == ("expired", list(range(1000)))
    assert lost == []
    assert failures == []


# The bound.


def test_at_the_bound_a_message_fails_at_once_and_nothing_of_it_is_kept(serve, start_client, world):
    hold = Deferred()
    serve(kept_limit=4).register("note", lambda protocol, message: hold)
    client, failed = start_client(), []
    for n in range(6):
        client.send(note(n)).addErrback(failed.append)

    assert [one.check(SessionFull) for one in failed] == [SessionFull] * 2
    assert "4 messages of " in str(failed[0].value)
    assert "(settings kept_limit, kept_bytes)" in str(failed[0].value)
    assert len(client._session.channel.session.kept) == 4
    hold.callback(None)
    world.advance(0.2)


def test_the_bytes_have_their_bound_too(serve, start_client, world):
    hold = Deferred()
    serve(kept_bytes=4096).register("note", lambda protocol, message: hold)
    client, failed = start_client(), []
    for n in range(5):
        client.send(note(n, text="x" * 1000)).addErrback(failed.append)

    assert len(failed) == 2
    hold.callback(None)
    world.advance(0.2)


def test_the_client_keeps_no_more_than_the_server_says(serve, start_client):
    serve(kept_limit=7, kept_bytes=5000)

    assert start_client()._session.channel.session.bounds[:2] == (7, 5000)
    assert start_client(kept_limit=5, kept_bytes=4500)._session.channel.session.bounds[:2] == (5, 4500)


def test_whenRoom_fires_at_once_or_when_something_is_confirmed(serve, start_client, world):
    hold, room = Deferred(), []
    serve(kept_limit=4).register("note", lambda protocol, message: hold)
    client = start_client()
    client.whenRoom().addCallback(lambda _: room.append("at once"))
    for n in range(4):
        client.send(note(n))
    client.whenRoom().addCallback(lambda _: room.append("later"))
    assert room == ["at once"]

    hold.callback(None)
    world.advance(0.2)
    assert room == ["at once", "later"]


def test_a_protocol_tells_too_when_there_is_room(serve, start_client, world, there, connect):
    hold, room = Deferred(), []
    serve(kept_limit=4)
    client = start_client()
    client.messageReceived = lambda message: hold
    protocol = there()
    for n in range(4):
        protocol.send(note(n))
    protocol.whenRoom().addCallback(room.append)
    world.advance(0.1)
    assert room == []
    hold.callback(None)
    world.advance(0.2)
    assert room == [None]

    connect().open().say({"type": "ping"})
    there().whenRoom().addCallback(room.append)
    assert room == [None, None]


def test_whenRoom_fails_when_the_session_ends(serve, start_client):
    serve(kept_limit=4).register("note", lambda protocol, message: Deferred())
    client, failed = start_client(), []
    for n in range(4):
        client.send(note(n))
    client.whenRoom().addErrback(failed.append)

    client.stopService()

    assert (failed[0].value.messages, failed[0].value.reason) == ((), "closed")


def test_a_server_handles_nothing_of_a_session_that_is_full(serve, start_client, world, there):
    """It answers what it handles, and there would be no room for that. A client must not do the same."""
    hold, taken = Deferred(), []
    serve(kept_limit=4).register("note", lambda protocol, message: taken.append(message["n"]))
    client = start_client()
    client.messageReceived = lambda message: hold
    for n in range(4):
        there().send(note(n))
    world.advance(0.1)
    client.send(note(7))
    world.advance(5)
    assert taken == []

    hold.callback(None)
    world.advance(0.2)
    assert taken == [7]


def test_who_is_there_and_confirms_nothing_for_half_a_minute_loses_the_session(serve, start_client, world, there):
    lost = []
    factory = serve(kept_limit=4)
    factory.sessionLost = lambda client_id, error: lost.append((client_id, error))
    client, hold = start_client(), Deferred()
    client.messageReceived = lambda message: hold
    name, failed = client.status.client_id, []
    for n in range(4):
        there().send(note(n)).addErrback(failed.append)
    world.advance(29)
    assert lost == []
    world.advance(3)

    ((who, error),) = lost
    assert (who, error.reason, error.messages) == (name, "full", tuple(note(n) for n in range(4)))
    assert [one.value for one in failed] == [error] * 4
    assert client.all("closed")[0].code == 4008
    # It comes back, to another session.
    world.advance(3)
    assert client.status.event in ("open", "acknowledged")
    hold.callback(None)
    there().send(note(9))
    world.advance(0.2)
    assert factory.heartbeat.sessions.channels.keys() == {client._session.channel.session.sid}


def test_who_confirms_one_message_after_the_other_keeps_it_however_slow(serve, start_client, world, there):
    factory = serve(kept_limit=4)
    client, holds = start_client(), []
    client.messageReceived = lambda message: holds.append(Deferred()) or holds[-1]
    for n in range(4):
        there().send(note(n))
    for n in range(4):
        world.advance(20)
        holds[-1].callback(None)
        world.advance(0.2)
        there().send(note(4 + n))

    assert client.events == ["open"]
    assert factory.heartbeat.sessions.detached == 0
    client.stopService()


def test_who_was_away_with_a_full_session_has_its_time_from_its_return(serve, start_client, world, there):
    factory = serve(kept_limit=4)
    client, hold = start_client(delays=(40.0,)), Deferred()
    client.messageReceived = lambda message: client.messages.append(message) or hold
    protocol = there()
    world.drop()
    for n in range(4):
        protocol.send(note(n))
    world.advance(41)
    assert client.messages == [note(0)]

    world.advance(25)
    hold.callback(None)
    world.advance(10)
    assert client.messages == [note(n) for n in range(4)]
    assert client.events == ["open", "closed", "reconnecting", "open"]
    assert factory.heartbeat.sessions.detached == 0


# What comes in.


def test_handlers_of_one_session_run_one_at_a_time_and_those_of_another_beside_them(serve, start_client, world):
    running, holds = [], []

    def take(protocol, message):
        running.append((protocol.handling.client_id, message["n"]))
        holds.append(Deferred())
        return holds[-1]

    serve().register("note", take)
    alice, bob = start_client(client_id="alice"), start_client(client_id="bob")
    for client in (alice, bob):
        client.send(note(1))
        client.send(note(2))
    world.advance(0.1)
    assert running == [("alice", 1), ("bob", 1)]

    holds[0].callback(None)
    assert running == [("alice", 1), ("bob", 1), ("alice", 2)]
    for hold in holds[1:]:
        hold.callback(None)
    holds[-1].callback(None)
    world.advance(0.1)


def test_a_handler_may_be_a_coroutine(serve, start_client, world):
    hold, taken = Deferred(), []

    async def take(protocol, message):
        handling = protocol.handling
        await hold
        taken.append(message["n"])
        handling.reply(note(-message["n"]))

    serve().register("note", take)
    client, sent = start_client(), []
    client.send(note(1)).addCallback(sent.append)
    client.send(note(2)).addCallback(sent.append)
    world.advance(0.1)
    assert (taken, sent) == ([], [])

    hold.callback(None)
    world.advance(0.2)
    assert (taken, sent, client.messages) == ([1, 2], [None, None], [note(-1), note(-2)])


def test_a_handler_that_returns_what_it_sent_is_not_made_to_wait_for_it(serve, start_client, world):
    serve().register("note", lambda protocol, message: protocol.send(note(-1)))
    client, sent = start_client(), []
    client.messageReceived = lambda message: client.send({"type": "done"})
    client.send(note(1)).addCallback(sent.append)
    world.advance(0.2)

    assert sent == [None]


def test_of_a_handler_that_fails_nothing_follows(serve, start_client, world, failures):
    def take(protocol, message):
        protocol.handling.reply(note(-1))
        protocol.handling.mark(protocol.handling.sid, "seen", "yes")
        raise ZeroDivisionError

    factory = serve()
    factory.register("note", take)
    client = start_client()
    client.send(note(1, id=5))
    world.advance(0.2)

    assert [(one["code"], one["re"]) for one in client.messages] == [("failed", 5)]
    (channel,) = factory.heartbeat.sessions.channels.values()
    assert (channel.marks, channel.session.weight) == ({}, 0)
    assert len(failures.flush(ZeroDivisionError)) == 1


def test_what_a_handler_marks_is_remembered_and_forgotten(serve, start_client, world):
    def take(protocol, message):
        protocol.handling.mark(protocol.handling.sid, "color", message["n"])

    factory = serve()
    factory.register("note", take)
    client = start_client()
    client.send(note("red"))
    world.advance(0.1)
    (channel,) = factory.heartbeat.sessions.channels.values()
    assert channel.marks == {"color": "red"}

    client.send(note(None))
    world.advance(0.1)
    assert channel.marks == {}


def test_the_handling_names_the_message_for_good(serve, start_client, world):
    seen = []
    factory = serve()
    factory.register("note", lambda protocol, message: seen.append(protocol.handling))
    client = start_client(client_id="alice")
    client.send(note(1))
    client.send(note(2))
    client.send(note(3), volatile=True)
    world.advance(0.1)
    (sid,) = factory.heartbeat.sessions.channels

    assert [(one.sid, one.seq, one.client_id) for one in seen] == [
        (sid, 1, "alice"),
        (sid, 2, "alice"),
        (sid, None, "alice"),
    ]


def test_a_message_whose_handler_still_runs_when_the_connection_breaks_is_not_handled_again(serve, start_client, world):
    hold, taken = Deferred(), []

    def take(protocol, message):
        taken.append(message["n"])
        return hold

    serve().register("note", take)
    client, sent = start_client(), []
    client.send(note(1)).addCallback(sent.append)
    client.send(note(2)).addCallback(sent.append)
    world.advance(0.1)
    world.drop()
    world.advance(3)
    assert (taken, sent) == ([1], [])

    hold.callback(None)
    world.advance(0.2)
    assert (taken, sent) == ([1, 2], [None, None])


def test_a_message_whose_turn_comes_while_nobody_is_connected_is_handled_all_the_same(serve, start_client, world):
    hold, taken = Deferred(), []

    def take(protocol, message):
        taken.append(message["n"])
        return hold

    serve().register("note", take)
    client = start_client()
    client.send(note(1))
    client.send(note(2))
    world.advance(0.1)
    world.cut()
    world.drop()
    world.connections[0][0].abortConnection()
    world.advance(0.1)

    hold.callback(None)
    assert taken == [1, 2]


# Acknowledgements.


def acks(world, start):
    """The acknowledgements that the server sent alone since then."""
    written = world.connections[-1][0].written[start:]
    return [int(part.partition(b"}")[0]) for part in written.split(b'{"type":"ack","ack":')[1:]]


def test_what_was_handled_is_acknowledged_within_50_ms_and_at_once_after_32(notes, start_client, world):
    client, at = start_client(interval=30.0), []
    start = len(world.connections[-1][0].written)
    client.send(note(0)).addCallback(lambda _: at.append(round(world.now - sent_at, 3)))
    sent_at = world.now
    world.advance(1)
    assert at == [0.07]
    assert acks(world, start) == [1]

    for n in range(70):
        client.send(note(n))
    world.advance(0.015)
    assert acks(world, start) == [1, 33, 65]
    world.advance(1)
    assert acks(world, start) == [1, 33, 65, 71]


def test_a_quarter_of_the_bytes_is_acknowledged_at_once(serve, start_client, world):
    serve(kept_bytes=40_000).register("note", lambda protocol, message: None)
    client = start_client(interval=30.0)
    start = len(world.connections[-1][0].written)
    for n in range(6):
        client.send(note(n, text="x" * 5000))
    world.advance(0.015)

    assert acks(world, start) == [2, 4, 6]


def test_a_ping_says_it_too_and_then_nothing_is_said_alone(notes, start_client, world):
    client = start_client(interval=30.0)
    start = len(world.connections[-1][0].written)
    client.send(note(0))
    world.advance(0.02)
    client._connection._heartbeat.carry((b'{"type":"ping","id":99}',))
    world.advance(1)

    assert acks(world, start) == []
    assert b'"status":"pong","clients":1,"ack":1}' in world.connections[-1][0].written[start:]


# The client's own end.


def test_a_stopped_client_tells_what_was_never_confirmed_and_the_server_forgets_it(serve, start_client, world):
    factory = serve()
    factory.register("note", lambda protocol, message: Deferred())
    client, failed, lost = start_client(), [], []
    client.sessionLost = lost.append
    for n in range(2):
        client.send(note(n)).addErrback(failed.append)
    world.advance(0.1)
    client.stopService()
    world.advance(1)

    assert [one.value.reason for one in failed] == ["closed", "closed"]
    assert [one.messages for one in lost] == [(note(0), note(1))]
    assert factory.heartbeat.sessions.channels == {}


def test_a_hook_that_fails_when_a_session_is_lost_is_logged_and_stops_nobody(serve, start_client, world, failures):
    factory = serve()
    factory.register("note", lambda protocol, message: Deferred())
    client = start_client()

    def fails(*arguments):
        raise ZeroDivisionError

    client.sessionLost = factory.sessionLost = fails
    world.connections[-1][0].protocol.send(note(1))
    client.messageReceived = lambda message: Deferred()
    client.send(note(1))
    world.advance(0.1)
    client.stopService()
    world.advance(1)

    assert len(failures.flush(ZeroDivisionError)) == 2
    assert factory.heartbeat.sessions.channels == {}


def test_at_level_0_a_message_is_sent_as_it_is_now_or_when_the_link_is_open(world, make_client):
    from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol

    taken = []

    class Echo(WebSocketServerProtocol):
        def onMessage(self, payload, isBinary):
            if b'"ping"' in payload:
                self.sendMessage(payload[:-1] + b',"status":"pong"}')
            elif b'"note"' in payload:
                taken.append(payload)

    factory = WebSocketServerFactory(reactor=world.server)
    factory.protocol = Echo
    world.listen(factory)
    client, sent = make_client(), []
    client.startService()
    client.send(note(1)).addCallback(sent.append)
    assert sent == []
    world.advance(0.2)
    assert (client.status.level, sent) == (0, [None])
    client.send(note(2)).addCallback(sent.append)
    world.advance(0.1)

    assert taken == [b'{"type":"note","n":1}', b'{"type":"note","n":2}']
    world.drop()
    world.advance(0.1)
    client.send(note(3)).addCallback(sent.append)
    world.advance(3)
    assert taken[2:] == [b'{"type":"note","n":3}']
    assert sent == [None] * 3


def test_a_session_that_waited_for_a_server_that_knows_none_any_more_is_unknown(serve, start_client, world):
    from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol

    class Plain(WebSocketServerProtocol):
        def onMessage(self, payload, isBinary):
            if b'"ping"' in payload:
                self.sendMessage(payload[:-1] + b',"status":"pong"}')

    serve().register("note", lambda protocol, message: Deferred())
    client, failed = start_client(), []
    client.send(note(1)).addErrback(failed.append)
    world.advance(0.1)
    factory = WebSocketServerFactory(reactor=world.server)
    factory.protocol = Plain
    world.listen(factory)
    world.drop()
    world.advance(3)

    assert (failed[0].value.reason, failed[0].value.messages) == ("unknown", (note(1),))
    assert client.status.level == 0
    assert failed[0].check(Unconfirmed)
