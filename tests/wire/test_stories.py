"""Stories of sessions, one a test: how a client comes back, what becomes of copies and thieves, how a session ends."""

import copy
from functools import partial

import pytest
from twisted.internet.defer import Deferred

from heartbeat import HeartbeatClient, HeartbeatServerFactory, Settings
from heartbeat.auth import Unauthorized
from heartbeat.core.presence import Standing
from heartbeat.store import MemoryStore

#: A client that never gives up, and finds out soon.
STUBBORN = {"attempts": 1000, "delays": (0.3,)}


class Server(HeartbeatServerFactory):
    """Keeps what it was told: who joined and left, what was lost, and the notes that it took."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.announced, self.lost, self.notes = [], [], []
        self.register("note", lambda protocol, message: self.notes.append(message["n"]))

    def clientJoined(self, client_id):
        self.announced.append(("joined", client_id))

    def clientLeft(self, client_id):
        self.announced.append(("left", client_id))

    def sessionLost(self, client_id, error):
        self.lost.append((client_id, error.reason, numbers(error)))


class Tab(HeartbeatClient):
    """Keeps what it was told."""

    def __init__(self, *arguments, **keywords):
        self.events, self.notes, self.lost, self.failed = [], [], [], []
        super().__init__(*arguments, **keywords)

    def linkChanged(self, status):
        self.events.append(status.event)

    def messageReceived(self, message):
        self.notes.append(message["n"])

    def sessionLost(self, error):
        self.lost.append((error.reason, numbers(error)))

    def note(self, *ns):
        """Send notes; those that are confirmed, and those that fail, are told apart by whoever looks."""
        for n in ns:
            self.send({"type": "note", "n": n}).addErrback(
                lambda failure, n=n: self.failed.append((n, failure.value.reason))
            )

    @property
    def sid(self):
        """Its session's name."""
        return self._session.channel.session.sid


def numbers(error):
    return [message["n"] for message in error.messages]


@pytest.fixture
def server(world):
    """Have the server machine listen, with a store or an authenticator."""

    def server(store=None, authenticator=None, **settings):
        factory = Server(Settings(**settings), store=store, authenticator=authenticator, reactor=world.server)
        world.listen(factory)
        return factory

    return server


@pytest.fixture
def tab(make_client, world):
    """A client of the name alice, started, that had the time to open."""

    def tab(store=None, **settings):
        client = make_client(cls=partial(Tab, session=store), **{"client_id": "alice"} | STUBBORN | settings)
        client.startService()
        world.advance(0.2)
        return client

    return tab


@pytest.fixture
def unnoticed(world):
    """Have the client see its socket break, and the server not."""

    def unnoticed():
        world.cut()
        world.connections[-1][1].abortConnection()
        world.heal()

    return unnoticed


@pytest.fixture
def enter(connect):
    """A peer of bytes that has opened at level 1."""

    def enter(**members):
        peer = connect().open()
        peer.say({"type": "onopen", "v": 1} | members)
        return peer

    return enter


def again(answer, attempt, last=0, sent=0):
    """What a client says that comes back to the session of this answer."""
    return {"sid": answer["sid"], "epoch": answer["epoch"], "last": last, "sent": sent, "try": attempt}


def tell(factory, *ns):
    """The server sends notes to alice, in her latest session."""
    for n in ns:
        factory.heartbeat.sessions.of("alice")[-1].send({"type": "note", "n": n})


# Coming back.


def test_a_session_in_which_nothing_was_ever_sent_is_resumed(server, tab, world):
    factory, client = server(), tab()
    sid = client.sid
    world.drop()
    world.advance(2)

    assert client.events == ["open", "closed", "reconnecting", "open"]
    assert client.sid == sid
    client.note(1)
    tell(factory, 2)
    world.advance(1)
    assert (factory.notes, client.notes) == ([1], [2])
    assert (client.lost, factory.lost) == ([], [])


def test_a_session_is_resumed_after_ten_idle_minutes_where_the_window_is_longer(server, tab, world):
    factory, client = server(window=1200.0), tab(open_timeout=2.0)
    sid = client.sid
    world.cut()
    client.note(1)
    tell(factory, 2)
    world.advance(600)
    assert client.sid == sid
    assert factory.heartbeat.sessions.detached == 1

    world.heal()
    world.advance(5)
    assert client.sid == sid
    assert (factory.notes, client.notes) == ([1], [2])
    assert (client.lost, factory.lost) == ([], [])


def test_a_session_is_resumed_ten_times_in_a_row(server, tab, world):
    factory, client = server(), tab()
    sid = client.sid
    for n in range(10):
        client.note(n)
        tell(factory, 100 + n)
        world.advance(0.01 * n / 5)
        world.drop()
        world.advance(1)

    assert client.sid == sid
    assert client.events.count("open") == 11
    assert factory.notes == list(range(10))
    assert client.notes == list(range(100, 110))
    (channel,) = factory.heartbeat.sessions.channels.values()
    assert channel.session.attempt == 10


