"""A session to which others append as well: its messages go out in the order of their numbers, whoever asked first."""

import pytest
from twisted.internet.defer import Deferred

from heartbeat import Unconfirmed
from heartbeat.channel import Channel
from heartbeat.core.session import Bounds, Session
from heartbeat.store import Append, Kept


class Owner:
    """What all channels have in common, and a store that answers when it is told to."""

    def __init__(self):
        self.store = self
        self.asked = []
        self.charged = 0
        self.said = []

    def now(self):
        return 0.0

    def charge(self, channel, size, *, beyond):
        self.charged += size

    def credit(self, channel, size):
        self.charged -= size

    def append(self, effects):
        self.asked.append(Deferred())
        return self.asked[-1]

    def confirm(self, sid, fence, upto, effects):
        return (None,) * len(effects)

    def carry_out(self, result, effects, **then):
        """All of it is done at once."""

    def settled(self, channel, seq, receipt, *, confirmed):
        self.said.append((seq, receipt, confirmed))
        return ()

    def behind(self, channel):
        self.said.append("behind")

    def lost(self, channel, why=None):
        self.said.append("lost")

    def expire(self, channel, effects):
        """The session is over."""

    def over(self, channel, error):
        self.said.append(error.messages)

    def filled(self, channel):
        """There is no room any more."""

    def noted(self, receipt):
        """A message with a receipt is kept."""

    def queued(self, channel):
        """Nothing waits."""


@pytest.fixture
def owner():
    """What the channel leans on."""
    return Owner()


@pytest.fixture
def channel(owner):
    """A channel of a session in which nothing was sent; in the end its books are right."""
    channel = Channel(Session("s", "e", "bob", Bounds(100, 10_000)), owner, waits=True)
    yield channel
    if not channel.ended:
        assert owner.charged == channel.session.weight


def note(number):
    return {"type": "note", "n": number}


def payload(number):
    return b'{"type":"note","n":%d}' % number


def kept(channel):
    """The numbers of the notes that it keeps, in order."""
    return [int(one.rpartition(b":")[2][:-1]) for one in channel.session.kept]


def test_what_is_committed_behind_others_waits_for_them(channel, owner):
    told = []
    channel.send(note(2)).addCallback(told.append)
    owner.asked[0].callback((2,))
    assert (kept(channel), channel.is_ahead, owner.said) == ([], True, ["behind"])

    channel.catch_up([Kept(1, payload(1), None), Kept(2, payload(2), None)])
    assert (kept(channel), channel.is_ahead, told) == ([1, 2], False, [])
    channel.session.confirm(2)
    channel.confirmed()
    assert told == [None]


def test_those_that_waited_follow_when_what_was_missing_comes_by_itself(channel, owner):
    channel.appended(Kept(3, payload(3), None))
    channel.appended(Kept(2, payload(2), None))
    assert kept(channel) == []

    channel.appended(Kept(1, payload(1), None))

    assert (kept(channel), channel.is_ahead) == ([1, 2, 3], False)


def test_what_was_read_before_its_own_answer_came_is_there_once_and_its_sender_is_told(channel, owner):
    """The connection to the store had broken between the question and the answer, and both were asked again."""
    told = []
    channel.send(note(1)).addCallback(told.append)
    channel.catch_up([Kept(1, payload(1), None)])
    assert kept(channel) == [1]

    owner.asked[0].callback((1,))
    assert kept(channel) == [1]
    channel.session.confirm(1)
    channel.confirmed()
    assert (told, owner.said) == ([None], [])


def test_another_message_under_a_number_that_we_have_is_not_believed(channel, owner):
    """The store has lost some of what it had; the sender is told that his was not kept."""
    failed = []
    channel.appended(Kept(1, payload(1), None))
    channel.send(note(2)).addErrback(failed.append)
    owner.asked[0].callback((1,))

    assert (kept(channel), owner.said) == ([1], ["lost"])
    assert failed[0].check(Unconfirmed)
    assert (failed[0].value.messages, failed[0].value.reason) == ((note(2),), "store")


def test_nor_is_one_under_a_number_that_was_confirmed(channel, owner):
    channel.appended(Kept(1, payload(1), None))
    channel.session.confirm(1)
    channel.confirmed()

    channel.appended(Kept(1, payload(2), None))

    assert (kept(channel), owner.said) == ([], ["lost"])


def test_a_store_in_which_some_are_missing_is_not_believed(channel, owner):
    channel.catch_up([Kept(2, payload(2), None)])

    assert (kept(channel), owner.said) == ([], ["lost"])


def test_one_that_is_ahead_when_the_session_ends_is_named_and_takes_no_room(channel, owner):
    failed = []
    channel.send(note(2)).addErrback(failed.append)
    owner.asked[0].callback((2,))
    weight = channel.session.weight

    channel.end("expired")

    assert owner.said == ["behind", (note(2),)]
    assert failed[0].value.messages == (note(2),)
    assert weight == len(payload(2))


def test_each_receipt_is_settled_by_the_number_of_its_message(channel, owner):
    for number in (1, 2, 3, 4):
        channel.appended(Kept(number, payload(number), f"r{number}"))
    channel.session.confirm(2)
    channel.confirmed()
    channel.end("expired")

    assert owner.said[:4] == [(1, "r1", True), (2, "r2", True), (3, "r3", False), (4, "r4", False)]


def test_an_effect_of_ours_takes_its_turn_too(channel, owner):
    channel.admit(len(payload(2)))
    channel.kept(2, Append("s", payload(2)))
    channel.appended(Kept(1, payload(1), None))

    assert (kept(channel), channel.session.is_storing) == ([1, 2], False)
