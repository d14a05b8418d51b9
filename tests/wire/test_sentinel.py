"""The way to a Redis that has a replica, and sentinels: who is the master is asked, and told what the last was not."""

import signal
import sys
import time

import hiredis
import pytest
import redis_server
from ports import free_port
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import formatEvent
from twisted.python.usage import UsageError

from heartbeat.cluster import redis as way
from heartbeat.cluster import sentinel, subscription
from heartbeat.cluster.presence import FleetPresence
from heartbeat.cluster.redis import Redis
from heartbeat.cluster.sentinel import Sentinels
from heartbeat.cluster.store import RedisStore
from heartbeat.cluster.subscription import Subscription
from heartbeat.core.errors import SettingError, StoreError
from heartbeat.core.presence import Presence, Standing
from heartbeat.store import Append, Head
from heartbeat.tap import Options

pytestmark = redis_server.needs_redis

ALICE = Head("a", "e", "alice", 120.0)
ERROR = b"-IDONTKNOW no\r\n"


@pytest.fixture
def turns():
    """The reactor; nothing is left on it."""
    turns = redis_server.Turns()
    yield turns
    assert turns.reactor.getDelayedCalls() == []


class Sentinel(Factory):
    """One that says what it is told to: a port, None where it knows no such master, bytes as they are; or nothing."""

    noisy = False

    def __init__(self, turns, says):
        self.says = says
        self.asked = []
        self.open = []
        self.listening = turns.reactor.listenTCP(0, self, interface="127.0.0.1")
        self.port = self.listening.getHost().port
        self.place = f"127.0.0.1:{self.port}"

    def buildProtocol(self, address):
        line = Protocol()
        reader = hiredis.Reader()

        def heard(data):
            reader.feed(data)
            while (words := reader.gets()) is not False:
                self.asked.append(words)
                if self.says != b"":
                    line.transport.write(b"+OK\r\n" if words[0] == b"AUTH" else self.answer())

        line.dataReceived = heard
        line.connectionMade = lambda: self.open.append(line)
        line.connectionLost = lambda _: self.open.remove(line)
        return line

    def answer(self):
        if isinstance(self.says, bytes):
            return self.says
        return b"*-1\r\n" if self.says is None else hiredis.pack_command(("127.0.0.1", str(self.says)))


@pytest.fixture
def watch(turns):
    """Make a sentinel; all are gone in the end."""
    made = []

    def watch(says):
        made.append(Sentinel(turns, says))
        return made[-1]

    yield watch
    for one in made:
        turns.result(one.listening.stopListening())
        turns.until(lambda one=one: not one.open)


class Pair:
    """Two Redis, of which the second is the replica of the first."""

    def __init__(self, folder):
        self.ports = [free_port(), free_port()]
        self.servers = []
        for number, port in enumerate(self.ports):
            (folder / str(number)).mkdir()
            options = ["--save", "", "--appendonly", "no", "--port", str(port), "--bind", "127.0.0.1"]
            replica = ["--replicaof", f"127.0.0.1 {self.ports[0]}"] if number else []
            self.servers.append(
                redis_server.RedisServer(folder / str(number), *options, "--repl-diskless-sync-delay", "0", *replica)
            )

    def __enter__(self):
        for server in self.servers:
            server.start()
        self.until(0, lambda: b"state=online" in self.tell(0, "INFO", "replication"))
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.__exit__()

    def tell(self, number, *words):
        return redis_server.told(self.ports[number], *words)

    def until(self, number, condition):
        until = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < until, "it never is"
            time.sleep(0.02)

    def promote(self):
        """Have the second be a master of its own, which has all that the first has."""
        redis_server.replicate(self.ports[0])
        assert self.tell(1, "REPLICAOF", "NO", "ONE") == b"OK"


@pytest.fixture
def pair(tmp_path):
    with Pair(tmp_path) as pair:
        yield pair


def url_of(*sentinels):
    return f"redis+sentinel://{','.join(one.place for one in sentinels)}/pair"


def payloads(turns, store):
    return [kept.payload for kept in turns.result(store.replay("a", 0))]


