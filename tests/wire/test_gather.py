"""What one server asks all others: gathered when all have answered, and without those that do not."""

import json

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from heartbeat.cluster import gather
from heartbeat.cluster.gather import Gathered, Gatherer
from heartbeat.core.errors import StoreError


def name_of(letter):
    """The name of a server in its fleet."""
    return letter * 16


def named(gathered):
    return Gathered({node[0]: answer for node, answer in gathered.answers.items()}, gathered.missing)


class Exchange:
    """What Redis does: whoever listens on a channel is told, and whoever tells hears how many these were."""

    def __init__(self):
        self.clock = Clock()
        #: By how much Redis' clock is ahead.
        self.ahead = 1_700_000_000_000
        self.ears = []
        self.said = []
        self.is_away = False

    @property
    def now(self):
        return round(1000 * self.clock.seconds()) + self.ahead

    def join(self, name, answering=None, *, database=0):
        node = name_of(name)
        one = Gatherer(node, "test:ask", database, self.publish, lambda: self.now)
        one.answering = answering or (lambda word, about: f"{word} of {name}")
        self.ears.append(one)
        return one

    def publish(self, channel, payload, until):
        if self.is_away:
            return fail(StoreError("away"))
        assert until is None or self.now <= until <= self.now + 1000 * gather._PATIENCE
        told = [one for one in self.ears if channel in one.channels]
        for one in told:
            self.clock.callLater(0.01, one.channels[channel], payload)
        self.said.append((channel, payload))
        return succeed(len(told))

    def ask(self, one, word="totals", about=None, *, nodes=None, is_up=True):
        """What is gathered; an empty list as long as nothing is."""
        gathered = []
        nodes = len(self.ears) if nodes is None else nodes
        asked = one.ask(word, about or {}, nodes=nodes, is_up=is_up, reactor=self.clock)
        asked.addCallback(lambda answer: gathered.append(named(answer)))
        return gathered

    def rest(self):
        """Have all be said that is to be said."""
        self.clock.pump([0.01] * 5)


@pytest.fixture
def exchange():
    exchange = Exchange()
    yield exchange
    assert exchange.clock.getDelayedCalls() == []
    assert all(one._rounds == {} for one in exchange.ears)


def test_all_are_asked_and_the_answers_are_those_of_all_our_own_first(exchange):
    """And as soon as the last is there."""
    exchange.join("b")
    here = exchange.join("a", lambda word, about: {"word": word, **about})
    exchange.join("c")

    gathered = exchange.ask(here, "clients", {"after": "n"})
    exchange.clock.advance(0.01)
    assert gathered == []
    exchange.clock.advance(0.01)

    assert gathered == [Gathered({"a": {"word": "clients", "after": "n"}, "b": "clients of b", "c": "clients of c"}, 0)]
    assert next(iter(gathered[0].answers)) == "a"


def test_an_answer_may_take_its_time(exchange):
    later = Deferred()
    here = exchange.join("a")
    exchange.join("b", lambda word, about: later)

    gathered = exchange.ask(here)
    exchange.rest()
    assert gathered == []
    later.callback("at last")
    exchange.rest()

    assert gathered == [Gathered({"a": "totals of a", "b": "at last"}, 0)]


def test_our_own_answer_may_be_the_last(exchange):
    later = Deferred()
    here = exchange.join("a", lambda word, about: later)
    exchange.join("b")

    gathered = exchange.ask(here)
    exchange.rest()
    assert gathered == []
    later.callback("own")

    assert gathered == [Gathered({"a": "own", "b": "totals of b"}, 0)]


def test_who_does_not_answer_is_missing_after_a_while_and_not_waited_for_for_longer(exchange):
    """What he says then is nothing any more."""
    later = Deferred()
    here = exchange.join("a")
    exchange.join("b", lambda word, about: later)

    gathered = exchange.ask(here)
    exchange.clock.advance(gather._PATIENCE - 0.01)
    assert gathered == []
    exchange.clock.advance(0.01)
    assert gathered == [Gathered({"a": "totals of a"}, 1)]
    later.callback("too late")
    exchange.rest()

    assert len(gathered) == 1


def test_who_is_known_to_be_there_and_is_not_told_is_missing_at_once(exchange):
    """He was killed, or his way to Redis is broken: Redis knows that he does not listen."""
    here = exchange.join("a")
    exchange.join("b")

    gathered = exchange.ask(here, nodes=4)
    exchange.rest()

    assert gathered == [Gathered({"a": "totals of a", "b": "totals of b"}, 2)]


def test_where_there_is_no_redis_only_we_ourselves_are_asked(exchange):
    here = exchange.join("a")
    exchange.join("b")

    assert exchange.ask(here, nodes=3, is_up=False) == [Gathered({"a": "totals of a"}, 2)]
    assert exchange.said == []


