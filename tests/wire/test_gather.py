"""What one server asks all others: gathered when all have answered, and without those that do not."""

import json

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from heartbeat.cluster import gather
from heartbeat.cluster.gather import Gathered, Gatherer
from heartbeat.core.errors import StoreError


class Exchange:
    """What Redis does: whoever listens on a channel is told, and whoever tells hears how many these were."""

    def __init__(self):
        self.clock = Clock()
        self.ears = []
        self.said = []
        self.is_away = False

    def join(self, node, answering=None, *, database=0):
        one = Gatherer(node, "test:ask", database, self.publish)
        one.answering = answering or (lambda word, about: f"{word} of {node}")
        self.ears.append(one)
        return one

    def publish(self, channel, payload):
        if self.is_away:
            return fail(StoreError("away"))
        told = [one for one in self.ears if channel in one.channels]
        for one in told:
            self.clock.callLater(0.01, one.channels[channel], payload)
        self.said.append((channel, payload))
        return succeed(len(told))

    def ask(self, one, word="totals", about=None, *, nodes=None):
        """What is gathered; an empty list as long as nothing is."""
        gathered = []
        nodes = len(self.ears) if nodes is None else nodes
        one.ask(word, about or {}, nodes=nodes, reactor=self.clock).addCallback(gathered.append)
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

    assert exchange.ask(here, nodes=0) == [Gathered({"a": "totals of a"}, 0)]
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

    here.ask_one("b", "drain", {}, reactor=exchange.clock).addCallback(found.append)
    exchange.rest()
    assert (found, asked) == ([Gathered({"b": "drain of b"}, 0)], [])

    here.ask_one("a", "drain", {}, reactor=exchange.clock).addCallback(found.append)
    assert (found[1:], asked) == ([Gathered({"a": "own"}, 0)], ["drain"])

    here.ask_one("nobody", "drain", {}, reactor=exchange.clock).addCallback(found.append)
    assert found[2:] == [Gathered({}, 0)]


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
        b'{"from":1,"number":1,"word":"totals","about":{}}',
        b'{"from":"b","number":"1","word":"totals","about":{}}',
        b'{"from":"b","number":1,"word":"totals","about":[]}',
        b'{"from":"a","number":99}',
        b'{"node":"b","number":99,"said":{}}',
    ],
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

    assert [(channel, json.loads(payload)) for channel, payload in exchange.said] == [
        ("test:ask@0", {"from": "a", "number": 1, "word": "clients", "about": {"after": "n"}}),
        ("test:ask:a@0", {"node": "b", "number": 1, "said": "clients of b"}),
    ]