def sentences(log):
    return [formatEvent(event) for event in log if "store" in (event.get("log_format") or "")]


def test_a_url_names_sentinels_a_master_and_a_database():
    one = Sentinels("redis+sentinel://user:p%40ss@a,b:1,[::1]:2,[::2]/my%20master/3?sentinel_password=word")

    assert one.address == (frozenset({("a", 26379), ("b", 1), ("::1", 2), ("::2", 26379)}), "my master", 3)
    assert (one.master, one.database, one.credentials) == ("my master", 3, ("user", "p%40ss"))
    assert one.address == Sentinels("redis+sentinel://[::2],b:1,[::1]:2,a:26379/my%20master/3").address


@pytest.mark.parametrize(
    "rest", ["", "/m", "a", "a/", "a:0/m", "a:x/m", "a,/m", "a/m/x", "a/m?b=c", "a/m?b", "a/m#f", "[::1/m", "a:65536/m"]
)
def test_a_url_that_is_none_is_said_in_one_sentence(rest):
    with pytest.raises(SettingError, match=r"redis\+sentinel://"):
        Redis(f"redis+sentinel://{rest}")


def test_no_password_is_ever_told_and_each_goes_to_whom_it_is_for():
    redis = Redis("redis+sentinel://user:s%3Acret@a,b/m?sentinel_password=hidden")

    assert redis.url == "redis+sentinel://user@a,b/m"
    assert redis.credentials == ["user", "s:cret"]
    assert Redis("redis+sentinel://:secret@a/m").credentials == ["secret"]
    with pytest.raises(SettingError) as error:
        Redis("redis+sentinel://user:secret@a/m/x?sentinel_password=hidden")
    assert "secret" not in str(error.value)
    assert "hidden" not in str(error.value)


def test_a_server_may_be_told_of_sentinels(monkeypatch):
    """By both options; without what is needed for Redis that is said, and no password."""
    for option in ("--store", "--cluster"):
        options = Options()
        options.parseOptions([f"{option}=redis+sentinel://:secret@a,b/m/2?sentinel_password=hidden"])
    monkeypatch.setitem(sys.modules, "heartbeat.cluster.store", None)
    with pytest.raises(UsageError) as error:
        Options().parseOptions(["--store=redis+sentinel://:secret@a,b/m/2?sentinel_password=hidden"])
    assert "redis+sentinel://a,b/m/2" in str(error.value)
    assert "secret" not in str(error.value)
    assert "hidden" not in str(error.value)


def test_sentinels_are_asked_in_turn_until_one_answers(turns, watch):
    """One is not there, one knows nothing of that name, one is silent, one is no sentinel; each time another begins."""
    others = [watch(None), watch(ERROR), watch(b""), watch(b"HTTP/1.1 400\r\n"), watch(7001)]
    nobody = free_port()
    sentinels = Sentinels(url_of(*others).replace("://", f"://127.0.0.1:{nobody},", 1))

    assert turns.result(sentinels.ask(turns.reactor)) == ("127.0.0.1", 7001)
    assert [len(one.asked) for one in others] == [1, 1, 1, 1, 1]
    assert others[0].asked == [[b"SENTINEL", b"get-master-addr-by-name", b"pair"]]
    # Of all six the first now; then the one after it.
    assert turns.result(sentinels.ask(turns.reactor)) == ("127.0.0.1", 7001)
    others[0].says = 7002
    assert turns.result(sentinels.ask(turns.reactor)) == ("127.0.0.1", 7002)


def test_where_none_knows_it_is_said_of_each_why(turns, watch):
    first, second, third = watch(None), watch(ERROR), watch(b"")
    store = RedisStore(url_of(first, second, third), reactor=turns.reactor)

    with pytest.raises(StoreError) as failed:
        turns.result(store.start())

    assert str(failed.value) == (
        f"the store {url_of(first, second, third)} cannot be reached: no sentinel knows where pair is ("
        f"{first.place}: it watches over no pair; {second.place}: IDONTKNOW no; {third.place}: no answer for 1 s)"
    )


