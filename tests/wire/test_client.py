"""The client that comes back: when, how often, to whom, and what its owner hears of it."""

import gc
import json

import pytest
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from OpenSSL import SSL
from peers import CLOSE, Refusing
from service_identity import VerificationError
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from heartbeat import HeartbeatClient, HeartbeatServerProtocol, SettingError, Settings, Unconfirmed, Unreachable
from heartbeat.endings import is_refused_certificate, reason_of


@pytest.fixture
def there(world):
    """The server's protocol of the latest connection."""
    return lambda: world.connections[-1][0].protocol


def attempts(client):
    """The numbers of the attempts that were announced, and the delays before them."""
    return [(status.attempt, round(status.delay, 3)) for status in client.all("reconnecting")]


class Closing(HeartbeatServerProtocol):
    """A server that closes every connection as soon as it is open."""

    code = 1001

    def onOpen(self):
        if self.code is None:
            self.transport.abortConnection()
        else:
            self.sendCloseFrame(self.code, b"why not")


def closing(code):
    """Such a server, with this code; None is no close frame at all."""
    return type("Mine", (Closing,), {"code": code})


# Coming back.


@pytest.mark.parametrize(("chance", "factor"), [(0.0, 0.5), (0.5, 1.0), (0.999, 1.499)])
def test_three_attempts_with_spread_delays_and_then_unreachable(make_client, world, chance, factor):
    world.refuses = True
    client = make_client(chance=lambda: chance)
    client.startService()
    world.advance(60)

    assert client.events == ["reconnecting"] * 3 + ["unreachable"]
    assert attempts(client) == [(1, factor * 1), (2, factor * 4), (3, pytest.approx(factor * 16, abs=0.001))]
    assert client.told[-1].detail == "could not connect: An error occurred while connecting: refused; 3 attempts failed"
    assert client.told[-1].attempt == 3


def test_after_unreachable_it_is_quiet(make_client, world):
    world.refuses = True
    client = make_client()
    client.startService()
    world.advance(60)
    told = len(client.told)

    world.refuses = False
    world.advance(600)

    assert len(client.told) == told
    assert client.status.event == "unreachable"


def test_the_last_delay_repeats_for_attempts_beyond_it(make_client, world):
    world.refuses = True
    client = make_client(attempts=5, delays=(1.0, 2.0))
    client.startService()
    world.advance(60)

    assert attempts(client) == [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2)]


def test_no_attempts_is_unreachable_at_the_first_failure(make_client, world):
    world.refuses = True
    client = make_client(attempts=0)
    client.startService()
    world.advance(1)

    assert client.events == ["unreachable"]


def test_delays_are_random_by_themselves(world):
    world.refuses = True
    delays = []
    for _ in range(30):
        client = HeartbeatClient("ws://test/", reactor=world.client, endpoint=world.endpoint())
        client.linkChanged = lambda status: delays.append(status.delay)
        client.startService()
        world.advance(0.1)
        client.stopService()

    assert all(0.5 <= delay < 1.5 for delay in delays)
    assert len(set(delays)) == len(delays) == 30


def test_a_lost_connection_is_made_again_and_the_heartbeat_starts_anew(serve, start_client, world):
    serve()
    client = start_client()
    world.advance(30)
    before = len(client.pongs)
    world.drop()
    world.advance(30)

    assert client.events == ["open", "closed", "reconnecting", "open"]
    assert client.all("closed")[0].detail.startswith("lost: ")
    assert len(client.pongs) >= before + 4
    assert client.pings_sent == len(client.pongs)


def test_a_cut_network_is_noticed_and_healed(serve, start_client, world):
    serve()
    client = start_client()
    world.cut()
    world.advance(20)
    assert client.events == ["open", "suspect", "dead", "reconnecting"]

    world.heal()
    world.advance(20)

    assert client.events[4:] == ["open"]


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1007, 1008, 1009, 1010, 4400, 4401, 4403, 4499])
def test_a_final_close_is_unreachable_at_once(serve, start_client, world, code):
    serve(protocol=closing(code))
    client = start_client()
    world.advance(60)

    assert client.events == ["closed", "unreachable"]
    assert client.told[0].code == code
    assert client.told[1].detail == f"closed by the server ({code}: why not)"
    assert len(world.connections) == 1


@pytest.mark.parametrize("code", [None, 1001, 1011, 4000, 4008, 4010, 4011])
def test_any_other_end_is_followed_by_another_attempt(serve, start_client, world, code):
    serve(protocol=closing(code))
    client = start_client()
    world.advance(60)

    assert client.events == ["closed", "reconnecting"] * 3 + ["closed", "unreachable"]
    assert [status.code for status in client.all("closed")] == [code] * 4
    assert len(world.connections) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 426])
def test_a_final_http_status_is_unreachable_at_once(start_client, world, status):
    world.listen(Factory.forProtocol(lambda: Refusing(b"HTTP/1.1 %d No\r\n\r\n" % status)))
    client = start_client()
    world.advance(60)

    assert client.events == ["unreachable"]
    assert client.told[0].detail == f"the server refused the handshake with HTTP {status}"