def test_who_comes_back_before_the_loss_is_noticed_takes_over_and_nobody_sees_a_leave(server, tab, unnoticed, world):
    factory, client = server(), tab()
    old = world.connections[-1][0].protocol
    client.note(1)
    tell(factory, 2)
    world.advance(0.005)
    unnoticed()
    world.advance(1)

    assert client.events == ["open", "closed", "reconnecting", "open"]
    assert (factory.notes, client.notes) == ([1], [2])
    assert old.localCloseCode == 4001
    assert factory.announced == [("joined", "alice")]
    assert factory.presence.standing_of("alice") is Standing.ACTIVE


# More than one.


def test_two_tabs_of_one_client_id_have_a_session_each(server, tab, world):
    factory, one, two = server(), tab(), tab()
    assert one.sid != two.sid
    one.note(1)
    two.note(2)
    for channel in factory.heartbeat.sessions.of("alice"):
        channel.send({"type": "note", "n": 3})
    world.connections[0][1].abortConnection()
    world.advance(2)

    assert sorted(factory.notes) == [1, 2]
    assert one.notes == two.notes == [3]
    assert (one.events.count("open"), two.events.count("open")) == (2, 1)
    assert factory.announced == [("joined", "alice")]
    assert factory.presence.active == 1


def test_a_duplicated_tab_takes_the_session_and_the_first_opens_another_without_a_fight(server, tab, world):
    factory, store = server(), MemoryStore()
    first = tab(store)
    sid = first.sid
    world.cut()
    first.note(1)
    world.advance(0.1)
    world.heal()
    second = tab(copy.deepcopy(store))
    world.advance(0.5)
    opened = len(world.connections)
    world.advance(120)

    assert second.sid == sid
    assert first.sid not in ("", sid)
    assert (first.lost, first.failed) == ([("superseded", [1])], [(1, "superseded")])
    assert second.lost == []
    # It had been copied with the session, and so it is handled once, though both had it.
    assert factory.notes == [1]
    assert len(world.connections) <= opened + 3
    assert first.events[-1] == second.events[-1] == "open"
    assert factory.announced == [("joined", "alice")]


def test_a_stale_resume_that_comes_after_a_newer_one_is_closed_4001_and_the_newest_is_unharmed(server, enter):
    factory = server()
    answer = enter().messages[0]
    newest = enter(session=again(answer, 2))
    assert newest.messages[0]["resumed"] is True

    for attempt in (0, 1, 2):
        late = enter(session=again(answer, attempt))
        assert (late.closed_with, late.messages) == (4001, [])

    newest.say({"type": "note", "n": 1, "seq": 1}, {"type": "ping", "id": 1})
    assert factory.notes == [1]
    assert newest.messages[-1].items() >= {"type": "ping", "id": 1, "ack": 1}.items()
    assert newest.closed_with is None


def test_a_stale_resume_is_closed_even_where_its_numbers_do_not_fit_any_more(server, enter):
    server()
    answer = enter().messages[0]
    enter(session=again(answer, 2))

    assert enter(session=again(answer, 1, last=99)).closed_with == 4001


# Thieves.


class Tokens:
    """Alice and mallory have a token each."""

    def authenticate(self, credentials):
        if credentials.token not in ("alice", "mallory"):
            raise Unauthorized("who is this?")
        return credentials.token


@pytest.mark.parametrize(
    ("authenticator", "owner", "thief"),
    [
        (Tokens(), {"token": "alice"}, {"token": "mallory"}),
        (Tokens(), {"token": "alice"}, {"token": "mallory", "client_id": "alice"}),
        (None, {"client_id": "alice"}, {"client_id": "mallory"}),
    ],
)
def test_somebody_elses_session_is_refused_and_its_owner_unharmed(server, enter, authenticator, owner, thief):
    factory = server(authenticator=authenticator)
    alice = enter(**owner)
    answer = alice.messages[0]
    tell(factory, 1)

    mallory = enter(session=again(answer, 5), **thief)

    (refused,) = mallory.messages
    assert refused.items() >= {"client_id": "mallory", "resumed": False, "reason": "auth", "last": 0, "sent": 0}.items()
    assert refused["sid"] != answer["sid"]
    alice.say({"type": "note", "n": 7, "seq": 1, "ack": 1})
    assert factory.notes == [7]
    assert alice.closed_with is None
    back = enter(session=again(answer, 1, last=1, sent=1), **owner)
    assert back.messages[0]["resumed"] is True


# Sessions that cannot be resumed.


def test_a_file_older_than_what_it_had_acknowledged_is_a_gap_and_both_ends_say_so(server, tab, world):
    factory, store = server(window=30.0), MemoryStore()
    finish = Deferred()
    factory.register("note", lambda protocol, message: finish)
    client = tab(store)
    sid = client.sid
    client.note(1)
    world.advance(0.2)
    old = copy.deepcopy(store)
    tell(factory, 11, 12)
    world.advance(0.2)
    assert client.notes == [11, 12]
    world.crash(world.client)
    tell(factory, 13, 14)

    restored = tab(old)
    assert restored.sid != sid
    assert restored.lost == [("gap", [1])]
    assert restored.notes == []

    # A refusal leaves the session as it was: until its window ends, it may yet be asked for with the right numbers.
    assert factory.lost == []
    world.advance(31)
    assert factory.lost == [("alice", "expired", [13, 14])]
    finish.callback(None)


