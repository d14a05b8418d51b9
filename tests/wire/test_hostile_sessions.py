"""Sessions among enemies and mishaps: what somebody did to them once, or might, stays done with."""

import pytest
from test_chat import Person
from twisted.internet.defer import Deferred, fail
from twisted.logger import formatEvent

from heartbeat import HeartbeatServerFactory, Settings, register
from heartbeat.chat import Chat, GroupChat
from heartbeat.core.errors import StoreError
from heartbeat.core.opening import opening
from heartbeat.store import Head, MemoryStore


class Shaky(MemoryStore):
    """A store in memory of which single methods may be slow (a Deferred) or broken (an error)."""

    def __init__(self, **instead):
        super().__init__()
        self.instead = instead

    def __getattribute__(self, name):
        instead = object.__getattribute__(self, "__dict__").get("instead", {})
        if name in instead:
            return instead[name]
        return super().__getattribute__(name)


def broken(*arguments):
    return fail(StoreError("the disk is broken"))


@pytest.fixture
def serve_on(world):
    """Have the server machine listen, with a store or an authenticator of its own."""

    def serve_on(store=None, authenticator=None, **settings):
        factory = HeartbeatServerFactory(
            Settings(**settings), store=store, authenticator=authenticator, reactor=world.server
        )
        world.listen(factory)
        return factory

    return serve_on


@pytest.fixture
def person(connect):
    """A client of bytes in a session of its own."""
    return lambda name, **more: Person(connect, name, **more)


@pytest.fixture
def turned_away(connect, world):
    """The code with which a client is closed that opens, perhaps to come back to a session, and is not let in."""

    def turned_away(resume=None, after=1.0):
        peer = connect().open()
        peer.say({"type": "onopen", "v": 1, "client_id": "alice", "session": resume})
        world.advance(after)
        assert peer.messages == []
        return peer.closed_with

    return turned_away


@pytest.fixture
def gone(world):
    """Have a person's connection break, and the server see it."""

    def gone(person):
        person.peer.transport.abortConnection()
        world.advance(0.1)

    return gone


def nothing_left(factory):
    """Of all that was there nothing is left."""
    sessions, presence = factory.heartbeat.sessions, factory.presence
    left = (sessions.channels, sessions._by_client, sessions._detached, sessions._alone)
    left += (sessions._full, sessions._owing, sessions._lagging, sessions.receipts._copies, sessions.receipts._awaited)
    return (
        not any(left)
        and sessions.kept_bytes == 0
        and len(sessions._accounts) == 0
        and presence.client_ids() == ()
        and not factory.heartbeat.edges
    )


# A store that is slow, or fails.


@pytest.mark.parametrize("slow", ["start", "open"])
def test_who_comes_while_the_store_is_slow_is_told_to_come_later_and_not_never(serve_on, turned_away, slow):
    """4401 is final: a disk that stalls, or a long start, must not send everybody away for good."""
    serve_on(Shaky(**{slow: lambda *arguments: Deferred()}))

    assert turned_away(after=6.0) == 1013


def test_who_could_not_be_judged_in_time_by_an_authenticator_is_not_let_in(serve_on, turned_away):
    class Asleep:
        def authenticate(self, credentials):
            return Deferred()

    serve_on(authenticator=Asleep())

    assert turned_away(after=6.0) == 4401


def test_a_session_that_could_not_be_begun_is_none(serve_on, turned_away, world):
    factory = serve_on(Shaky(open=broken))

    assert turned_away() == 1013
    world.advance(100)

    assert nothing_left(factory)


def test_a_session_that_could_not_be_taken_over_still_has_its_window(serve_on, person, gone, turned_away, world):
    store = Shaky()
    factory = serve_on(store, window=60.0)
    alice = person("alice")
    gone(alice)
    store.instead["take_over"] = broken
    assert turned_away(alice.resume()) == 1013
    assert factory.heartbeat.sessions.detached == 1

    del store.instead["take_over"]
    alice = person("alice", resume=alice.resume(attempt=2))
    assert alice.answer["resumed"] is True

    gone(alice)
    world.advance(130)
    assert nothing_left(factory)