@pytest.mark.parametrize("status", [200, 429, 500, 502, 503, 504])
def test_any_other_http_status_is_followed_by_another_attempt(start_client, world, status):
    world.listen(Factory.forProtocol(lambda: Refusing(b"HTTP/1.1 %d No\r\n\r\n" % status)))
    client = start_client()
    world.advance(60)

    assert client.events == ["reconnecting"] * 3 + ["unreachable"]
    assert attempts(client) == [(1, 1), (2, 4), (3, 16)]


@pytest.mark.parametrize(
    ("after", "delays"),
    [
        (b"7", [8.75, 8.75, 16]),
        (b"0", [1, 4, 16]),
        (b"86400", [75, 75, 75]),
        (b"9" * 5000, [75, 75, 75]),
        (b"x", [1, 4, 16]),
    ],
    ids=["some", "none", "a day", "for ever", "nonsense"],
)
def test_a_retry_after_is_honoured_up_to_a_minute(start_client, world, after, delays):
    """By up to a half more, drawn by chance: all who were refused together would be back together."""
    world.listen(Factory.forProtocol(lambda: Refusing(b"HTTP/1.1 503 No\r\nRetry-After: %s\r\n\r\n" % after)))
    client = start_client()
    world.advance(300)

    assert attempts(client) == [(1, delays[0]), (2, delays[1]), (3, delays[2])]


def test_a_full_server_of_ours_is_tried_again_when_it_says(serve, start_client, connect, world):
    serve(max_connections=1)
    first = connect().open()
    client = start_client()
    assert attempts(client) == [(1, 12.5)]

    first.leave()
    world.advance(13)

    assert client.events == ["reconnecting", "open"]


@pytest.mark.parametrize("code", [1012, 1013])
@pytest.mark.parametrize(("chance", "delay"), [(0.0, 1.0), (0.5, 5.5), (0.999, 9.991)])
def test_a_restart_or_an_overload_is_waited_out_and_is_no_attempt(serve, start_client, world, code, chance, delay):
    serve(protocol=closing(code))
    client = start_client(chance=lambda: chance)
    assert attempts(client) == [(0, delay)]

    world.refuses = True
    world.advance(delay + 0.1)
    # What follows is one.
    assert attempts(client)[1][0] == 1


@pytest.mark.parametrize("code", [1012, 1013])
def test_a_server_that_keeps_sending_us_away_is_tried_like_any_other(serve, start_client, world, code):
    serve(protocol=closing(code))
    client = start_client()
    world.advance(60)

    assert attempts(client) == [(0, 5.5), (1, 1), (2, 4), (3, 16)]
    assert client.events[-1] == "unreachable"


def test_once_stable_it_is_excused_again(serve, start_client, world, there):
    serve()
    client = start_client()
    for _ in range(2):
        world.advance(6)
        there()._heartbeat.close(1012, "going")
        world.advance(6)

    assert attempts(client) == [(0, 5.5), (0, 5.5)]


# Drain.


def drain(there, shortest, longest):
    """Announce that the server is going."""
    there().sendMessage(b'{"type":"drain","min_ms":%d,"max_ms":%d}' % (shortest, longest))


@pytest.mark.parametrize(("chance", "at"), [(0.0, 2.0), (0.5, 3.0), (0.999, 3.998)])
def test_after_a_drain_it_comes_back_inside_the_window_counted_from_the_message(
    serve, start_client, world, there, chance, at
):
    serve()
    client = start_client(chance=lambda: chance)
    drain(there, 2000, 4000)
    world.advance(1.01)
    there()._heartbeat.close(1012, "going")
    world.advance(0.1)

    ((attempt, delay),) = attempts(client)
    assert attempt == 0
    assert delay == pytest.approx(at - 1.01, abs=0.05)
    world.advance(5)
    assert client.events == ["open", "closed", "reconnecting", "open"]


def test_a_window_that_has_begun_is_entered_at_once(serve, start_client, world, there):
    serve()
    client = start_client(chance=lambda: 0.0)
    drain(there, 0, 5000)
    world.advance(3)
    there()._heartbeat.close(1012, "going")
    world.advance(0.2)

    assert attempts(client) == [(0, 0)]


def test_a_window_is_at_most_half_of_what_a_session_is_kept_for(serve, start_client, world, there):
    """As the server declares it."""
    serve(window=10.0)
    client = start_client(chance=lambda: 0.999)
    drain(there, 0, 60_000)
    world.advance(0.1)
    there()._heartbeat.close(1012, "going")
    world.advance(0.1)

    assert attempts(client)[0][1] == pytest.approx(5, abs=0.2)


def test_a_window_that_is_over_says_nothing_any_more(serve, start_client, world, there):
    """A server that stayed after all, and falls over a minute later, is met with the usual delays."""
    serve()
    client = start_client()
    drain(there, 0, 5000)
    world.advance(60)
    world.drop()
    world.advance(0.2)

    assert attempts(client) == [(1, 1)]


def test_the_next_connection_knows_nothing_of_the_last_drain(serve, start_client, world, there):
    serve()
    client = start_client()
    drain(there, 0, 1000)
    world.advance(0.1)
    there()._heartbeat.close(1012, "going")
    world.advance(5)
    world.drop()
    world.advance(0.2)

    assert attempts(client)[1:] == [(1, 1)]


