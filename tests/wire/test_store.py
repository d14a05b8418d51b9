"""What every store promises: in memory, in a SQLite file, in Redis and of a fleet, held to the same sentences."""

import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis_server
from fleet import WholeStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sqlite import Turns
from twisted.internet.defer import Deferred

from heartbeat.cluster.store import RedisStore
from heartbeat.core.errors import StoreError
from heartbeat.sqlite import SqliteStore
from heartbeat.store import Append, Head, Kept, Mark, MemoryStore, Settle, new_epoch, new_sid, when

ALICE = Head("a", "e1", "alice", 120.0)
BOB = Head("b", "e1", "bob", 60.0)


class Asked:
    """A store of which each method is called and waited for, as if all were in memory."""

    def __init__(self, store, turns=Turns):
        self.turns = turns()
        self.store = store(self.turns)

    def __getattr__(self, name):
        return lambda *arguments: self.turns.result(getattr(self.store, name)(*arguments))


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """A Redis."""
    with redis_server.RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


def redis_store(url, kind=RedisStore):
    """A store in Redis under names of its own."""
    return Asked(lambda turns: kind(url, prefix=f"{new_epoch()}:", reactor=turns.reactor), turns=redis_server.Turns)


@pytest.fixture(
    params=["memory", "sqlite", *(pytest.param(name, marks=redis_server.needs_redis) for name in ("redis", "fleet"))]
)
def asked(request, tmp_path):
    """A store that has started; stopped in the end."""
    if request.param == "memory":
        asked = Asked(lambda turns: MemoryStore())
    elif request.param == "sqlite":
        asked = Asked(lambda turns: SqliteStore(tmp_path / "s", reactor=turns))
    else:
        kind = RedisStore if request.param == "redis" else WholeStore
        asked = redis_store(request.getfixturevalue("redis").url, kind)
    asked.start()
    yield asked
    asked.stop()


@pytest.fixture
def store(asked):
    """A store with two sessions."""
    asked.open(ALICE)
    asked.open(BOB)
    return asked


def heads(store):
    """All sessions by name."""
    return {head.sid: head for head in store.start().heads}


def payloads(store, sid, after=0):
    """What is kept for a session, without its numbers."""
    return [kept.payload for kept in store.replay(sid, after)]


# Starting and stopping.


def test_a_new_store_holds_nothing_and_has_a_name(asked):
    contents = asked.start()

    assert contents.heads == ()
    assert len(contents.epoch) == 16


def test_two_stores_have_two_names(asked):
    assert asked.start().epoch != MemoryStore().start().epoch


def test_what_it_held_is_there_when_it_starts_again(store):
    before = store.start()
    store.append([Append("a", b"1", "r"), Mark("a", "group", "room")])

    store.stop()
    after = store.start()

    assert after.epoch == before.epoch
    assert after.heads == (replace(ALICE, sent=1, marks={"group": "room"}), BOB)
    assert store.replay("a", 0) == (Kept(1, b"1", "r"),)


def test_sessions_come_longest_detached_first_and_those_that_were_connected_last(asked):
    for sid in "abcde":
        asked.open(replace(ALICE, sid=sid))
    for sid, at in [("b", 30.5), ("c", 0.0), ("e", 10.0)]:
        asked.detach(sid, 0, at)

    assert [(head.sid, head.detached_at) for head in asked.start().heads] == [
        ("c", 0.0),
        ("e", 10.0),
        ("b", 30.5),
        ("a", None),
        ("d", None),
    ]


def test_of_those_detached_in_one_moment_the_one_opened_first_comes_first(asked):
    for sid in "cab":
        asked.open(replace(ALICE, sid=sid))
        asked.detach(sid, 0, 5.0)

    assert [head.sid for head in asked.start().heads] == ["c", "a", "b"]


# Opening and appending.


def test_a_session_begins_with_nothing_sent_and_nothing_handled(asked):
    assert asked.open(replace(ALICE, sent=9, confirmed=8, handled=7, attempt=6, fence=5, detached_at=4.0)) is None

    assert heads(asked) == {"a": ALICE}
    assert asked.replay("a", 0) == ()


def test_messages_are_numbered_from_one_for_each_session(store):
    assert store.append([Append("a", b"1"), Append("b", b"1"), Append("a", b"2")]) == (1, 1, 2)
    assert store.append([Append("a", b"3")]) == (3,)

    assert payloads(store, "a") == [b"1", b"2", b"3"]
    assert (heads(store)["a"].sent, heads(store)["b"].sent) == (3, 1)