def test_a_store_that_could_not_be_read_to_its_end_is_read_again(serve_on, person, gone, turned_away):
    store = Shaky()
    factory = serve_on(store)
    alice, bob = person("alice"), person("bob")
    gone(alice)
    gone(bob)
    factory.heartbeat.sessions.stop()
    replays = iter([(), broken()])
    store.instead["replay"] = lambda sid, after: next(replays)
    assert turned_away() == 1013
    assert factory.heartbeat.sessions.channels == {}

    del store.instead["replay"]

    assert person("alice", resume=alice.resume()).answer["resumed"] is True
    assert len(factory.heartbeat.sessions.channels) == 2


def test_a_server_that_stops_while_its_store_is_read_has_nothing_of_it(serve_on, person, gone):
    store, replayed, failed = Shaky(), Deferred(), []
    factory = serve_on(store)
    gone(person("alice"))
    sessions = factory.heartbeat.sessions
    sessions.stop()
    store.instead["replay"] = lambda sid, after: replayed
    sessions.start().addErrback(failed.append)

    sessions.stop()
    replayed.callback(())

    assert failed[0].check(StoreError)
    assert (sessions.channels, sessions.epoch) == ({}, "")


def test_a_session_whose_messages_the_store_does_not_take_as_handled_is_over(serve_on, person, turned_away, world):
    """It is somebody else's by now; to go on in silence would be to handle nothing for ever."""
    store = Shaky()
    factory = serve_on(store, level0="refuse")
    factory.register("note", lambda protocol, message: None)
    alice = person("alice")
    store.instead["handle"] = broken

    alice.say(type="note")
    world.advance(2)

    assert alice.peer.closed_with == 1013
    assert factory.heartbeat.sessions.channels == {}
    assert person("alice", resume=alice.resume()).answer["reason"] == "unknown"


def test_what_was_to_follow_from_a_message_that_was_not_committed_takes_no_room(serve_on, person, world):
    store = Shaky()
    factory = serve_on(store)
    Chat(factory)
    alice, bob = person("alice"), person("bob")
    (channel,) = factory.heartbeat.sessions.of("bob")
    before = factory.heartbeat.sessions._accounts.on("id bob")
    store.instead["handle"] = broken

    alice.chat("m1", "bob")

    assert (channel.session.count, factory.heartbeat.sessions._accounts.on("id bob")) == (0, before)
    assert bob.heard == []


def test_a_message_to_a_session_that_the_store_does_not_know_fails(serve_on, person, world):
    store, failed = Shaky(), []
    factory = serve_on(store)
    person("alice")
    (channel,) = factory.heartbeat.sessions.of("alice")
    store.instead["append"] = lambda effects: (None,) * len(effects)

    channel.send({"type": "note"}).addErrback(failed.append)

    assert failed[0].value.reason == "unknown"
    assert channel.session.count == 0


def test_a_connection_that_is_closed_while_it_is_judged_gets_no_session_and_ends_in_time(serve_on, connect, world):
    asked = Deferred()

    class Slow:
        def authenticate(self, credentials):
            return asked

    factory = serve_on(authenticator=Slow())
    page = connect().open()
    page.say({"type": "onopen", "v": 1})
    stopped = factory.heartbeat.drain()
    world.advance(0.5)

    asked.callback("alice")
    world.advance(1)

    assert stopped.called
    assert (page.closed_with, page.messages) == (1012, [])
    assert nothing_left(factory)


# Bounds.