@pytest.mark.parametrize("text", [b'{"type":"drain"}', b'{"type":"drain","min_ms":5,"max_ms":1}'])
def test_a_drain_that_is_none_is_told_to_the_log(serve, start_client, world, there, log, text):
    serve()
    client = start_client()
    there().sendMessage(text)
    world.advance(0.1)
    world.drop()
    world.advance(0.1)

    assert attempts(client) == [(1, 1)]
    assert "what it sent cannot be taken: drain has min_ms and max_ms" in [event.get("why") for event in log]


# The count.


def test_accept_then_drop_ends_in_unreachable(serve, start_client, world):
    """Every connection opens and even answers a beat; none of them lasts."""

    class Dropping(HeartbeatServerProtocol):
        def onOpen(self):
            self.factory.reactor.callLater(2, self.transport.abortConnection)

    serve(protocol=Dropping)
    client = start_client()
    world.advance(120)

    assert client.events == ["open", "closed", "reconnecting"] * 3 + ["open", "closed", "unreachable"]
    assert len(client.pongs) >= 4


@pytest.mark.parametrize(("up", "attempt"), [(4.7, 2), (5.2, 1)])
def test_the_count_starts_afresh_after_five_seconds_and_an_answered_beat(serve, start_client, world, up, attempt):
    serve()
    client = start_client()
    world.drop()
    world.advance(1.1)
    assert client.events[-1] == "open"
    world.advance(up)
    world.drop()
    world.advance(0.1)

    assert attempts(client)[-1][0] == attempt


def test_five_seconds_without_an_answered_beat_are_not_stable(serve, start_client, world):
    class Mute(HeartbeatServerProtocol):
        """Answers the opening, and no ping."""

        def sendMessage(self, payload, *arguments, **options):
            if not payload.startswith(b'{"type":"ping"'):
                super().sendMessage(payload, *arguments, **options)

    serve(protocol=Mute)
    client = start_client()
    world.drop()
    world.advance(1.2)
    assert client.events[-1] == "open"
    world.advance(5.5)
    world.drop()
    world.advance(0.1)

    assert attempts(client)[-1][0] == 2


# retry().


def test_retry_starts_afresh_after_unreachable(serve, make_client, world):
    world.refuses = True
    client = make_client()
    client.startService()
    world.advance(60)
    client.retry()
    world.advance(60)
    assert client.events == (["reconnecting"] * 3 + ["unreachable"]) * 2

    serve()
    world.refuses = False
    client.retry()
    world.advance(1)
    assert client.events[-1] == "open"


def test_retry_does_not_wait_for_the_next_attempt(serve, start_client, world):
    world.refuses = True
    client = start_client()
    serve()
    world.refuses = False
    client.retry()
    world.advance(0.2)

    assert client.events == ["reconnecting", "open"]
    assert len(world.connections) == 1


def test_retry_does_nothing_while_there_is_a_connection_or_one_under_way_or_no_service(serve, make_client, world):
    serve()
    client = make_client()
    client.retry()
    world.advance(1)
    assert client.events == []

    client.startService()
    client.retry()
    world.advance(1)
    client.retry()
    world.advance(1)
    assert client.events == ["open"]
    assert len(world.connections) == 1


@pytest.mark.parametrize("at", ["dead", "closed", "unreachable"])
def test_an_owner_may_retry_as_soon_as_it_is_told_of_the_end(serve, make_client, world, at):
    """From within the hook: what would have followed the end does not."""
    serve()
    client, told, opened = make_client(attempts=0), [], []

    def linkChanged(status):
        told.append(status.event)
        if status.event == at:
            world.heal()
            client.retry()
            client.whenOpen().addCallback(opened.append)

    client.linkChanged = linkChanged
    client.startService()
    world.advance(1)
    if at == "dead":
        world.cut()
    else:
        world.drop()
    world.advance(17)

    assert told[-1] == "open"
    assert opened == [client]
    assert told.count("unreachable") == (at == "unreachable")
    assert told.count("open") == 2
    assert len(world.connections) == (2 if at == "dead" else 1)
    assert client.status.event in ("acknowledged", "waiting")


# whenOpen().


def test_whenOpen_fires_with_the_client(serve, make_client, world):
    serve()
    client, fired = make_client(), []
    client.whenOpen().addCallback(fired.append)
    client.startService()
    client.whenOpen().addCallback(fired.append)
    assert fired == []

    world.advance(0.2)
    assert fired == [client, client]
    client.whenOpen().addCallback(fired.append)
    assert fired == [client] * 3


def test_whenOpen_fails_when_it_will_not_be_by_itself(make_client, world):
    world.refuses = True
    client, failed = make_client(), []
    client.startService()
    client.whenOpen().addErrback(failed.append)
    world.advance(20)
    assert failed == []

    world.advance(40)
    client.whenOpen().addErrback(failed.append)
    assert [failure.check(Unreachable) for failure in failed] == [Unreachable] * 2
    assert [str(failure.value) for failure in failed] == [client.status.detail] * 2


