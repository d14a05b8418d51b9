"""An opening at level 1: what a client may ask for, what a server may declare, and what is refused of either."""

import pytest

from heartbeat.core.errors import PeerError
from heartbeat.core.opening import Declared, Opening, declared, opening
from heartbeat.core.session import Bounds, Resume

OWN = Bounds(1000, 1_048_576, 4096)

RESUME = {"sid": "s-1", "epoch": "e-1", "last": 41, "sent": 17, "try": 2}

ANSWER = {"type": "onopen", "status": "ok", "v": 1, "client_id": "alice", "sid": "s-1", "epoch": "e-1"}


def asks(**members):
    return opening({"type": "onopen", "v": 1, **members})


def declares(**members):
    return declared(ANSWER | members, OWN)


def refusal_of(ask, **members):
    """The sentence with which this is refused."""
    with pytest.raises(PeerError) as caught:
        ask(**members)
    assert caught.value.code == "bad-message"
    return caught.value.detail


# What a client asks for


def test_an_opening_may_ask_for_nothing_but_the_level():
    assert asks() == Opening(beats=None, interval=None, claimed=None, token=None, resume=None)


def test_an_opening_may_ask_for_everything():
    wish = asks(v=7, beats="both", interval_ms=2500, client_id="alice", token="secret", session=RESUME)  # nobody's

    assert wish == Opening("both", 2.5, "alice", "secret", Resume("s-1", "e-1", last=41, sent=17, attempt=2))


@pytest.mark.parametrize("name", ["beats", "interval_ms", "client_id", "token", "session"])
def test_a_member_that_is_null_asks_for_nothing(name):
    assert asks(**{name: None}) == asks()


@pytest.mark.parametrize("beats", ["client", "server", "both", "none"])
def test_each_way_of_beating_may_be_wished_for(beats):
    assert asks(beats=beats).beats == beats


@pytest.mark.parametrize(
    ("wish", "interval"), [(1, 0.001), (2500.5, 2.5005), (0.5, 0.0005), (86_400_001, 86_400.0), (10**400, 86_400.0)]
)
def test_an_interval_is_wished_for_in_seconds_and_is_a_day_at_most(wish, interval):
    assert asks(interval_ms=wish).interval == interval


@pytest.mark.parametrize("token", ["", "secret", "x" * 60_000, "\ud800"])
def test_a_token_is_any_text(token):
    assert asks(token=token).token == token


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        *[({"v": v}, "v must be a whole number from 1") for v in (0, -1, 1.0, "1", True, [1])],
        *[
            ({"beats": beats}, "beats must be one of client, server, both, none")
            for beats in ("all", "", 1, ["client"], {})
        ],
        *[
            ({"interval_ms": interval}, "interval_ms must be a number above 0")
            for interval in (0, 0.0, -1, "6000", True, [6000])
        ],
        *[
            ({"client_id": claimed}, "client_id must be 1 to 64 visible ASCII characters")
            for claimed in ("", "x" * 65, "a b", "é", 7, ["alice"])
        ],
        *[({"token": token}, "token must be text") for token in (7, True, ["secret"], {})],
        *[({"session": session}, "session must be null or an object") for session in ("s-1", 1, True, [], [RESUME])],
    ],
)
def test_what_may_not_be_asked_for_is_refused_in_one_sentence(wish, sentence):
    assert refusal_of(asks, **wish) == sentence


def test_a_refusal_is_about_the_opening():
    with pytest.raises(PeerError) as caught:
        asks(v=0)

    assert caught.value.re == "onopen"


# What a client comes back to


@pytest.mark.parametrize("name", ["s", "x" * 128, "grüß dich", "1/2"])
def test_a_session_is_named_by_1_to_128_printable_characters(name):
    resume = asks(session=RESUME | {"sid": name, "epoch": name}).resume

    assert (resume.sid, resume.epoch) == (name, name)


@pytest.mark.parametrize("member", ["sid", "epoch"])
@pytest.mark.parametrize("name", [None, "", "x" * 129, 7, ["s-1"], "s\n1", "s\0", "\ud800"])
def test_anything_else_names_no_session(member, name):
    sentence = "session.sid and session.epoch must be 1 to 128 printable characters"

    assert refusal_of(asks, session=RESUME | {member: name}) == sentence


@pytest.mark.parametrize("number", [0, 1, 2**53 - 1])
def test_the_numbers_of_a_session_are_whole_and_from_0(number):
    resume = asks(session=RESUME | {"last": number, "sent": number, "try": number}).resume

    assert (resume.last, resume.sent, resume.attempt) == (number, number, number)