def test_answers_to_messages_without_a_number_are_kept_within_the_bound_too(serve_on, person, world):
    """Nobody fills our memory by asking for what he never confirms; when he confirms, he is answered again."""
    factory = serve_on(kept_limit=10)
    Chat(factory)
    mallory = person("mallory")

    for _ in range(20):
        mallory.peer.say(*({"type": "onchat", "id": n, "to": "nobody", "text": ""} for n in range(20)))

    (channel,) = factory.heartbeat.sessions.of("mallory")
    assert len(channel.session.kept) == 10
    full = {"type": "error", "code": "full", "detail": "confirm what was sent before", "re": 19}
    assert mallory.peer.messages[-1] == full
    mallory.ack()
    mallory.peer.say({"type": "onchat", "id": "m", "to": "nobody", "text": ""})
    assert mallory.statuses("m") == ["unknown"]


def test_messages_that_wait_for_a_handler_wait_as_they_came(serve_on, person, world):
    """Decoded, a message of 60 KB may take more than a megabyte; and thousands may wait."""
    handled, finish = [], []

    def slow(protocol, message):
        handled.append(message)
        finish.append(Deferred())
        return finish[-1]

    factory = serve_on()
    factory.register("note", slow)
    alice = person("alice")

    for n in range(3):
        alice.say(type="note", n=n, empty=[[]] * 100)

    (channel,) = factory.heartbeat.sessions.of("alice")
    assert [type(one.message) for one in channel.session._queue] == [bytes, bytes]
    for n in range(3):
        finish[n].callback(None)
    assert handled == [{"type": "note", "n": n, "empty": [[]] * 100} for n in range(3)]


def test_groups_are_booked_on_the_accounts_of_who_joins_them(serve_on, person):
    """A hundred groups with long names cost a session 170 KB of memory."""
    factory = serve_on(sessions_bytes=2_000_000)
    GroupChat(factory)
    accounts = factory.heartbeat.sessions._accounts
    alice = person("alice")
    before = accounts.on("id alice")

    for n in range(100):
        alice.group("join", group=f"g{n}")
        alice.ack()

    joined = sum(one.get("action") == "join" for one in alice.heard)
    assert 40 < joined < 60
    assert {one["code"] for one in alice.heard if one["type"] == "error"} == {"full"}
    # The last one had room for its place, and none for being told so.
    for n in range(joined + 1):
        alice.group("leave", group=f"g{n}")
        alice.ack()
    assert accounts.on("id alice") == before
    alice.group("join")
    alice.peer.leave()
    assert nothing_left(factory)


def test_groups_that_were_stored_are_booked_too(serve_on, person, world):
    factory = serve_on()
    GroupChat(factory)
    sessions = factory.heartbeat.sessions
    alice = person("alice")
    alice.group("join")
    alice.ack()
    before = sessions._accounts.on("id alice")
    alice.peer.transport.abortConnection()
    world.advance(0.1)

    sessions.stop()
    sessions.start()

    assert sessions._accounts.on("id alice") == before
    world.advance(130)
    assert nothing_left(factory)


def test_a_group_goes_on_when_one_of_its_members_is_ended_to_make_room_for_what_is_said(serve_on, person, gone, world):
    factory = serve_on(sessions_bytes=2_000_000)
    GroupChat(factory)
    alice, bob, away = person("alice"), person("bob"), person("bob")
    for one in (alice, bob, away):
        one.group("join")
    gone(away)
    sessions = factory.heartbeat.sessions
    here, there = sessions.of("bob")
    while sessions._accounts.on("id bob") < 2_000_000 // 16 - 8000:
        there.send({"type": "note", "text": "x" * 6000})

    alice.group("say", text="y" * 8000)

    assert (here.ended, there.ended) == ("", "full")
    assert [one["text"][0] for one in bob.heard if one["action"] == "say"] == ["y"]