def test_whenOpen_waits_again_after_a_retry(serve, make_client, world):
    world.refuses = True
    client, fired = make_client(), []
    client.startService()
    world.advance(60)
    serve()
    world.refuses = False

    client.retry()
    client.whenOpen().addCallback(fired.append)
    world.advance(1)

    assert fired == [client]


def test_whenOpen_waits_again_after_a_new_start(serve, make_client, world):
    world.refuses = True
    client, fired = make_client(attempts=0), []
    client.startService()
    world.advance(1)
    client.stopService()
    serve()
    world.refuses = False

    client.startService()
    client.whenOpen().addCallback(fired.append)
    world.advance(1)

    assert fired == [client]


def test_whenOpen_fails_when_the_client_is_stopped_and_may_be_cancelled(make_client, world):
    client, failed = make_client(), []
    client.startService()
    client.whenOpen().addErrback(failed.append)
    cancelled = client.whenOpen()
    cancelled.addErrback(lambda failure: None)
    cancelled.cancel()
    client.stopService()

    assert failed[0].check(Unreachable)
    assert str(failed[0].value) == "the client was stopped"


# stopService().


@pytest.fixture
def stop(world):
    """Stop a client, and say after how long that fired, and what is left on its machine when it did."""

    def stop(client):
        began, fired = world.now, []
        client.stopService().addCallback(lambda _: fired.append(world.now - began))
        while not fired and world.now < began + 5:
            world.advance(0.01)
        # A turn more, for a socket that was aborted.
        world.advance(0)
        assert world.client.calls == []
        return fired[0]

    return stop


def test_stopping_closes_1000_and_says_so(serve, start_client, stop, there):
    serve()
    client = start_client()

    assert stop(client) < 0.2
    assert there().remoteCloseCode == 1000
    assert client.events == ["open", "closed"]
    assert client.status.detail == "closed by us"


def test_stopping_is_bounded_against_a_cut_network(serve, start_client, stop, world):
    serve()
    client = start_client()
    world.cut()

    assert stop(client) == pytest.approx(1.0, abs=0.1)


def test_stopping_twice_or_without_a_start_is_nothing(serve, start_client, make_client, stop):
    serve()
    assert stop(make_client()) == 0
    client = start_client()
    stop(client)
    assert stop(client) == 0


def test_stopping_while_it_connects(serve, make_client, stop, world):
    serve()
    client = make_client()
    client.startService()

    assert stop(client) == 0
    assert world.connections == []
    assert client.events == []


def test_stopping_while_it_hangs(serve, make_client, stop, world):
    serve()
    world.cut()
    client = make_client()
    client.startService()
    world.advance(5)

    assert stop(client) == 0
    assert client.events == []


def test_stopping_amid_the_handshake(make_client, stop, world):
    world.listen(Factory.forProtocol(Protocol))
    client = make_client()
    client.startService()
    world.advance(1)

    assert stop(client) < 0.1
    assert client.events == ["closed"]


def test_stopping_while_it_waits_and_when_it_has_given_up(make_client, stop, world):
    world.refuses = True
    client = make_client()
    client.startService()
    world.advance(0.5)
    assert stop(client) == 0

    client.startService()
    world.advance(60)
    assert stop(client) == 0
    assert client.events == ["reconnecting"] * 4 + ["unreachable"]


def test_stopping_just_after_a_conviction_leaves_no_socket_behind(serve, start_client, stop, world):
    serve()
    client = start_client()
    world.cut()
    while client.events[-1] != "reconnecting":
        world.advance(0.1)

    assert stop(client) == 0
    assert not world.connections[0][1].connected


def test_it_can_be_started_again(serve, start_client, stop, world):
    serve()
    client = start_client()
    stop(client)
    client.startService()
    world.advance(30)

    assert client.events == ["open", "closed", "open"]
    stop(client)


def test_it_can_be_started_again_before_it_has_stopped(serve, start_client, stop, world):
    """The old socket is dropped, and whoever waits for the stop is told."""
    serve()
    client, stopped = start_client(), []
    world.cut()
    client.stopService().addCallback(stopped.append)
    world.heal()
    client.startService()
    world.advance(5)

    assert stopped == [None]
    assert client.events[-1] == "open"
    assert not world.connections[0][1].connected
    stop(client)


def test_it_is_started_once_however_often_it_is_told(serve, start_client, stop, world):
    """As when it is started, and added to a service tree that runs."""
    serve()
    client = start_client()
    tree = MultiService()
    tree.startService()
    client.setServiceParent(tree)
    world.advance(10)

    assert client.events == ["open"]
    assert len(world.connections) == 1
    stop(client)


# Old sockets.


def test_an_old_connection_reaches_nobody(serve, start_client, world):
    serve()
    client = start_client()
    old = world.connections[0][1].protocol
    world.stall(30)
    world.advance(16)
    assert client.events == ["open", "suspect", "dead", "reconnecting"]
    told = list(client.told)

    # Whatever it may still hear, by frames or by Autobahn's own events.
    old.dataReceived(b'\x81\x0f{"type":"chat"}' + b'\x81\x27{"type":"ping","status":"pong","id":1}   ')
    old.messageReceived({"type": "chat"})
    old.pongReceived(0.1, 7)
    old.pingReceived()
    old._heartbeat_drained(1.0, 2.0)
    old.linkChanged(told[0])

    assert client.told == told
    assert client.messages == []
    assert client.asked == 0
    assert all(clients != 7 for _, clients in client.pongs)


