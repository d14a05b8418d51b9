"""Who is let in, as whom, to which session, and how much is kept for him: a server's judgement of openings."""

import asyncio

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from heartbeat import HeartbeatServerProtocol, SessionFull
from heartbeat.auth import Credentials, Unauthorized
from heartbeat.core.presence import Standing
from heartbeat.store import MemoryStore


class Tokens:
    """Lets in who shows a known token; keeps what it was shown."""

    def __init__(self, known=None, answer=succeed):
        self.known = known or {"secret": "alice", "other": "bob"}
        self.answer = answer
        self.seen = []

    def authenticate(self, credentials):
        self.seen.append(credentials)
        if credentials.token not in self.known:
            raise Unauthorized("this token is not known here")
        return self.answer(self.known[credentials.token])


@pytest.fixture
def serve_with(serve):
    """A server with an authenticator."""

    def serve_with(authenticator, **settings):
        factory = serve(**settings)
        factory.heartbeat.admission.authenticator = authenticator
        return factory

    return serve_with


@pytest.fixture
def enter(connect):
    """Connect, and open at level 1."""

    def enter(path="/ws", headers=None, **members):
        peer = connect().open(path, **(headers or {}))
        peer.say({"type": "onopen", "v": 1} | members)
        return peer

    return enter


def session_of(peer, attempt=1, last=0, sent=0):
    """What to say to come back to the session of this peer."""
    answer = peer.messages[0]
    return {"sid": answer["sid"], "epoch": answer["epoch"], "last": last, "sent": sent, "try": attempt}


def gone(peer, world):
    peer.transport.abortConnection()
    world.advance(0.1)


# Who it is.


def test_the_token_of_the_opening_says_who_it_is_whatever_it_claims(serve_with, enter):
    tokens = Tokens()
    factory = serve_with(tokens)

    page = enter(token="secret", client_id="mallory")

    assert page.messages[0]["client_id"] == "alice"
    assert factory.presence.client_ids() == ("alice",)
    (seen,) = tokens.seen
    assert (seen.token, seen.claimed, seen.peer.host) == ("secret", "mallory", "127.0.0.1")


@pytest.mark.parametrize(
    ("path", "headers", "token"),
    [
        ("/ws?token=secret", {}, None),
        ("/ws?token=secret&token=other", {}, None),
        ("/ws", {"cookie": "a=b; token=secret"}, None),
        ("/ws?token=other", {"cookie": "token=other"}, "secret"),
        ("/ws?token=secret", {"cookie": "token=other"}, None),
    ],
)
def test_a_token_is_found_in_the_opening_else_in_the_query_else_in_a_cookie(serve_with, enter, path, headers, token):
    serve_with(Tokens())

    page = enter(path, headers, **({} if token is None else {"token": token}))

    assert page.messages[0]["client_id"] == "alice"


def test_cookies_that_are_none_are_no_token(serve_with, enter):
    tokens = Tokens()
    serve_with(tokens)

    assert enter(headers={"cookie": "token=sec(ret; ]=["}).closed_with == 4401
    assert tokens.seen[0].token != "secret"


@pytest.mark.parametrize("how", ["raises", "fails", "coroutine"])
def test_a_refusal_is_4401_with_its_sentence_and_leaves_nothing_behind(serve_with, enter, how):
    def refuse(credentials):
        if how == "raises":
            raise Unauthorized("come back with a ticket")
        if how == "fails":
            return fail(Unauthorized("come back with a ticket"))

        async def think():
            raise Unauthorized("come back with a ticket")

        return think()

    tokens = Tokens()
    tokens.authenticate = refuse
    factory = serve_with(tokens)

    page = enter(token="wrong")

    assert (page.closed_with, page.close_reason) == (4401, "come back with a ticket")
    assert page.messages == []
    assert factory.heartbeat.sessions.channels == {}