def test_one_that_hangs_up_is_not_waited_for(turns, watch, monkeypatch):
    monkeypatch.setattr(sentinel, "_PATIENCE", 10.0)
    dumb, other = watch(b""), watch(7001)
    answer = Sentinels(url_of(dumb, other)).ask(turns.reactor)
    turns.until(lambda: dumb.asked)
    began = time.monotonic()
    dumb.open[0].transport.abortConnection()

    assert turns.result(answer) == ("127.0.0.1", 7001)
    assert time.monotonic() - began < sentinel._PATIENCE


def test_sentinels_are_told_their_own_password(turns, watch):
    one = watch(7001)
    asked = Sentinels(url_of(one) + "?sentinel_username=me&sentinel_password=w%20rd").ask(turns.reactor)

    assert turns.result(asked) == ("127.0.0.1", 7001)
    assert one.asked[0] == [b"AUTH", b"me", b"w rd"]


def test_a_stop_waits_for_no_sentinel(turns, watch):
    """Neither for one that is silent, nor for one that is yet to be asked."""
    silent = watch(b"")
    redis = Redis(url_of(silent), reactor=turns.reactor)
    started = redis.start()
    turns.until(lambda: silent.asked)

    turns.result(redis.stop())

    with pytest.raises(StoreError):
        turns.result(started)
    turns.until(lambda: not silent.open)
    assert len(silent.asked) == 1


def test_what_was_asked_of_a_master_that_died_is_done_by_the_next_in_order(turns, watch, pair, log):
    """And what the first had done, and not answered, is known to the second, and not done again."""
    one = watch(pair.ports[0])
    store = RedisStore(url_of(one), reactor=turns.reactor)
    turns.result(store.start())
    turns.result(store.open(ALICE))
    numbers = []
    store.append([Append("a", b"1")]).addBoth(numbers.append)
    # It is done there, and the answer is on its way when the line breaks.
    store._redis._made.transport.pauseProducing()
    turns.until(lambda: pair.tell(0, "XLEN", "heartbeat:l:a"))
    pair.promote()
    pair.servers[0].kill()
    one.says = pair.ports[1]
    for payload in (b"2", b"3"):
        store.append([Append("a", payload)]).addBoth(numbers.append)
    assert numbers == []
    store._redis._made.failed(StoreError("the line is cut"))

    turns.until(lambda: len(numbers) == 3)
    assert numbers == [(1,), (2,), (3,)]
    assert payloads(turns, store) == [b"1", b"2", b"3"]
    assert store._redis.master == ("127.0.0.1", pair.ports[1])
    assert [line.rpartition("is ")[2] for line in sentences(log)][1:] == ["there again"]
    turns.result(store.stop())


def test_a_replica_is_taken_for_no_master_whoever_names_it(turns, watch, pair):
    """The sentinel that is asked first was cut off from the others."""
    behind, right = watch(pair.ports[1]), watch(pair.ports[0])
    store = RedisStore(url_of(behind, right), reactor=turns.reactor)

    with pytest.raises(StoreError, match=r"cannot be reached: it is no master any more, or not yet$"):
        turns.result(store.start())
    turns.result(store.start())

    assert store._redis.master == ("127.0.0.1", pair.ports[0])
    turns.result(store.stop())


def test_a_master_that_has_become_a_replica_is_left_for_the_new_one(turns, watch, pair, log, monkeypatch):
    """It still answers, that it may not write; what it refused is done by the other."""
    monkeypatch.setattr(way, "_LAST", 0.05)
    one = watch(pair.ports[0])
    store = RedisStore(url_of(one), reactor=turns.reactor)
    turns.result(store.start())
    turns.result(store.open(ALICE))
    pair.promote()
    pair.tell(0, "REPLICAOF", "127.0.0.1", str(pair.ports[1]))
    one.says = pair.ports[1]

    assert turns.result(store.append([Append("a", b"1")])) == (1,)
    assert "READONLY" in sentences(log)[0]
    assert store._redis.master == ("127.0.0.1", pair.ports[1])
    turns.result(store.stop())