def test_a_server_that_wakes_answers_old_sockets_in_vain(serve, start_client, world, there):
    factory = serve()
    client = start_client()
    world.stall(14)
    world.advance(60)

    assert client.events.count("open") == client.events.count("dead") + 1
    assert client.events[-1] == "open"
    assert factory.presence.connections == 1


def test_an_old_socket_is_aborted_before_a_new_one_opens(serve, start_client, world):
    serve()
    client = start_client(chance=lambda: 0.0)
    world.cut()
    while client.events[-1] != "dead" and "reconnecting" not in client.events:
        world.advance(0.05)
    old = world.connections[0][1]
    world.heal()
    world.advance(0.55)

    assert not old.connected
    assert client.events[-1] == "open"


# send().


def test_a_message_reaches_the_server_and_an_answer_the_client(serve, start_client, world):
    serve().register("chat", lambda protocol, message: protocol.send({"type": "chat", "text": message["text"].upper()}))
    client, sent = start_client(), []

    client.send({"type": "chat", "text": "hi"}).addCallback(sent.append)
    world.advance(0.1)

    assert (sent, client.messages) == ([None], [{"type": "chat", "text": "HI"}])


def test_an_answer_that_follows_from_a_message_says_with_it_that_it_was_handled(serve, start_client, world, there):
    def answer(protocol, message):
        protocol.handling.reply({"type": "chat", "text": message["text"].upper()})

    serve().register("chat", answer)
    client, sent = start_client(), []
    before = len(there().transport.written)

    client.send({"type": "chat", "text": "hi"}).addCallback(sent.append)
    world.advance(0.03)

    assert (sent, client.messages) == ([None], [{"type": "chat", "text": "HI"}])
    assert there().transport.written[before:].endswith(b'{"type":"chat","text":"HI","seq":1,"ack":1}')


def test_a_message_that_nobody_takes_comes_back_as_an_error(serve, start_client, world):
    serve()
    client = start_client()
    client.send({"type": "chat", "id": "m1"})
    world.advance(0.1)

    assert [(message["code"], message["re"]) for message in client.messages] == [("unknown-type", "m1")]


@pytest.mark.parametrize("when", ["before the start", "after the end"])
def test_a_message_of_a_client_that_does_not_run_fails_quietly_as_unconfirmed(
    serve, make_client, world, failures, when
):
    serve()
    client, failed = make_client(), []
    if when == "after the end":
        client.startService()
        world.advance(0.2)
        client.stopService()
        world.advance(2)

    client.send({"type": "chat"}).addErrback(failed.append)
    for _ in range(100):
        client.send({"type": "ignored"})
    gc.collect()

    assert failed[0].check(Unconfirmed)
    assert (failed[0].value.messages, failed[0].value.reason) == (({"type": "chat"},), "closed")
    assert failures == []


@pytest.mark.parametrize("when", ["while it connects", "while it waits"])
def test_a_message_while_not_open_goes_out_when_the_link_is(serve, make_client, world, when):
    taken, sent = [], []
    serve().register("chat", lambda protocol, message: taken.append(message["n"]))
    client = make_client()
    client.startService()
    if when == "while it waits":
        world.advance(0.2)
        world.drop()
        world.advance(0.1)
        assert client.status.event == "reconnecting"

    for n in range(3):
        client.send({"type": "chat", "n": n}).addCallback(sent.append)
    assert (taken, sent) == ([], [])
    world.advance(2)

    assert (taken, sent) == ([0, 1, 2], [None] * 3)


def test_a_client_whose_claim_is_not_honoured_comes_back_as_whom_it_was_given(serve, start_client, world):
    world.client_host = "192.0.2.7"
    serve()
    client = start_client(client_id="alice")
    name = client.status.client_id
    assert name.startswith("c-")
    sid = client._session.channel.session.sid
    world.drop()
    world.advance(3)

    assert client.status.client_id == name
    assert client._session.channel.session.sid == sid


def test_what_waits_for_a_server_that_is_unreachable_fails_and_so_does_what_is_sent_then(make_client, world):
    world.refuses = True
    client, failed = make_client(attempts=1), []
    client.startService()
    client.send({"type": "chat", "n": 1}).addErrback(failed.append)
    world.advance(5)
    client.send({"type": "chat", "n": 2}).addErrback(failed.append)

    assert client.status.event == "unreachable"
    assert [(one.value.messages, one.value.reason) for one in failed] == [
        (({"type": "chat", "n": 1},), "unreachable"),
        (({"type": "chat", "n": 2},), "unreachable"),
    ]


def test_a_message_that_is_none_raises_whether_open_or_not(serve, start_client, make_client):
    serve()
    for client in (make_client(), start_client()):
        for wrong, error in (({"type": "ping"}, ValueError), ({"no": "type"}, TypeError), ([], TypeError)):
            with pytest.raises(error):
                client.send(wrong)


# Servers that know no JSON pings, or little of ours.