def test_other_effects_and_sessions_that_are_gone_have_no_number(store):
    effects = [Mark("a", "k", "v"), Append("gone", b"1"), Settle("r"), Append("a", b"1"), Mark("gone", "k", "v")]

    assert store.append(effects) == (None, None, None, 1, None)
    assert "gone" not in heads(store)


def test_no_effects_have_no_numbers(store):
    assert store.append([]) == ()


def test_any_text_and_any_bytes_are_kept_as_they_are(asked):
    odd = "é\0\ud800𝄞'"
    asked.open(Head(odd, odd, odd, 0.1))
    asked.append([Append(odd, b"\0\xff", odd), Append(odd, b""), Mark(odd, odd, odd), Mark(odd, "", "")])

    assert heads(asked) == {odd: Head(odd, odd, odd, 0.1, sent=2, marks={odd: odd, "": ""})}
    assert asked.replay(odd, 0) == (Kept(1, b"\0\xff", odd), Kept(2, b"", None))
    assert asked.take_over(odd, 1).sid == odd
    asked.append([Settle(odd)])
    assert asked.replay(odd, 1) == (Kept(2, b"", None),)


# Receipts.


def test_all_copies_forget_a_receipt_that_is_settled(store):
    store.append([Append("a", b"1", "r"), Append("b", b"1", "r"), Append("a", b"2", "other")])

    store.append([Settle("r")])

    assert store.replay("a", 0) == (Kept(1, b"1", None), Kept(2, b"2", "other"))
    assert store.replay("b", 0) == (Kept(1, b"1", None),)


def test_a_copy_behind_one_that_was_confirmed_forgets_its_receipt_too(store):
    store.append([Append("a", b"1", "r"), Append("a", b"2", "r")])
    store.confirm("a", 0, 1, [])

    store.append([Settle("r")])

    assert store.replay("a", 0) == (Kept(2, b"2", None),)


def test_a_receipt_can_be_used_again_after_it_was_settled(store):
    store.append([Append("a", b"1", "r"), Settle("r"), Append("a", b"2", "r"), Append("a", b"3", "")])

    assert [kept.receipt for kept in store.replay("a", 0)] == [None, "r", ""]


def test_to_settle_what_nobody_holds_any_more_is_no_effect(store):
    store.append([Append("a", b"1", "r"), Append("b", b"1", "r")])
    store.confirm("a", 0, 1, [])
    store.expire("b", 0, [])

    assert store.append([Settle("r"), Settle("never")]) == (None, None)


# Marks.


def test_a_mark_replaces_the_one_before_and_none_forgets_it(store):
    store.append([Mark("a", "k", "1"), Mark("a", "l", "2"), Mark("b", "k", "3")])
    store.append([Mark("a", "k", "4"), Mark("a", "l", None), Mark("a", "never", None)])

    assert heads(store)["a"].marks == {"k": "4"}
    assert heads(store)["b"].marks == {"k": "3"}


def test_a_head_is_a_picture_of_its_moment(store):
    store.append([Mark("a", "k", "1")])
    before = store.take_over("a", 1)

    before.marks["k"] = "painted over"
    store.append([Append("a", b"1"), Mark("a", "l", "2")])

    assert before.sent == 0
    assert heads(store)["a"].marks == {"k": "1", "l": "2"}


# Handling, confirming, replaying.


def test_what_is_handled_is_noted_with_what_follows(store):
    assert store.handle("a", 0, 5, [Append("b", b"from a"), Mark("a", "k", "v")]) == (1, None)

    assert heads(store)["a"] == replace(ALICE, handled=5, marks={"k": "v"})
    assert payloads(store, "b") == [b"from a"]


def test_what_is_confirmed_is_forgotten_with_what_follows(store):
    store.append([Append("a", b"%d" % n) for n in range(1, 6)])

    assert store.confirm("a", 0, 3, [Append("b", b"delivered"), Append("a", b"6")]) == (1, 6)

    assert store.replay("a", 0) == (Kept(4, b"4", None), Kept(5, b"5", None), Kept(6, b"6", None))
    assert heads(store)["a"] == replace(ALICE, sent=6, confirmed=3)


def test_to_confirm_what_was_confirmed_changes_nothing(store):
    store.append([Append("a", b"1"), Append("a", b"2")])
    store.confirm("a", 0, 2, [])

    store.confirm("a", 0, 1, [])
    store.confirm("a", 0, -1, [])

    assert heads(store)["a"].confirmed == 2


def test_no_more_can_be_confirmed_than_was_sent(store):
    store.append([Append("a", b"1")])
    store.confirm("a", 0, 2**70, [])

    assert heads(store)["a"].confirmed == 1
    assert store.append([Append("a", b"2")]) == (2,)
    assert payloads(store, "a") == [b"2"]


