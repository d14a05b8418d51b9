"""The way to Redis: whatever becomes of it, what was asked is done once and in order, and nothing is given up."""

import re
import select
import signal
import time

import pytest
import redis_server
from fleet import redis_answer
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import formatEvent

from heartbeat.cluster import redis as way
from heartbeat.cluster.redis import Redis
from heartbeat.cluster.store import RedisStore
from heartbeat.core.errors import SettingError, StoreError
from heartbeat.store import Append, Head

pytestmark = redis_server.needs_redis

ALICE = Head("a", "e", "alice", 120.0)

# Every write is on the disk before it is answered.
SAFE = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def redis(tmp_path):
    """A Redis whose answers outlive it."""
    with redis_server.RedisServer(tmp_path, *SAFE) as redis:
        yield redis


@pytest.fixture
def turns():
    """The reactor."""
    return redis_server.Turns()


@pytest.fixture
def store(redis, turns):
    """A store that has started, with one session; stopped in the end."""
    store = RedisStore(redis.url, reactor=turns.reactor)
    turns.result(store.start())
    turns.result(store.open(ALICE))
    yield store
    turns.result(store.stop())
    assert turns.reactor.getDelayedCalls() == []


@pytest.fixture
def numbers():
    """What was answered, in the order in which it was."""
    return []


def ask(store, numbers, payload):
    store.append([Append("a", payload)]).addBoth(numbers.append)


def sentences(log):
    return [formatEvent(event) for event in log if "store" in (event.get("log_format") or "")]


def test_what_is_asked_while_it_is_away_is_done_in_order_when_it_is_back(redis, store, turns, numbers, log):
    redis.kill()
    for payload in (b"1", b"2", b"3"):
        ask(store, numbers, payload)
    turns.until(lambda: sentences(log))
    ask(store, numbers, b"4")
    assert numbers == []

    redis.start()
    turns.until(lambda: len(numbers) == 4)

    assert numbers == [(1,), (2,), (3,), (4,)]
    assert [kept.payload for kept in turns.result(store.replay("a", 0))] == [b"1", b"2", b"3", b"4"]
    assert len(sentences(log)) == 2
    assert sentences(log)[0].startswith(f"the store {redis.url} is away: ")
    assert sentences(log)[1] == f"the store {redis.url} is there again"


def test_what_was_done_and_not_answered_is_not_done_again(redis, store, turns, numbers):
    """Redis stands still with the question in its hands; the connection breaks; it does both, the old and the new."""
    redis.pause(signal.SIGSTOP)
    for payload in (b"1", b"2"):
        ask(store, numbers, payload)
    store._redis._made.failed(StoreError("the line is cut"))
    redis.pause(signal.SIGCONT)
    turns.until(lambda: len(numbers) == 2)

    assert numbers == [(1,), (2,)]
    assert [kept.payload for kept in turns.result(store.replay("a", 0))] == [b"1", b"2"]


def test_one_that_hangs_is_left_and_asked_again(redis, store, turns, numbers, log, monkeypatch):
    monkeypatch.setattr(way, "_PATIENCE", 0.3)
    redis.pause(signal.SIGSTOP)
    ask(store, numbers, b"1")

    assert turns.until(lambda: sentences(log))[0].endswith("no answer for 0.3 s; what is asked of it waits")
    redis.pause(signal.SIGCONT)
    turns.until(lambda: numbers)

    assert numbers == [(1,)]


def test_one_that_has_answered_while_we_stood_still_does_not_hang(store, turns, numbers, log, monkeypatch):
    """Timers come before what has arrived."""
    monkeypatch.setattr(way, "_PATIENCE", 0.1)
    connection = store._redis._connection
    ask(store, numbers, b"1")
    turns.reactor.iterate(0)
    select.select([connection.transport], [], [], 10)
    time.sleep(0.2)
    turns.until(lambda: numbers)

    assert numbers == [(1,)]
    assert sentences(log) == []
    assert store._redis._connection is connection


def test_what_it_cannot_do_just_now_is_done_when_it_can(redis, store, turns, numbers, log):
    """Here it has become a replica, of nobody who is there."""
    turns.result(store._redis._made.execute_command("REPLICAOF", "127.0.0.1", "1"))
    ask(store, numbers, b"1")
    assert "READONLY" in turns.until(lambda: sentences(log))[0]
    assert numbers == []

    assert redis_answer(redis, "REPLICAOF", "NO", "ONE") == b"OK"
    turns.until(lambda: numbers)

    assert numbers == [(1,)]