@pytest.fixture
def plain(world):
    """A plain Autobahn server, with this `onMessage`."""

    def plain(onMessage):
        factory = WebSocketServerFactory(reactor=world.server)
        factory.protocol = type("Plain", (WebSocketServerProtocol,), {"onMessage": onMessage})
        world.listen(factory)

    return plain


def echo(status):
    """Ten lines that answer JSON pings with a status, and know nothing else."""

    def onMessage(self, payload, isBinary):
        message = json.loads(payload)
        if message["type"] == "ping":
            message["status"] = status
            self.sendMessage(json.dumps(message).encode())

    return onMessage


def test_with_frames_a_server_that_knows_no_json_will_do(plain, start_client, world):
    heard = []
    plain(lambda self, payload, isBinary: heard.append(payload))
    client = start_client(frames=True)
    world.advance(60)

    assert client.events == ["open"]
    assert client.told[0].detail == "open, the server knows RFC 6455 pings"
    assert len(client.pongs) == 10
    assert heard == []
    world.cut()
    world.advance(15.6)
    assert client.events == ["open", "suspect", "dead", "reconnecting"]


def test_without_frames_such_a_server_is_no_answer(plain, start_client, world):
    plain(lambda self, payload, isBinary: None)
    client = start_client()
    world.advance(10)

    assert client.events == ["reconnecting"]
    assert client.told[0].detail == "no answer within 10 s"


def test_a_plain_echo_server_is_taken_as_it_is(plain, start_client, world):
    plain(echo("pong"))
    client, sent = start_client(), []
    client.send({"type": "chat"}).addCallback(sent.append)
    world.advance(60)

    assert client.events == ["open"]
    assert (client.told[0].level, client.told[0].client_id) == (0, None)
    assert sent == [None]
    assert len(client.pongs) == 10
    assert all(rtt == pytest.approx(0.02) and clients is None for rtt, clients in client.pongs)

    world.cut()
    world.advance(15.6)
    assert client.events[-3:] == ["suspect", "dead", "reconnecting"]


def test_an_answer_without_an_id_is_one_to_the_ping_in_flight(plain, start_client, world):
    plain(lambda self, payload, isBinary: self.sendMessage(b'{"type":"ping","status":"pong","clients":2}'))
    client = start_client()
    world.advance(30)

    assert client.events == ["open"]
    assert client.pongs == [(pytest.approx(0.02), 2)] * 6


def test_another_status_is_a_failed_beat(plain, start_client, world):
    plain(echo("sorry"))
    client = start_client()
    world.advance(60)

    assert client.events == ["dead", "reconnecting"] * 3 + ["dead", "unreachable"]
    assert client.told[0].reason == "refused"


def test_another_status_later_is_one_too(plain, start_client, world):
    answers = iter([b'{"type":"ping","status":"pong"}'] * 4 + [b'{"type":"ping","status":"busy"}'] * 100)
    plain(lambda self, payload, isBinary: b'"ping"' in payload and self.sendMessage(next(answers)))
    client = start_client()
    world.advance(30)

    assert client.events[:3] == ["open", "dead", "reconnecting"]


def test_a_ping_of_a_plain_server_is_answered(plain, start_client, world):
    said = []

    def onMessage(self, payload, isBinary):
        said.append(payload)
        if b'"id":1' in payload:
            self.sendMessage(b'{"type":"ping","status":"pong"}')
            self.sendMessage(b'{"type":"ping","t":5}')

    plain(onMessage)
    client = start_client()

    assert client.asked == 1
    assert said[-1] == b'{"type":"ping","t":5,"status":"pong"}'


def test_a_server_that_shakes_hands_for_ever_is_no_answer(start_client, world):
    world.listen(Factory.forProtocol(Protocol))
    client = start_client()
    world.advance(10)

    assert client.events == ["reconnecting"]
    assert client.told[0].detail == "no answer within 10 s"
    world.advance(0.1)
    assert not world.connections[0][1].connected


def test_a_connect_that_hangs_is_no_answer(serve, start_client, world):
    serve()
    world.cut()
    client = start_client()
    world.advance(10)

    assert client.events == ["reconnecting"]
    assert client.told[0].detail == "no answer within 10 s"


def test_a_server_that_breaks_the_protocol_is_closed_by_us_and_tried_again(serve, start_client, world, there):
    serve()
    client = start_client()
    world.connections[0][0].write(b"\x83\x00")
    world.advance(0.5)

    assert client.events == ["open", "closed", "reconnecting"]
    assert client.told[1].detail.startswith("closed by us (1002")
    assert client.told[1].code is None


# Sleep.


def test_a_machine_that_wakes_probes_first(serve, start_client, world):
    serve()
    client = start_client()
    world.sleep(5)
    world.advance(6)

    assert client.events == ["open", "suspect", "waiting", "acknowledged"]


def test_a_machine_that_wakes_to_a_dead_connection_finds_out_within_the_probe(serve, start_client, world):
    """As after a night: the server has long given it up, and the network knows nothing of the connection."""
    serve()
    client = start_client()
    world.cut()
    world.sleep(8 * 3600)
    world.advance(8 * 3600 + 0.5)
    assert client.events == ["open", "suspect"]

    world.advance(3.2)
    assert client.events[2:4] == ["dead", "reconnecting"]