@pytest.mark.parametrize("wrong", [None, "", 7, "a b", "x" * 65])
def test_an_authenticator_that_answers_no_client_id_lets_nobody_in_and_is_a_bug(serve_with, enter, failures, wrong):
    serve_with(Tokens(answer=lambda name: wrong))

    assert enter(token="secret").closed_with == 4401
    assert len(failures.flush(TypeError)) == 1


def test_an_authenticator_that_breaks_lets_nobody_in_and_is_a_bug(serve_with, enter, failures):
    def breaks(name):
        raise ZeroDivisionError

    serve_with(Tokens(answer=breaks))

    page = enter(token="secret")

    assert (page.closed_with, page.close_reason) == (4401, "who you are could not be judged")
    assert len(failures.flush(ZeroDivisionError)) == 1


def test_an_authenticator_of_asyncio_that_is_cancelled_has_failed(serve_with, enter, failures):
    """Its CancelledError is no Exception."""
    serve_with(Tokens(answer=lambda name: fail(asyncio.CancelledError())))

    page = enter(token="secret")

    assert (page.closed_with, page.close_reason) == (4401, "who you are could not be judged")
    assert len(failures.flush(asyncio.CancelledError)) == 1


def test_while_it_is_judged_everything_waits_behind_the_answer(serve_with, enter, world):
    decided = Deferred()
    factory = serve_with(Tokens(answer=lambda name: decided))
    page = enter(token="secret")
    page.say({"type": "ping", "id": 1})
    page.say({"type": "ping", "id": 2}, b"nonsense")
    assert page.messages == []

    decided.callback("alice")
    world.advance(0.1)

    assert [one["type"] for one in page.messages] == ["onopen", "ping", "ping", "error"]
    assert [one.get("id") for one in page.messages] == [None, 1, 2, None]
    assert factory.presence.client_ids() == ("alice",)


def test_a_judgement_that_takes_longer_than_five_seconds_is_4401(serve_with, enter, world):
    decided = Deferred()
    factory = serve_with(Tokens(answer=lambda name: decided))
    page = enter(token="secret")
    world.advance(4.5)
    assert page.closed_with is None
    world.advance(1)
    assert page.closed_with == 4401

    decided.callback("alice")
    world.advance(1)
    assert page.messages == []
    assert factory.heartbeat.sessions.channels == {}


def test_who_has_left_before_it_was_judged_gets_nothing(serve_with, enter, world):
    decided = Deferred()
    factory = serve_with(Tokens(answer=lambda name: decided))
    page = enter(token="secret")
    gone(page, world)

    decided.callback("alice")

    assert factory.heartbeat.sessions.channels == {}
    assert factory.presence.client_ids() == ()


# Of a connection that is gone: its edge and its protocol hold each other, and are parted, or the collector has to.


def edge_of(world, number=0):
    return world.connections[number][0].protocol._heartbeat


def holds_its_protocol(edge):
    return isinstance(edge.protocol, HeartbeatServerProtocol)


def test_who_never_opened_is_let_go(serve, connect, world):
    serve()
    peer = connect()
    peer.write(b"GET /ws HTTP/1.1\r\n")
    edge = edge_of(world)
    assert holds_its_protocol(edge)

    world.advance(30)

    assert peer.ended is not None
    assert not holds_its_protocol(edge)


@pytest.mark.parametrize("outcome", ["admitted", "refused", "failed"])
def test_who_has_left_is_let_go_though_it_is_still_judged(serve_with, enter, world, failures, outcome):
    """Also where more had come meanwhile, which nobody answers; what is decided at last changes nothing."""
    decided = Deferred()
    factory = serve_with(Tokens(answer=lambda name: decided))
    page = enter(token="secret")
    page.say({"type": "ping"})
    edge = edge_of(world)
    assert holds_its_protocol(edge)

    gone(page, world)

    assert not holds_its_protocol(edge)
    if outcome == "admitted":
        decided.callback("alice")
    else:
        decided.errback(Unauthorized("no") if outcome == "refused" else ZeroDivisionError())
    world.advance(1)
    assert factory.heartbeat.sessions.channels == {}
    assert page.messages == []
    assert len(failures.flush(ZeroDivisionError)) == (outcome == "failed")