@pytest.mark.parametrize("member", ["last", "sent", "try"])
@pytest.mark.parametrize("number", [None, -1, 1.0, "1", True, [1], 2**53, 10**400])
def test_anything_else_is_no_number_of_a_session(member, number):
    sentence = "session.last, session.sent and session.try must be whole numbers from 0"

    assert refusal_of(asks, session=RESUME | {member: number}) == sentence


@pytest.mark.parametrize("member", ["sid", "epoch", "last", "sent", "try"])
def test_who_comes_back_says_all_of_it(member):
    session = {name: value for name, value in RESUME.items() if name != member}

    assert refusal_of(asks, session=session).startswith("session.")


# What a server declares


def test_a_server_may_have_no_session():
    assert declared({"type": "onopen", "status": "ok", "v": 1, "client_id": "alice"}, OWN) is None
    assert declares(sid=None) is None


def test_a_declaration_that_says_the_least_is_of_a_new_session():
    assert declares() == Declared(
        sid="s-1",
        epoch="e-1",
        client_id="alice",
        resumed=False,
        reason="unknown",
        last=0,
        sent=0,
        window=120.0,
        bounds=OWN,
    )


def test_a_declaration_may_say_everything():
    session = declares(
        resumed=True,
        reason="expired",
        last=3,
        sent=4,
        window_ms=1500,
        limits={"kept": 10, "kept_bytes": 5000, "message": 2048},
    )

    assert session == Declared(
        sid="s-1",
        epoch="e-1",
        client_id="alice",
        resumed=True,
        reason="expired",
        last=3,
        sent=4,
        window=1.5,
        bounds=Bounds(10, 5000, 2048),
    )


@pytest.mark.parametrize("resumed", [False, None, 1, "true", []])
def test_only_what_is_true_is_resumed(resumed):
    assert declares(resumed=resumed).resumed is False


@pytest.mark.parametrize("reason", [None, "", 7, ["gap"]])
def test_a_reason_that_is_no_word_is_unknown(reason):
    assert declares(reason=reason).reason == "unknown"


@pytest.mark.parametrize(
    ("limits", "bounds"),
    [
        (None, OWN),
        ("many", OWN),
        ({}, OWN),
        ({"kept": 7}, (7, 1_048_576, 4096)),
        ({"kept_bytes": 8192}, (1000, 8192, 4096)),
        ({"message": 2048}, (1000, 1_048_576, 2048)),
        ({"kept": 10**400, "kept_bytes": 2**60, "message": 2**40}, OWN),
        ({"kept": 1, "kept_bytes": 1, "message": 1}, (1, 1, 1)),
    ],
)
def test_the_bounds_are_the_servers_and_never_more_than_ours(limits, bounds):
    assert declares(limits=limits).bounds == bounds


@pytest.mark.parametrize(("window", "seconds"), [(1, 0.001), (2**53, 2**53 / 1000), (10**400, 2**53 / 1000)])
def test_a_window_is_declared_in_milliseconds_and_is_never_too_long_for_a_number(window, seconds):
    assert declares(window_ms=window).window == seconds


@pytest.mark.parametrize(
    "members",
    [
        *[{"sid": sid} for sid in ("", "x" * 129, 7, True, ["s-1"], "\ud800")],
        *[{"epoch": epoch} for epoch in (None, "", "x" * 129, 7, "\n")],
        *[{"client_id": client_id} for client_id in (None, "", "x" * 65, "a b", 7)],
    ],
)
def test_a_session_without_names_is_none_that_can_be_declared(members):
    assert refusal_of(declares, **members) == "an answer with a sid has an epoch and a client_id"


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"last": -1}, "last must be a whole number from 0"),
        ({"last": "3"}, "last must be a whole number from 0"),
        ({"sent": 1.0}, "sent must be a whole number from 0"),
        ({"sent": True}, "sent must be a whole number from 0"),
        ({"window_ms": 0}, "window_ms must be a whole number from 1"),
        ({"window_ms": 1.5}, "window_ms must be a whole number from 1"),
        ({"limits": {"kept": 0}}, "kept must be a whole number from 1"),
        ({"limits": {"kept_bytes": "1048576"}}, "kept_bytes must be a whole number from 1"),
        ({"limits": {"message": 0}}, "message must be a whole number from 1"),
    ],
)
def test_a_number_that_is_none_cannot_be_declared(members, sentence):
    assert refusal_of(declares, **members) == sentence


@pytest.mark.parametrize("half", [asks(), declares()])
def test_neither_half_ever_changes(half):
    assert half.__dataclass_params__.frozen
    assert not hasattr(half, "__dict__")