def test_a_new_master_that_lacks_what_was_answered_is_said_in_the_log(turns, watch, pair, log):
    """Replication waits for nobody: what was not with the replica when the master died is gone."""
    one = watch(pair.ports[0])
    store = RedisStore(url_of(one), reactor=turns.reactor)
    turns.result(store.start())
    turns.result(store.open(ALICE))
    pair.promote()
    assert turns.result(store.append([Append("a", b"1")])) == (1,)
    pair.servers[0].kill()
    one.says = pair.ports[1]

    turns.result(store.append([Append("a", b"2")]))

    assert f"the store {url_of(one)} has come back without what it had done last, and had answered" in sentences(log)
    assert payloads(turns, store) == [b"2"]
    turns.result(store.stop())


def cut(turns, store):
    """Have it connect anew."""
    store._redis._made.failed(StoreError("the line is cut"))
    turns.until(lambda: not store._redis._connection)
    turns.until(lambda: store._redis._connection)


def test_what_redis_may_have_forgotten_by_now_is_not_said_to_be_lost(turns, watch, pair, log, monkeypatch):
    """It remembers for a day: of somebody who has asked nothing for so long there is nothing to compare with."""
    one = watch(pair.ports[0])
    store = RedisStore(url_of(one), reactor=turns.reactor)
    turns.result(store.start())
    turns.result(store.open(ALICE))
    pair.tell(0, "DEL", f"heartbeat:o:{store._redis.asker}")
    monkeypatch.setattr(way, "_REMEMBERED", -1.0)
    cut(turns, store)
    assert not [line for line in sentences(log) if "come back without" in line]
    monkeypatch.undo()
    cut(turns, store)
    assert [line for line in sentences(log) if "come back without" in line]
    turns.result(store.stop())


def test_what_redis_has_refused_it_need_not_remember(turns, watch, pair, log):
    one = watch(pair.ports[0])
    store, other = (RedisStore(url_of(one), reactor=turns.reactor) for _ in range(2))
    turns.result(store.start())
    turns.result(store.open(ALICE))
    turns.result(other.start())
    with pytest.raises(StoreError, match="another server has taken the store"):
        turns.result(store.append([Append("a", b"1")]))
    cut(turns, store)

    assert not [line for line in sentences(log) if "come back without" in line]
    turns.result(store.stop())
    turns.result(other.stop())


def test_a_subscription_follows_to_the_master_that_the_other_connection_has_found(turns, watch, pair):
    """The old one still answers it, and says nothing of what the new one is told."""
    one = watch(pair.ports[0])
    redis = Redis(url_of(one), reactor=turns.reactor)
    turns.result(redis.start())
    heard, ups = [], []
    line = Subscription(redis, {"news": heard.append}, hears_again=lambda: ups.append(redis.master))
    line.start(turns.reactor)
    turns.until(lambda: ups)
    # They are two masters, as where one was cut off from the sentinels and not from us.
    pair.promote()
    one.says = pair.ports[1]
    redis._made.failed(StoreError("the line is cut"))
    turns.until(lambda: redis._connection and redis.master == ("127.0.0.1", pair.ports[1]))

    line.look(60.0)
    turns.until(lambda: len(ups) == 2)
    pair.tell(1, "PUBLISH", "news", "here")
    turns.until(lambda: heard)

    assert heard == [b"here"]
    turns.result(line.stop())
    turns.result(redis.stop())


def test_the_way_follows_to_the_master_that_a_subscription_has_found(turns, watch, pair):
    one = watch(pair.ports[0])
    redis = Redis(url_of(one), reactor=turns.reactor)
    turns.result(redis.start())
    ups = []
    line = Subscription(redis, {"news": ups.append}, hears_again=lambda: ups.append(None))
    pair.promote()
    one.says = pair.ports[1]
    line.start(turns.reactor)

    turns.until(lambda: redis._connection and redis._connection.master == ("127.0.0.1", pair.ports[1]))
    turns.result(line.stop())
    turns.result(redis.stop())