def test_who_is_never_judged_is_let_go_when_that_was_too_long(serve_with, enter, world):
    """Whoever was to decide has it for ever, with what was asked."""
    asked = []
    serve_with(Tokens(answer=lambda name: asked.append(Deferred()) or asked[0]))
    page = enter(token="secret")
    edge = edge_of(world)

    world.advance(8)

    assert (page.closed_with, asked[0].called) == (4401, False)
    assert not holds_its_protocol(edge)


def test_whose_message_is_being_handled_is_let_go_when_that_is_done(serve, enter, world):
    handled = []
    serve().register("note", lambda protocol, message: handled.append(Deferred()) or handled[-1])
    page = enter(client_id="alice")
    page.say({"type": "note", "seq": 1}, {"type": "note", "seq": 2})
    edge = edge_of(world)
    gone(page, world)
    assert holds_its_protocol(edge)
    handled[0].callback(None)
    world.advance(0.1)
    assert holds_its_protocol(edge), "the other one is handed to it"

    handled[1].callback(None)
    world.advance(0.1)

    assert not holds_its_protocol(edge)


@pytest.mark.parametrize("ends", ["resumed", "expired"])
def test_whose_handler_takes_long_is_let_go_with_its_session(serve, enter, world, ends):
    """Another connection hands the session its messages from then on, or nobody does."""
    serve(window=5.0).register("note", lambda protocol, message: Deferred())
    page = enter(client_id="alice")
    page.say({"type": "note", "seq": 1}, {"type": "note", "seq": 2})
    edge = edge_of(world)
    gone(page, world)
    assert holds_its_protocol(edge)

    if ends == "resumed":
        enter(session=session_of(page, sent=2))
        assert holds_its_protocol(edge_of(world, 1))
    else:
        world.advance(10)

    assert not holds_its_protocol(edge)


def test_whose_session_ends_while_it_is_carried_is_no_circle_with_it(serve, enter, world):
    """Its edge knows the end of the session, which knows it no more."""
    factory = serve()
    page = enter(client_id="alice")
    edge = edge_of(world)
    (channel,) = factory.heartbeat.sessions.channels.values()
    assert channel.connection is edge

    channel.end("gap")
    gone(page, world)

    assert edge.channel is channel
    assert channel.connection is None


def test_credentials_do_not_show_their_token():
    credentials = Credentials("secret", "alice", {}, {}, {}, "", None)

    assert repr(credentials) == "Credentials(token=…, claimed='alice', peer=None)"


# Without an authenticator.


@pytest.mark.parametrize(
    ("claimed", "settings", "headers", "honoured"),
    [
        ("alice", {}, {}, True),
        ("alice", {}, {"x_forwarded_for": "1.2.3.4"}, False),
        ("alice", {"trust_client_ids": True}, {"x_forwarded_for": "1.2.3.4"}, True),
        ("c-alice", {"trust_client_ids": True}, {}, False),
    ],
)
def test_a_claim_is_honoured_from_this_machine_or_where_it_was_said_so(
    serve, enter, claimed, settings, headers, honoured
):
    serve(**settings)

    name = enter(headers=headers, client_id=claimed).messages[0]["client_id"]

    assert (name == claimed) is honoured
    assert name.startswith("c-") is not honoured or claimed.startswith("c-")


# Pages that open no session.


def test_without_an_authenticator_pages_without_a_session_are_served(serve, connect):
    serve()
    page = connect().open()
    page.say({"type": "ping"})

    assert page.messages == [{"type": "ping", "status": "pong", "clients": 1}]