def test_scripts_that_it_has_forgotten_are_loaded_again(store, turns, numbers):
    turns.result(store._redis._made.execute_command("SCRIPT", "FLUSH"))

    ask(store, numbers, b"1")
    turns.until(lambda: numbers)

    assert numbers == [(1,)]


def test_answers_that_were_had_are_not_remembered(store, turns, numbers):
    for number in range(50):
        ask(store, numbers, b"%d" % number)
        turns.until(lambda number=number: len(numbers) == number + 1)

    remembered = turns.result(store._redis._made.execute_command("HLEN", f"heartbeat:o:{store._redis.asker}"))

    # That of the last, and of none that was known to be had when it was asked.
    assert remembered == 1


def test_whoever_starts_last_has_the_store(redis, store, turns):
    other = RedisStore(redis.url, reactor=turns.reactor)
    contents = turns.result(other.start())
    assert [head.sid for head in contents.heads] == ["a"]

    with pytest.raises(StoreError, match=r"^another server has taken the store$"):
        turns.result(store.append([Append("a", b"1")]))

    assert turns.result(other.append([Append("a", b"1")])) == (1,)
    turns.result(other.stop())


def test_where_there_is_none_the_start_fails_in_a_sentence_and_may_be_tried_again(redis, turns):
    redis.kill()
    store = RedisStore(redis.url, reactor=turns.reactor)

    with pytest.raises(StoreError, match="^the store " + re.escape(redis.url) + " cannot be reached: "):
        turns.result(store.start())
    assert turns.reactor.getDelayedCalls() == []

    redis.start()
    assert turns.result(store.start()).heads == ()
    turns.result(store.stop())


def test_a_wrong_password_is_said(redis, turns):
    redis.kill()
    redis.options = (*SAFE, "--requirepass", "right")
    redis.start()
    store = RedisStore(redis.url, reactor=turns.reactor)

    with pytest.raises(StoreError, match="^the store " + re.escape(redis.url) + " cannot be reached: NOAUTH"):
        turns.result(store.start())


class Locked(Protocol):
    """As a Redis that wants a password, to who shows none: says so, and hangs up on who goes on for long."""

    def dataReceived(self, data):
        if re.search(rb"\$\d{5}", data):
            self.transport.abortConnection()
        else:
            self.transport.write(b"-NOAUTH Authentication required.\r\n" * data.count(b"*"))


def test_one_who_has_shown_no_password_says_little_and_so_hears_that_there_is_one(turns, tmp_path):
    locked = Factory.forProtocol(Locked)
    locked.noisy = False
    listening = turns.reactor.listenUNIX(str(tmp_path / "locked"), locked)
    store = RedisStore(f"redis+unix://{tmp_path}/locked", reactor=turns.reactor)

    with pytest.raises(StoreError, match="cannot be reached: NOAUTH"):
        turns.result(store.start())

    turns.result(listening.stopListening())


def test_what_cannot_be_said_at_all_fails_at_once_and_nobody_waits_behind_it(store, turns):
    """A lone surrogate has no bytes."""
    with pytest.raises(UnicodeEncodeError):
        store._redis.read("publish", "\ud800", b"", "")

    assert turns.result(store._redis.read("publish", "nobody hears", b"", "")) == 0


def test_a_stop_finishes_what_was_asked(redis, turns, numbers):
    store = RedisStore(redis.url, reactor=turns.reactor)
    turns.result(store.start())
    store.open(ALICE)
    for payload in (b"1", b"2"):
        ask(store, numbers, payload)

    turns.result(store.stop())

    assert numbers == [(1,), (2,)]
    with pytest.raises(StoreError, match=r"is not open$"):
        turns.result(store.append([]))


def test_a_stop_does_not_wait_for_one_that_is_away(redis, turns, numbers, log):
    store = RedisStore(redis.url, reactor=turns.reactor)
    turns.result(store.start())
    turns.result(store.open(ALICE))
    redis.kill()
    ask(store, numbers, b"1")
    turns.until(lambda: sentences(log))

    turns.result(store.stop())

    assert str(numbers[0].value) == f"the store {redis.url} was stopped before it answered"
    assert turns.reactor.getDelayedCalls() == []


@pytest.mark.parametrize(
    "url",
    ["redis://", "http://host", "redis://host/x", "redis://host:0", "redis://host?a=b", "redis+unix://host/path", ""],
)
def test_a_url_that_is_none_is_said_in_one_sentence(url):
    with pytest.raises(SettingError, match="redis://"):
        Redis(url)


def test_a_password_is_never_told():
    assert Redis("redis://user:secret@host:1/2").url == "redis://user@host:1/2"
    with pytest.raises(SettingError) as error:
        Redis("redis://user:secret@host/x")
    assert "secret" not in str(error.value)