def test_where_redis_goes_away_just_then_the_others_are_missing(exchange):
    here = exchange.join("a")
    exchange.join("b")
    exchange.is_away = True

    assert exchange.ask(here) == [Gathered({"a": "totals of a"}, 1)]


def test_one_whose_answer_cannot_be_published_is_missing_and_nothing_fails_there(exchange):
    here = exchange.join("a")
    there = exchange.join("b")
    gathered = exchange.ask(here)
    exchange.is_away = True
    exchange.rest()
    exchange.clock.advance(gather._PATIENCE)

    assert gathered == [Gathered({"a": "totals of a"}, 1)]
    assert there._rounds == {}


def test_one_who_fails_at_it_is_missing_and_says_so_in_his_log(exchange, failures):
    def fails(word, about):
        raise ZeroDivisionError

    here = exchange.join("a")
    exchange.join("b", fails)

    gathered = exchange.ask(here)
    exchange.rest()

    assert gathered == [Gathered({"a": "totals of a"}, 1)]
    assert len(failures.flush(ZeroDivisionError)) == 1


def test_one_who_knows_nothing_of_that_is_missing(exchange):
    here = exchange.join("a")
    exchange.join("b", lambda word, about: None)

    gathered = exchange.ask(here)
    exchange.rest()

    assert gathered == [Gathered({"a": "totals of a"}, 1)]


def test_several_questions_at_once_get_an_answer_each(exchange):
    here, there = exchange.join("a"), exchange.join("b")

    first, second, third = exchange.ask(here, "first"), exchange.ask(here, "second"), exchange.ask(there, "third")
    exchange.rest()

    assert [list(one[0].answers.values()) for one in (first, second, third)] == [
        ["first of a", "first of b"],
        ["second of a", "second of b"],
        ["third of b", "third of a"],
    ]


def test_one_server_is_asked_by_its_name_and_nobody_else(exchange):
    asked = []
    here = exchange.join("a", lambda word, about: asked.append(word) or "own")
    exchange.join("b")
    exchange.join("c", lambda word, about: asked.append(word) or "another's")
    found = []

    def ask_one(node, *, is_up=True):
        here.ask_one(node, "drain", {}, is_up=is_up, reactor=exchange.clock).addCallback(
            lambda one: found.append(named(one))
        )
        exchange.rest()

    ask_one(name_of("b"))
    assert (found, asked) == ([Gathered({"b": "drain of b"}, 0)], [])

    for is_up in (True, False):
        ask_one(name_of("a"), is_up=is_up)
        assert (found.pop(), asked.pop()) == (Gathered({"a": "own"}, 0), "drain")

    # The common channel has no name that could be asked for.
    for nobody in (name_of("d"), "", "@0", "b", "B" * 16, name_of("b") + "@0", "\ud800"):
        ask_one(nobody)
        assert found.pop() == Gathered({}, 0)
    exchange.is_away = True
    ask_one(name_of("b"))
    assert found.pop() == Gathered({}, 1)
    exchange.is_away, exchange.publish = False, lambda *_: Deferred()
    here._publish = exchange.publish
    ask_one(name_of("b"))
    exchange.clock.advance(gather._PATIENCE)
    assert found.pop() == Gathered({}, 1)
    ask_one(name_of("b"), is_up=False)
    assert (found.pop(), asked) == (Gathered({}, 1), [])


def test_who_stops_waits_for_nobody(exchange):
    here = exchange.join("a")
    exchange.join("b", lambda word, about: Deferred())
    gathered = exchange.ask(here)

    here.stop()

    assert gathered == [Gathered({"a": "totals of a"}, 1)]
    exchange.rest()


def test_fleets_on_other_databases_of_the_same_redis_are_not_asked(exchange):
    """Channels are common to all databases."""
    here = exchange.join("a")
    exchange.join("b", database=1)

    gathered = exchange.ask(here, nodes=1)
    exchange.rest()

    assert gathered == [Gathered({"a": "totals of a"}, 0)]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'"totals"',
        b"[" * 200_000,
        b'{"node":"bbbbbbbbbbbbbbbb","number":1,"said":NaN}',
        b'{"from":1,"number":1,"until":9e99,"word":"totals","about":{}}',
        b'{"from":"bbbbbbbbbbbbbbbb","number":1,"until":9000000000000,"word":"totals","about":[]}',
        b'{"from":"bbbbbbbbbbbbbbbb","number":"1","until":9000000000000,"word":"totals","about":{}}',
        b'{"from":"bbbbbbbbbbbbbbbb","number":1,"word":"totals","about":{}}',
        b'{"from":"\\ud800","number":1,"until":9000000000000,"word":"totals","about":{}}',
        b'{"from":"b","number":1,"until":9000000000000,"word":"totals","about":{}}',
        b'{"from":"aaaaaaaaaaaaaaaa","number":99}',
        b'{"node":"bbbbbbbbbbbbbbbb","number":99,"said":{}}',
    ],
    ids=lambda payload: payload.decode("latin-1")[:60],
)
def test_what_is_neither_a_question_nor_an_answer_to_one_is_passed_over(exchange, payload):
    """Whoever may write to that Redis may say anything there; a server of a later version does."""
    here = exchange.join("a")

    for hear in here.channels.values():
        hear(payload)

    assert exchange.said == []
    gathered = exchange.ask(here)
    exchange.rest()
    assert gathered == [Gathered({"a": "totals of a"}, 0)]