def test_what_is_kept_above_a_number_is_replayed_in_order(store):
    store.append([Append("a", b"%d" % n) for n in range(1, 13)])
    store.confirm("a", 0, 2, [])

    assert [kept.seq for kept in store.replay("a", 0)] == list(range(3, 13))
    assert [kept.seq for kept in store.replay("a", 10)] == [11, 12]
    assert store.replay("a", 12) == store.replay("a", 2**70) == ()
    assert len(store.replay("a", -(2**70))) == 10


# Who may write.


def test_nobody_is_connected_from_the_moment_of_detaching_until_the_take_over(store):
    assert store.detach("a", 0, 1234.5) is None
    assert heads(store)["a"] == replace(ALICE, detached_at=1234.5)

    assert store.take_over("a", 3) == replace(ALICE, attempt=3, fence=1)
    assert heads(store)["a"] == replace(ALICE, attempt=3, fence=1)


def test_a_take_over_tells_all_that_is_known(store):
    store.append([Append("a", b"1"), Append("a", b"2"), Mark("a", "k", "v"), Mark("b", "k", "w")])
    store.confirm("a", 0, 1, [])
    store.handle("a", 0, 7, [])
    store.take_over("a", 1)

    assert store.take_over("a", 2) == Head(
        "a", "e1", "alice", 120.0, sent=2, confirmed=1, handled=7, attempt=2, fence=2, marks={"k": "v"}
    )


def test_nobody_takes_over_a_session_that_is_not_there(store):
    assert store.take_over("gone", 1) is None
    assert "gone" not in heads(store)


WRITES = {
    "handle": lambda store, sid, fence: store.handle(sid, fence, 5, [Append("b", b"1")]),
    "confirm": lambda store, sid, fence: store.confirm(sid, fence, 1, [Append("b", b"1")]),
    "detach": lambda store, sid, fence: store.detach(sid, fence, 1.0),
    "expire": lambda store, sid, fence: store.expire(sid, fence, [Append("b", b"1")]),
}


@pytest.mark.parametrize("fence", [0, 2])
@pytest.mark.parametrize("write", WRITES)
def test_who_has_lost_a_session_fails_and_changes_nothing(store, write, fence):
    store.append([Append("a", b"1")])
    store.take_over("a", 1)
    before = store.start()

    with pytest.raises(StoreError, match=f"^the session was taken over: fence {fence}, not 1$"):
        WRITES[write](store, "a", fence)

    assert store.start() == before
    assert payloads(store, "a") == [b"1"]
    assert payloads(store, "b") == []
    WRITES[write](store, "a", 1)


@pytest.mark.parametrize("write", [*WRITES, "replay"])
def test_an_unknown_session_fails_and_changes_nothing(store, write):
    with pytest.raises(StoreError, match=r"^the session is not in the store$"):
        {**WRITES, "replay": lambda store, sid, _fence: store.replay(sid, 0)}[write](store, "gone", 0)

    assert heads(store) == {"a": ALICE, "b": BOB}


# The end of a session.


def test_an_expired_session_is_gone_with_all_that_was_kept_of_it(store):
    store.append([Append("a", b"1", "r"), Append("b", b"1", "r"), Mark("a", "k", "v")])

    assert store.expire("a", 0, [Append("b", b"lost"), Append("a", b"too late"), Mark("a", "k", "v")]) == (
        2,
        None,
        None,
    )

    assert heads(store) == {"b": replace(BOB, sent=2)}
    assert store.append([Settle("r")]) == (None,)
    assert [kept.receipt for kept in store.replay("b", 0)] == [None, None]


def test_a_session_that_is_opened_after_another_ended_inherits_nothing(store):
    store.append([Append("b", b"1", "r"), Mark("b", "k", "v")])
    store.expire("b", 0, [])

    store.open(replace(BOB, client_id="carol"))

    assert heads(store)["b"] == replace(BOB, client_id="carol")
    assert store.replay("b", 0) == ()
    assert store.append([Append("b", b"1")]) == (1,)


# Order.


def test_calls_take_effect_in_the_order_in_which_they_were_made(asked):
    """Nobody waits for a result before the next call, and the results come in the same order."""
    store, fired = asked.store, []
    calls = [
        lambda: store.open(ALICE),
        lambda: store.append([Append("a", b"1")]),
        lambda: store.take_over("a", 1),
        lambda: store.confirm("a", 1, 1, [Append("a", b"2")]),
        lambda: store.replay("a", 0),
        lambda: store.expire("a", 1, [Append("a", b"3")]),
        lambda: store.take_over("a", 2),
    ]
    for call in calls:
        when(call(), fired.append)
    while len(fired) < len(calls):
        asked.turns.turn()

    head = replace(ALICE, sent=1, attempt=1, fence=1)
    assert fired == [None, (1,), head, (2,), (Kept(2, b"2", None),), (None,), None]