@pytest.mark.parametrize("first", [{"type": "ping"}, {"type": "onopen"}, {"type": "chat"}, b"nonsense"])
@pytest.mark.parametrize("why", ["as the setting says", "because there is an authenticator"])
def test_where_they_are_refused_the_first_thing_that_they_say_closes_4401(serve, serve_with, connect, first, why):
    if why == "as the setting says":
        serve(level0="refuse")
    else:
        serve_with(Tokens())
    page = connect().open("/ws?token=secret")

    page.say(first)

    assert page.closed_with == 4401
    assert page.close_reason == "clients without a session are not served here (setting level0)"
    assert page.messages == []


def test_a_session_is_opened_all_the_same_where_pages_without_one_are_refused(serve, enter):
    serve(level0="refuse")

    page = enter()
    page.say({"type": "ping"})

    assert [one["type"] for one in page.messages] == ["onopen", "ping"]


def test_where_they_are_allowed_a_page_is_whom_its_token_says_and_nobody_without_one(serve_with, connect):
    factory = serve_with(Tokens(), level0="allow")
    known, nobody, wrong = (connect().open(path) for path in ("/ws?token=secret", "/ws", "/ws?token=wrong"))
    for page in (known, nobody, wrong):
        page.say({"type": "onopen"}, {"type": "ping"})

    assert [one["type"] for one in known.messages] == ["onopen", "ping"]
    assert known.messages[0]["client_id"] == "alice"
    assert nobody.messages[0]["client_id"].startswith("c-")
    assert (wrong.closed_with, wrong.close_reason) == (4401, "this token is not known here")
    assert factory.presence.standing_of("alice") is Standing.ACTIVE


# Coming back.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"epoch": "another"}, "epoch"),
        ({"epoch": "another", "sid": "unknown"}, "epoch"),
        ({"sid": "unknown"}, "unknown"),
        ({"last": 1}, "gap"),
        ({"sent": 0}, "gap"),
    ],
)
def test_what_cannot_be_resumed_is_a_new_session_with_the_reason(serve, enter, world, change, reason):
    factory = serve()
    factory.register("note", lambda protocol, message: None)
    page = enter()
    page.say({"type": "note", "seq": 1})
    gone(page, world)

    back = enter(session=session_of(page, sent=1) | change)

    answer = back.messages[0]
    assert (answer["resumed"], answer["reason"], answer["last"], answer["sent"]) == (False, reason, 0, 0)
    assert answer["sid"] != page.messages[0]["sid"]
    # It is as it was.
    again = enter(session=session_of(page, sent=1))
    assert (again.messages[0]["resumed"], again.messages[0]["last"]) == (True, 1)
    assert "reason" not in again.messages[0]


def test_a_session_is_resumed_by_its_name_alone_or_with_its_own_id(serve, enter, world):
    serve()
    page = enter()
    page.say({"type": "ping"})
    name = page.messages[0]["client_id"]
    for attempt, members in enumerate([{}, {"client_id": name}, {}], 1):
        gone(page, world)
        back = enter(session=session_of(page, attempt), **members)
        assert (back.messages[0]["resumed"], back.messages[0]["client_id"]) == (True, name)
        gone(back, world)


@pytest.mark.parametrize("kind", ["by a claim", "by a token"])
def test_somebody_elses_session_is_refused_and_unharmed(serve, serve_with, enter, kind):
    if kind == "by a claim":
        serve()
        owner, thief = {"client_id": "alice"}, {"client_id": "bob"}
    else:
        serve_with(Tokens())
        owner, thief = {"token": "secret"}, {"token": "other", "client_id": "alice"}
    page = enter(**owner)

    stolen = enter(session=session_of(page), **thief)

    answer = stolen.messages[0]
    assert (answer["resumed"], answer["reason"], answer["client_id"]) == (False, "auth", "bob")
    page.say({"type": "ping"})
    assert page.messages[-1]["status"] == "pong"
    assert page.closed_with is None


@pytest.mark.parametrize("attempt", [0, 1])
def test_a_stale_attempt_is_never_answered_but_closed_4001_before_anything_is_missed(serve, enter, attempt):
    serve()
    page = enter()
    page.say({"type": "ping"})
    newer = enter(session=session_of(page, 1))

    stale = enter(session=session_of(page, attempt, last=7))

    assert (stale.messages, stale.closed_with) == ([], 4001)
    newer.say({"type": "ping"})
    assert newer.messages[-1]["status"] == "pong"