def test_a_file_older_than_what_it_had_sent_is_a_gap_and_what_it_holds_is_named(server, tab, world, log):
    factory, store = server(window=30.0), MemoryStore()
    finish = Deferred()
    factory.register("note", lambda protocol, message: finish)
    client = tab(store)
    client.note(1)
    world.advance(0.1)
    old = copy.deepcopy(store)
    client.note(2)
    world.advance(0.1)
    world.crash(world.client)

    restored = tab(old)
    assert restored.lost == [("gap", [1])]
    sentences = [event["log_format"].format(**event) for event in log if "has ended" in event.get("log_format", "")]
    assert sentences == ["a session of alice has ended: 1 message(s) were never confirmed: gap"]
    finish.callback(None)
    world.advance(31)


def test_an_old_file_is_a_gap_even_where_more_was_sent_in_it_than_the_server_had_received(server, tab, world):
    """Its numbers would fit by then, and what has them in the other file would be taken for what has them in this."""
    factory, store = server(), MemoryStore()
    client = tab(store)
    old = copy.deepcopy(store)
    client.note(1, 2)
    world.advance(0.2)
    world.crash(world.client)
    world.cut()

    restored = tab(old)
    restored.note(3, 4, 5)
    world.heal()
    world.advance(15)

    assert restored.lost == [("gap", [3, 4, 5])]
    assert factory.notes == [1, 2]


def test_a_server_restarted_with_an_empty_store_ends_it_by_its_epoch(server, tab, world):
    factory, client = server(), tab()
    sid = client.sid
    world.cut()
    client.note(1, 2)
    world.advance(0.1)
    world.crash()
    world.heal()
    factory = server()
    client.note(3)
    world.advance(20)

    assert client.sid != sid
    assert client.lost == [("epoch", [1, 2, 3])]
    assert client.failed == [(n, "epoch") for n in (1, 2, 3)]
    assert (factory.notes, client.notes) == ([], [])
    client.note(4)
    world.advance(1)
    assert factory.notes == [4]


def test_when_the_window_has_expired_each_end_names_its_own(server, tab, world):
    factory, client = server(), tab(open_timeout=2.0)
    sid = client.sid
    world.cut()
    client.note(1, 2)
    tell(factory, 11, 12)
    world.advance(150)

    # Neither has heard of the other: each by itself.
    assert client.lost == [("expired", [1, 2])]
    assert factory.lost == [("alice", "expired", [11, 12])]
    assert client.failed == [(1, "expired"), (2, "expired")]
    world.heal()
    world.advance(5)
    assert client.sid not in ("", sid)
    assert (factory.notes, client.notes) == ([], [])
    assert factory.announced[:2] == [("joined", "alice"), ("left", "alice")]


def test_a_session_whose_window_ended_on_the_server_alone_is_expired(server, enter, world):
    factory = server(window=10.0)
    page = enter()
    page.say({"type": "ping"})
    answer = page.messages[0]
    page.transport.abortConnection()
    world.advance(11)

    refused = enter(session=again(answer, 1)).messages[0]

    assert (refused["resumed"], refused["reason"]) == (False, "expired")
    assert factory.lost == []


def test_a_second_gap_without_progress_ends_the_session(server, enter):
    factory = server()
    page = enter(client_id="alice")
    answer = page.messages[0]
    tell(factory, 1)
    page.say({"type": "note", "n": 2, "seq": 2})
    assert page.closed_with == 4010
    assert factory.lost == []

    again_page = enter(session=again(answer, 1))
    assert again_page.messages[0]["resumed"] is True
    again_page.say({"type": "note", "n": 2, "seq": 2})
    assert again_page.closed_with == 4010
    assert factory.lost == [("alice", "gap", [1])]
    refused = enter(session=again(answer, 2)).messages[0]
    assert (refused["resumed"], refused["reason"]) == (False, "gap")


def test_a_second_gap_after_progress_does_not(server, enter):
    factory = server()
    answer = enter(client_id="alice").messages[0]
    for attempt in range(1, 6):
        page = enter(session=again(answer, attempt, sent=attempt))
        assert page.messages[0]["resumed"] is True
        page.say({"type": "note", "n": attempt, "seq": attempt}, {"type": "note", "n": 99, "seq": attempt + 2})
        assert page.closed_with == 4010

    assert factory.notes == [1, 2, 3, 4, 5]
    assert factory.lost == []


def test_a_server_that_leaves_gaps_ends_a_clients_session_the_second_time_too(server, tab, world):
    factory, client = server(), tab()
    sid = client.sid
    client.note(1)
    world.advance(0.2)
    for _ in range(2):
        (channel,) = factory.heartbeat.sessions.of("alice")
        channel.connection.write(b'{"type":"note","n":5,"seq":5}')
        world.advance(2)

    assert client.sid not in ("", sid)
    assert client.events.count("open") == 3
    assert client.lost == []