def test_what_is_said_is_json_that_names_who_asks(exchange):
    """As servers of other versions read it."""
    here = exchange.join("a")
    exchange.join("b")
    exchange.ask(here, "clients", {"after": "n"})
    exchange.rest()

    until = exchange.ahead + 1000 * gather._PATIENCE
    question = {"from": name_of("a"), "number": 1, "until": until, "word": "clients", "about": {"after": "n"}}
    assert [(channel, json.loads(payload)) for channel, payload in exchange.said] == [
        ("test:ask@0", question),
        (f"test:ask:{name_of('a')}@0", {"node": name_of("b"), "number": 1, "said": "clients of b"}),
    ]


def test_what_is_heard_when_nobody_waits_for_it_any_more_is_not_done(exchange):
    """By a server that stood still, and reads it when it goes on: whoever asked was told that it has not answered."""
    done = []
    here = exchange.join("a")
    there = exchange.join("b", lambda word, about: done.append(word) or True)
    hear, heard = there.channels["test:ask@0"], []
    there.channels["test:ask@0"] = heard.append
    gathered = exchange.ask(here, "kick")
    exchange.rest()
    exchange.clock.advance(gather._PATIENCE)
    hear(heard[0])
    assert (gathered, done) == ([Gathered({"a": "kick of a"}, 1)], [])

    exchange.ask(here, "kick")
    exchange.rest()
    hear(heard[1])
    exchange.rest()
    assert done == ["kick"]


def test_what_is_published_twice_is_done_once_and_its_answer_is_the_first(exchange):
    """As after a connection to Redis that broke before Redis had answered."""
    done = []
    here = exchange.join("a")
    there = exchange.join("b", lambda word, about: done.append(word) or len(done))
    there.channels["test:ask@0"] = lambda payload: [there._hear(payload) for _ in range(2)]
    late = Deferred()
    exchange.join("c", lambda word, about: late)
    gathered = exchange.ask(here, "kick")
    exchange.rest()
    assert (done, gathered) == (["kick"], [])
    for answer in (1, 2):
        here._hear(json.dumps({"node": name_of("b"), "number": 1, "said": answer}).encode())
    assert gathered == []
    late.callback(0)
    exchange.rest()

    assert gathered == [Gathered({"a": "kick of a", "b": 1, "c": 0}, 0)]


def test_of_many_servers_that_ask_the_last_questions_are_remembered(exchange, monkeypatch):
    monkeypatch.setattr(gather, "_ASKERS", 2)
    there = exchange.join("b")
    for name in "cdef":
        asker = exchange.join(name)
        exchange.ask(asker, nodes=0)
        exchange.rest()

    assert list(there._last_of) == [name_of("e"), name_of("f")]


def test_so_many_questions_are_out_and_who_asks_more_hears_only_our_own_answer(exchange):
    later = []
    here = exchange.join("a")
    exchange.join("b", lambda word, about: later.append(Deferred()) or later[-1])
    out = [exchange.ask(here) for _ in range(gather._MOST)]
    assert exchange.ask(here) == [Gathered({"a": "totals of a"}, 1)]
    # Nor is a server that is not asked now one that is not there.
    found = []
    here.ask_one(name_of("b"), "drain", {}, is_up=True, reactor=exchange.clock).addCallback(found.append)
    assert found == [Gathered({}, 1)]

    exchange.rest()
    for answer in later:
        answer.callback("b")
    exchange.rest()
    assert [one[0].missing for one in out] == [0] * gather._MOST
    again = exchange.ask(here)
    exchange.rest()
    later[-1].callback("b")
    exchange.rest()
    assert again[0].missing == 0


def test_our_own_answer_is_waited_for_however_late_it_is(exchange):
    """It is what is left where nobody else answers."""
    later = Deferred()
    here = exchange.join("a", lambda word, about: later)
    exchange.join("b", lambda word, about: Deferred())
    gathered = exchange.ask(here)
    exchange.rest()
    exchange.clock.advance(gather._PATIENCE)
    assert gathered == []
    later.callback("own")

    assert gathered == [Gathered({"a": "own"}, 1)]