def test_a_machine_that_sleeps_while_it_waits_tries_in_time(serve, start_client, world):
    world.refuses = True
    client = start_client()
    serve()
    world.refuses = False
    world.sleep(3600)
    world.advance(3602)

    assert client.events[-1] == "open"


@pytest.mark.parametrize("at", [0.5, 2.0, 4.0, 5.9, 6.03, 8.0, 11.9])
@pytest.mark.parametrize("beats", ["client", "server"])
def test_a_client_that_stood_still_blames_nobody(serve, start_client, world, beats, at):
    serve(beats=beats)
    client = start_client()
    world.advance(at)
    # Shorter than the server's patience with it, which it would not have outlived.
    world.stall(8, world.client)
    world.advance(30)

    assert "dead" not in client.events
    assert client.status.event in ("acknowledged", "waiting")


# Status.


def test_the_status_is_known_at_any_time(serve, make_client, world):
    serve()
    client = make_client(client_id="alice")
    assert (client.status.event, client.status.detail) == ("closed", "not started")
    client.startService()
    assert client.status.event == "closed"
    world.advance(0.2)

    status = client.status
    assert (status.event, status.level, status.client_id) == ("acknowledged", 1, "alice")
    assert status.rtt == pytest.approx(0.02)
    assert client.pings_in_flight == 0
    world.cut()
    world.advance(6)
    assert client.pings_in_flight == 1
    assert client.status.event == "waiting"


def test_the_pings_of_all_connections_are_counted(serve, start_client, world):
    serve()
    client = start_client()
    world.advance(12)
    world.cut()
    world.advance(17)
    world.heal()
    world.advance(12)

    # Of the first connection, a ping and a probe were lost.
    assert client.pings_sent == len(client.pongs) + 2 + client.pings_in_flight
    assert client.pings_in_flight == 0


# The owner's mistakes.


def test_a_linkChanged_that_fails_is_logged_and_the_client_goes_on(serve, make_client, world, failures):
    class Fails(HeartbeatClient):
        def linkChanged(self, status):
            raise ZeroDivisionError

    serve()
    client = make_client(cls=Fails)
    client.startService()
    world.advance(10)
    assert client.status.event == "acknowledged"
    assert len(failures.flush(ZeroDivisionError)) == 1

    world.drop()
    world.advance(10)
    assert client.status.event == "acknowledged"
    client.stopService()
    world.advance(1)
    # closed, reconnecting, open, closed
    assert len(failures.flush(ZeroDivisionError)) == 4


@pytest.mark.parametrize("hook", ["pongReceived", "pingReceived"])
def test_any_other_hook_that_fails_closes_1011_and_the_client_comes_back(
    serve, start_client, world, there, failures, hook
):
    serve(beats="both")
    client = start_client()

    def hook_fails(*arguments):
        setattr(client, hook, lambda *arguments: None)
        raise ZeroDivisionError

    setattr(client, hook, hook_fails)
    there().send({"type": "chat"})
    there()._heartbeat.carry((b'{"type":"ping","id":77}',))
    world.advance(8)

    assert len(failures.flush(ZeroDivisionError)) == 1
    assert client.events[:3] == ["open", "closed", "reconnecting"]
    assert client.told[1].detail.startswith("closed by us (1011")
    assert client.events[-1] == "open"


@pytest.mark.parametrize("late", [False, True])
def test_a_handler_that_fails_is_logged_counts_as_handled_and_the_server_is_told(
    serve, start_client, world, there, failures, late
):
    errors = []
    serve().register("error", lambda protocol, message: errors.append(message))
    client, taken, sent = start_client(), Deferred(), []

    def fails(message):
        client.messageReceived = client.messages.append
        if not late:
            raise ZeroDivisionError
        return taken

    client.messageReceived = fails
    there().send({"type": "chat", "id": "m1"}).addCallback(sent.append)
    there().send({"type": "chat", "id": "m2"}).addCallback(sent.append)
    world.advance(1)
    if late:
        # Those of a session are handled one at a time.
        assert (sent, client.messages) == ([], [])
        taken.errback(ZeroDivisionError())
        world.advance(1)

    assert len(failures.flush(ZeroDivisionError)) == 1
    assert (sent, client.events, client.messages) == ([None, None], ["open"], [{"type": "chat", "id": "m2"}])
    detail = "the message was taken, and its handler failed"
    assert errors == [{"type": "error", "code": "failed", "detail": detail, "re": "m1"}]


def test_hooks_do_nothing_by_themselves(serve, make_client, world, there):
    serve(beats="server")
    client = make_client(cls=HeartbeatClient)
    client.startService()
    world.advance(0.2)
    there().send({"type": "chat"})
    world.advance(60)

    assert client.status.event == "acknowledged"


# Where to connect, and what to say.


def test_a_url_says_where_to_connect():
    reactor = MemoryReactorClock()
    client = HeartbeatClient("ws://127.0.0.1:9000/ws", reactor=reactor)
    client.startService()

    assert [call[:2] for call in reactor.tcpClients] == [("127.0.0.1", 9000)]
    client.stopService()
    assert [call for call in reactor.getDelayedCalls() if call.active()] == []