def test_when_goes_on_at_once_or_when_the_result_comes_or_fails():
    told = []
    later, failing = Deferred(), Deferred()
    when(1, told.append)
    when(later, told.append)
    when(failing, told.append, lambda failure: told.append(str(failure.value)))
    assert told == [1]

    later.callback(2)
    failing.errback(StoreError("gone"))

    assert told == [1, 2, "gone"]


def test_names_of_sessions_and_stores_are_not_guessed():
    assert (len(new_sid()), len(new_epoch())) == (32, 16)
    assert len({new_sid() for _ in range(100)} | {new_epoch() for _ in range(100)}) == 200


# Both the same, whatever is asked of them.

SIDS = st.sampled_from(["a", "b", "\ud800"])
RECEIPTS = st.sampled_from(["r", "q", "\udfff"])
KEYS = st.sampled_from(["k", "l"])
NUMBERS = st.integers(-1, 6)
FENCES = st.sampled_from([0, 0, 0, 1, 2])
EFFECTS = st.lists(
    st.one_of(
        st.builds(Append, SIDS, st.binary(max_size=3), st.none() | RECEIPTS),
        st.builds(Settle, RECEIPTS),
        st.builds(Mark, SIDS, KEYS, st.none() | st.text(max_size=2)),
    ),
    max_size=4,
)
CALLS = st.one_of(
    st.tuples(st.just("append"), EFFECTS),
    st.tuples(st.just("append"), EFFECTS),
    st.tuples(st.just("handle"), SIDS, FENCES, NUMBERS, EFFECTS),
    st.tuples(st.just("confirm"), SIDS, FENCES, NUMBERS, EFFECTS),
    st.tuples(st.just("replay"), SIDS, NUMBERS),
    st.tuples(st.just("detach"), SIDS, FENCES, st.sampled_from([0.0, 1.5, 2.0])),
    st.tuples(st.just("take_over"), SIDS, NUMBERS),
    st.tuples(st.just("expire"), SIDS, FENCES, EFFECTS),
    st.tuples(st.just("start")),
)


@contextmanager
def sqlite_store():
    """A SQLite store in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Asked(lambda turns: SqliteStore(Path(folder, "s"), reactor=turns))
        yield asked
        asked.stop()


def outcome(call):
    """What a call returns, or the sentence that it fails with."""
    try:
        return call()
    except StoreError as error:
        return str(error)


def opened(store, sids):
    """Open these sessions again where they are gone."""
    there = {head.sid for head in store.start().heads}
    for sid in sids:
        if sid not in there:
            store.open(Head(sid, "e", f"client of {sid}", 1.5))


def answer_alike(asked, runs):
    """A store answers as the one in memory; each run is asked without waiting, and after it the store starts again."""
    memory = MemoryStore()
    asked.start()
    for run in runs:
        opened(memory, ["a", "b", "\ud800"])
        opened(asked, ["a", "b", "\ud800"])
        expected = [outcome(lambda call=call: getattr(memory, call[0])(*call[1:])) for call in run]
        answers = [getattr(asked.store, call[0])(*call[1:]) for call in run]
        found = [outcome(lambda answer=answer: asked.turns.result(answer)) for answer in answers]
        epochs = {"memory": memory.start().epoch, "other": asked.start().epoch}
        assert found == [
            one._replace(epoch=epochs["other"]) if getattr(one, "epoch", None) == epochs["memory"] else one
            for one in expected
        ]

        asked.stop()
        heads = asked.start().heads
        assert heads == memory.start().heads
        for head in heads:
            assert asked.replay(head.sid, 0) == memory.replay(head.sid, 0)
    asked.stop()


RUNS = st.lists(st.lists(CALLS, max_size=12), min_size=1, max_size=3)


@given(RUNS)
def test_sqlite_gives_the_same_answers_as_memory_to_the_same_calls(runs):
    with sqlite_store() as asked:
        answer_alike(asked, runs)


@redis_server.needs_redis
@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RUNS)
def test_redis_gives_the_same_answers_as_memory_to_the_same_calls(redis, runs):
    answer_alike(redis_store(redis.url), runs)


@redis_server.needs_redis
@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RUNS)
def test_a_store_of_a_fleet_gives_the_same_answers_as_memory_to_the_same_calls(redis, runs):
    answer_alike(redis_store(redis.url, WholeStore), runs)