def test_what_is_malformed_in_a_resume_is_an_error_and_may_be_said_again(serve, enter):
    serve()
    page = enter(session={"sid": "x"})
    page.say({"type": "onopen", "v": 1})

    assert [(one["type"], one.get("code")) for one in page.messages] == [("error", "bad-message"), ("onopen", None)]


def test_a_session_from_which_nothing_arrived_after_its_opening_ends_with_its_socket(serve, enter, world):
    factory = serve()
    page = enter()
    gone(page, world)
    assert factory.heartbeat.sessions.channels == {}

    assert enter(session=session_of(page)).messages[0]["reason"] == "unknown"


def test_a_session_that_is_left_with_1000_is_over(serve, enter):
    factory = serve()
    page = enter()
    page.say({"type": "ping"})
    page.leave(1000)

    assert factory.heartbeat.sessions.channels == {}
    assert factory.presence.client_ids() == ()


@pytest.mark.parametrize("code", [1001, 4000])
def test_any_other_end_of_its_socket_is_an_absence(serve, enter, world, code):
    factory = serve(window=60.0)
    page = enter()
    page.say({"type": "ping"})
    page.leave(code)
    world.advance(59)
    assert factory.heartbeat.sessions.detached == 1
    world.advance(2)
    assert factory.heartbeat.sessions.channels == {}

    assert enter(session=session_of(page)).messages[0]["reason"] == "expired"


# How much is kept.


class Keeping:
    """A factory's sessions, each with messages that nobody confirms."""

    def __init__(self, factory, enter, world):
        self.factory = factory
        self.enter = enter
        self.world = world

    def filled(self, name, size, count=1, *, leaves=True):
        peer = self.enter(client_id=name)
        peer.say({"type": "ping"})
        channel = self.factory.heartbeat.sessions.channels[peer.messages[0]["sid"]]
        for _ in range(count):
            channel.send({"type": "note", "text": "x" * size})
        if leaves:
            gone(peer, self.world)
        return channel


@pytest.fixture
def keeping(serve, enter, world):
    return Keeping(serve(sessions_bytes=1_700_000, message_limit=65_536), enter, world)


def test_one_identity_has_a_sixteenth_of_all_room_and_its_own_oldest_goes_first(keeping):
    first, second = (keeping.filled("alice", 40_000) for _ in range(2))
    other = keeping.filled("bob", 40_000)

    third = keeping.filled("alice", 40_000)

    assert (first.ended, second.ended, third.ended, other.ended) == ("full", "", "", "")


def test_where_nothing_of_its_own_is_left_alone_it_is_told_that_there_is_no_room(keeping):
    channel, failed = keeping.filled("alice", 40_000, 2, leaves=False), []

    channel.send({"type": "note", "text": "x" * 40_000}).addErrback(failed.append)

    assert failed[0].check(SessionFull)
    assert "a sixteenth of that (setting sessions_bytes)" in str(failed[0].value)
    assert channel.ended == ""


def test_over_the_room_of_all_who_was_left_alone_longest_goes(keeping):
    channels = [keeping.filled(f"u{n}", 47_000, 2) for n in range(18)]

    assert [channel.ended for channel in channels] == ["full"] + [""] * 17
    sessions = keeping.factory.heartbeat.sessions
    assert sessions.kept_bytes <= 1_700_000
    # What a session and a message cost besides is booked too.
    assert sessions.kept_bytes == sum(4096 + 2 * 512 + channel.session.weight for channel in channels[1:])