def test_an_ipv6_url_says_where_too():
    """Without the brackets, which only a URL and a Host header need."""
    client = HeartbeatClient("ws://[::1]:9000/ws", reactor=MemoryReactorClock())

    assert repr(client._endpoint) == "<HostnameEndpoint [::1]:9000>"


def test_over_tls_the_certificate_is_the_hosts():
    reactor = MemoryReactorClock()
    client = HeartbeatClient("wss://127.0.0.1/", reactor=reactor)
    client.startService()
    host, port, factory = reactor.tcpClients[0][:3]

    assert (host, port) == ("127.0.0.1", 443)
    assert factory.buildProtocol(None) is not None
    client.stopService()


def test_headers_are_sent_and_equal_names_are_joined(serve, make_client, world, there):
    serve()
    client = HeartbeatClient(
        "ws://test/ws",
        reactor=world.client,
        endpoint=world.endpoint(),
        headers=[("Cookie", "a=b"), ("X-Two", "1"), ("X-Two", "2")],
    )
    client.startService()
    world.advance(0.2)

    assert there().http_headers["cookie"] == "a=b"
    assert there().http_headers["x-two"] == "1, 2"
    client.stopService()


@pytest.mark.parametrize("header", [("", "x"), ("A:", "x"), ("A", "x\r\nB: y"), ("A\n", "x"), ("A", "\0")])
def test_a_header_that_is_none_is_refused(header):
    with pytest.raises(SettingError) as refusal:
        HeartbeatClient("ws://test/", reactor=MemoryReactorClock(), headers=[header])

    assert (refusal.value.name, refusal.value.value) == ("headers", header)


def test_subprotocols_are_offered(serve, start_client, there):
    class Picky(HeartbeatServerProtocol):
        def onConnect(self, request):
            return request.protocols[-1]

    serve(protocol=Picky)
    client = start_client(protocols=["a.example", "b.example"])

    assert client.events == ["open"]
    assert there().websocket_protocols == ["a.example", "b.example"]
    assert client._connection.websocket_protocol_in_use == "b.example"


class Endpoint:
    """Connects by whatever this says."""

    def __init__(self, connect):
        self.connect = connect


def test_an_endpoint_may_wrap_the_protocol(serve, start_client, world):
    class Wrapper:
        def __init__(self, protocol):
            self.wrappedProtocol = protocol

    serve()
    inner = world.endpoint()
    client = start_client(endpoint=Endpoint(lambda factory: inner.connect(factory).addCallback(Wrapper)))

    assert client.events == ["open"]


def test_an_endpoint_that_gives_nonsense_is_a_bug_that_is_told(make_client, world, failures):
    client = make_client(endpoint=Endpoint(lambda factory: succeed(None)))
    client._connected = lambda connection: 1 / 0
    client.startService()

    assert len(failures.flush(ZeroDivisionError)) == 1


WHY = {
    "refused": (ConnectError(), "An error occurred while connecting"),
    "done": (ConnectionDone(), "the other end closed the connection"),
    "lost": (ConnectionLost("gone."), "Connection to the other side was lost in a non-clean fashion: gone"),
    "another host": (VerificationError([]), "the certificate is for another host"),
    "TLS, in its own words": (
        SSL.Error([("SSL routines", "", "certificate verify failed"), ("", "", "no"), ()]),
        "TLS failed: certificate verify failed, no",
    ),
    "TLS, without a word": (SSL.Error(), "TLS failed: the connection was cut"),
}


@pytest.mark.parametrize(("error", "sentence"), WHY.values(), ids=WHY)
def test_why_it_could_not_connect_is_a_sentence(make_client, world, error, sentence):
    client = make_client(endpoint=Endpoint(lambda factory: fail(error)))
    client.startService()

    assert client.told[0].detail == f"could not connect: {sentence}"
    assert reason_of(Failure(error)) == sentence


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (VerificationError([]), True),
        (SSL.Error([("SSL routines", "", "certificate verify failed")]), True),
        (SSL.Error([("SSL routines", "", "wrong version number")]), False),
        (ConnectionLost(), False),
    ],
)
def test_a_certificate_that_is_refused_once_is_refused_again(serve, start_client, world, error, refused):
    """So that nobody tries it three times."""
    assert is_refused_certificate(Failure(error)) is refused
    world.listen(Factory.forProtocol(Protocol))
    client = start_client()
    world.connections[0][1].protocol.connectionLost(Failure(error))
    world.connections[0][1].connected = False

    assert client.events == (["unreachable"] if refused else ["reconnecting"])
    assert client.told[0].detail.startswith("could not open: ")


def test_settings_are_the_defaults_or_those_given():
    settings = Settings(interval=2.0)
    for given, held in ((None, Settings()), (settings, settings)):
        assert HeartbeatClient("ws://test/", settings=given, reactor=MemoryReactorClock()).settings == held


def test_the_opcodes_of_a_goodbye_are_a_close_frame(serve, start_client, world):
    """Nothing but the close frame follows a stop, though a ping was due."""
    serve()
    client = start_client()
    world.advance(6)
    sent = len(world.connections[0][1].written)
    client.stopService()
    world.advance(2)

    assert world.connections[0][1].written[sent] & 15 == CLOSE