def test_who_looks_for_room_while_a_session_ends_for_room_is_not_sent_round_and_round(serve_on, person, gone, world):
    """What follows from its end may be kept for somebody; there is no room, and the one that goes is going already."""
    factory = serve_on(sessions_bytes=2_000_000)
    Chat(factory)
    sessions, failed = factory.heartbeat.sessions, []
    alice, bob = person("alice"), person("bob")
    gone(bob)
    alice.chat("m1", "bob")
    (bobs,), (alices,) = sessions.of("bob"), sessions.of("alice")
    told = sessions.settle

    def settle(receipt, confirmed):
        alices.send({"type": "note"}).addErrback(failed.append)
        return told(receipt, confirmed)

    sessions.settle = settle
    sessions._accounts.book((), 2_000_000)

    alices.send({"type": "note"}).addErrback(failed.append)

    assert bobs.ended == "full"
    assert len(failed) == 2
    sessions._accounts.book((), -2_000_000)


def test_a_reply_that_its_client_would_not_take_is_the_handlers_mistake(serve_on, person, failures):
    """It would close the connection, and do so again each time it is replayed."""
    factory = serve_on()
    factory.register("note", lambda protocol, message: protocol.handling.reply({"type": "note", "text": "x" * 70_000}))
    alice = person("alice")

    alice.say(type="note", id=1)

    assert [one["code"] for one in alice.heard] == ["failed"]
    assert len(failures.flush(ValueError)) == 1


def test_when_all_windows_end_at_once_they_end_a_thousand_a_tick(serve_on, person, gone, world, monkeypatch):
    """After a restart of the server they do; whoever is there is not to wait for it."""
    monkeypatch.setattr(register, "_ENDS", 2)
    factory = serve_on(window=60.0)
    people = [person(name) for name in ("a", "b", "c", "d", "e")]
    world.drop()
    world.advance(0.1)
    left = []
    factory.heartbeat.sessions.ended.append(lambda channel, error: left.append(factory.heartbeat.sessions.detached))

    world.advance(130)

    assert len(people) == len(left)
    assert nothing_left(factory)


# What nobody is to read in a log.


def test_neither_tokens_nor_names_of_sessions_are_told_by_what_may_be_logged(serve_on, person, gone, world, log):
    """Whoever knows the name of a session can resume it."""
    factory = serve_on()
    alice = person("alice")
    gone(alice)
    resume = alice.resume()
    sid, message = alice.answer["sid"], {"type": "onopen", "v": 1, "token": "secret", "session": resume}
    head = Head(sid, "e", "alice", 1.0)
    with pytest.raises(StoreError) as twice:
        factory.heartbeat.sessions.store.open(head)
    with pytest.raises(StoreError) as old:
        factory.heartbeat.sessions.store.detach(sid, 5, 0.0)
    person("alice", resume=resume)

    told = [repr(opening(message)), repr(Settings(token="secret")), repr(head), str(twice.value), str(old.value)]
    told += [str(event) + str(formatEvent(event)) for event in log]

    assert [one for one in told if sid in one or "secret" in one] == []


# What goes wrong in a hook.


def test_an_end_that_goes_wrong_keeps_neither_the_tick_nor_the_next_end_from_coming(
    serve_on, person, gone, world, failures
):
    factory = serve_on(window=60.0)
    mistakes = [ZeroDivisionError()]

    def mistake(channel, error):
        if mistakes:
            raise mistakes.pop()

    factory.heartbeat.sessions.ended.append(mistake)
    gone(person("alice"))
    gone(person("bob"))

    world.advance(130)

    assert len(failures.flush(ZeroDivisionError)) == 1
    assert nothing_left(factory)


def test_a_connection_whose_session_goes_wrong_at_its_end_is_counted_off_all_the_same(
    serve_on, person, gone, world, failures
):
    def mistake(edge):
        raise ZeroDivisionError

    factory = serve_on()
    factory.heartbeat.gone.append(mistake)
    alice = person("alice")

    alice.peer.leave()
    world.advance(1)

    assert len(failures.flush(ZeroDivisionError)) == 1
    assert nothing_left(factory)