def test_what_waits_for_its_handler_is_on_the_account_too_and_is_read_no_further_than_there_is_room(keeping):
    keeping.factory.register("slow", lambda protocol, message: Deferred())
    page = keeping.enter(client_id="alice")
    sid, sessions = page.messages[0]["sid"], keeping.factory.heartbeat.sessions
    for seq in range(1, 5):
        page.say({"type": "slow", "text": "x" * 30_000, "seq": seq})

    assert (page.closed_with, page.close_reason) == (1013, "too much waits to be handled")
    # The session is there, and what was handled by then is not lost.
    channel = sessions.channels[sid]
    assert channel.session.received == 4
    assert sessions.kept_bytes == 4096 + channel.booked > 106_000
    channel.end("gap")
    assert sessions.kept_bytes == 0


def test_a_session_that_was_ended_for_room_says_so(keeping, enter):
    page = enter(client_id="alice")
    page.say({"type": "ping"})
    gone(page, keeping.world)
    for _ in range(3):
        keeping.filled("alice", 45_000)

    assert enter(client_id="alice", session=session_of(page)).messages[0]["reason"] == "full"


def test_when_no_room_is_left_at_all_a_newcomer_is_told_to_come_later(serve, enter, world):
    keeping = Keeping(serve(sessions_bytes=1_048_576), enter, world)
    for n in range(16):
        keeping.filled(f"u{n}", 60_800, leaves=False)

    late = enter(client_id="late")

    assert late.closed_with == 1013
    assert "sessions_bytes" in late.close_reason


def test_the_accounts_are_empty_when_all_have_left(keeping):
    for n in range(20):
        keeping.filled(f"u{n % 5}", 1000 * n, 3)
    keeping.world.advance(200)

    sessions = keeping.factory.heartbeat.sessions
    assert (sessions.channels, sessions.kept_bytes, len(sessions._accounts)) == ({}, 0, 0)
    assert sessions.store._entries == {}


@pytest.mark.parametrize(
    ("host", "settings", "headers", "counted"),
    [
        ("192.0.2.7", {}, {}, True),
        # A header that anybody can send takes nobody off his account.
        ("192.0.2.7", {}, {"x_forwarded_for": "192.0.2.9"}, True),
        ("192.0.2.7", {"trust_forwarded": 1}, {"x_forwarded_for": "192.0.2.9"}, True),
        # On this machine there may be a proxy for many.
        ("127.0.0.1", {}, {}, False),
    ],
)
def test_addresses_have_their_share_too(serve, enter, world, host, settings, headers, counted):
    world.client_host = host
    factory = serve(sessions_bytes=1_048_576, **settings)
    pages = [enter(headers=headers) for _ in range(16)]
    assert pages[-1].messages[0]["resumed"] is False

    late = enter(headers=headers)

    assert (late.closed_with == 1013) is counted
    gone(pages[0], world)
    assert enter(headers=headers).messages[0]["resumed"] is False
    assert factory.heartbeat.sessions.kept_bytes == (16 if counted else 17) * 4096
    if settings:
        assert enter(headers={"x_forwarded_for": "192.0.2.10"}).messages[0]["resumed"] is False


# A store that fails.


class Broken(MemoryStore):
    """A store that cannot be opened."""

    def start(self):
        from heartbeat.core.errors import StoreError

        return fail(StoreError("the store is broken"))


def test_while_the_store_cannot_be_opened_nobody_is_let_in_and_may_try_again(serve, enter):
    factory = serve()
    factory.heartbeat.sessions.store = Broken()

    page = enter()

    assert (page.closed_with, page.close_reason) == (1013, "sessions cannot be kept just now")


def test_who_comes_before_the_store_was_read_waits_for_it(serve, enter, world):
    read = Deferred()

    class Slow(MemoryStore):
        def start(self):
            return read.addCallback(lambda _: MemoryStore.start(self))

    factory = serve()
    factory.heartbeat.sessions.store = Slow()
    one, two = enter(client_id="alice"), enter(client_id="bob")
    assert (one.messages, two.messages) == ([], [])

    read.callback(None)
    world.advance(0.1)

    assert [page.messages[0]["client_id"] for page in (one, two)] == ["alice", "bob"]