def test_a_subscription_listens_to_no_replica(turns, watch, pair, monkeypatch):
    monkeypatch.setattr(subscription, "_AGAIN", 0.05)
    behind, right = watch(pair.ports[1]), watch(pair.ports[0])
    redis = Redis(url_of(right), reactor=turns.reactor)
    turns.result(redis.start())
    redis.sentinels = Sentinels(url_of(behind, right))
    ups = []
    line = Subscription(redis, {"news": ups.append}, hears_again=lambda: ups.append(line._line.master))
    line.start(turns.reactor)

    turns.until(lambda: ups and ups[-1] == ("127.0.0.1", pair.ports[0]))
    turns.until(lambda: behind.asked)
    turns.result(line.stop())
    turns.result(redis.stop())


# With sentinels that are some, and masters that die.


class Node:
    """A server as far as it counts."""

    def __init__(self, turns, url, clients):
        self.presence = Presence(0.0, 0.0)
        self.fleet = FleetPresence(url, reactor=turns.reactor)
        self.clients = clients
        self.fleet.start(self.presence)
        for name in clients:
            connection = self.presence.open(name)
            self.presence.announce(connection)
            self.presence.stand(connection, Standing.ACTIVE)


def counted(nodes):
    """Whether each says what a recount finds."""
    names = {name for node in nodes for name in node.clients}
    return all(node.fleet.is_up and node.fleet.counts.clients == len(names) for node in nodes)


@pytest.mark.slow
@redis_server.needs_sentinel
@pytest.mark.parametrize("sentinels", [1, 3])
def test_a_master_is_killed_and_nothing_that_was_replicated_is_lost(turns, tmp_path, sentinels):
    """Twice, there and back; what waits meanwhile is done in order, and all count what a recount finds."""
    with redis_server.Replicated(tmp_path, sentinels=sentinels) as pair:
        store = RedisStore(pair.url + "/1", reactor=turns.reactor)
        turns.result(store.start())
        turns.result(store.open(ALICE))
        crowds = [["ann", "bob"], ["bob", "cid"], ["dan"]]
        nodes = [Node(turns, pair.url, clients) for clients in crowds]
        turns.until(lambda: counted(nodes))
        said, numbers = [], []

        def say(count):
            for _ in range(count):
                said.append(b"%d" % len(said))
                store.append([Append("a", said[-1])]).addBoth(numbers.append)

        for _ in range(2):
            master = pair.master
            say(200)
            turns.until(lambda: len(numbers) == len(said))
            redis_server.replicate(master)

            pair.kill(master)
            began = time.monotonic()
            say(50)
            turns.until(lambda: len(numbers) == len(said), 40)
            print(f"{sentinels} sentinel(s): {time.monotonic() - began:.1f} s from the kill of a master to the answers")
            assert pair.master != master
            turns.until(lambda: counted(nodes), 30)
            print(f"counts are right {time.monotonic() - began:.1f} s after the kill")
            assert numbers == [(number + 1,) for number in range(len(said))]
            assert payloads(turns, store) == said

            # Sentinels tell it that it is a replica now.
            pair.start(master)
            pair.until(lambda: b"state=online" in redis_server.told(pair.master, "INFO", "replication"), 40)
        for node in nodes:
            turns.result(node.fleet.stop())
        turns.result(store.stop())


@pytest.mark.slow
@redis_server.needs_sentinel
def test_a_master_that_stands_still_is_left_and_comes_back_as_a_replica(turns, tmp_path):
    """It was asked before it stood still, and is woken when there is another: what it does then does not count."""
    with redis_server.Replicated(tmp_path) as pair:
        store = RedisStore(pair.url, reactor=turns.reactor)
        turns.result(store.start())
        turns.result(store.open(ALICE))
        first, numbers = pair.master, []
        redis_server.replicate(first)
        pair.pause(first, signal.SIGSTOP)
        for payload in (b"1", b"2"):
            store.append([Append("a", payload)]).addBoth(numbers.append)
        turns.until(lambda: len(numbers) == 2, 40)
        pair.pause(first, signal.SIGCONT)
        pair.until(lambda: redis_server.told(first, "ROLE")[0] == b"slave")
        assert turns.result(store.append([Append("a", b"3")])) == (3,)

        assert payloads(turns, store) == [b"1", b"2", b"3"]
        assert store._redis.master == ("127.0.0.1", pair.master) != ("127.0.0.1", first)
        turns.result(store.stop())
