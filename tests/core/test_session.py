"""One end of a session: nothing is lost, nothing comes twice, all in order, and nothing is kept beyond the bounds."""

import json
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat.core.errors import PeerError, SessionFull, StateError, Violation
from heartbeat.core.messages import ack_frame
from heartbeat.core.session import ACK_EVERY, MEMBERS, Arrived, Bounds, Resume, Session

#: 16 bytes of JSON.
HI = b'{"type":"hello"}'


def session(messages=1000, size=1_048_576, **numbers):
    return Session("s-1", "e-1", "alice", Bounds(messages, size), **numbers)


def sent(count, **bounds):
    """A session in which so many messages, 16 bytes each, are committed, and none of them written."""
    end = session(**bounds)
    for seq in range(1, count + 1):
        end.appended(seq, HI)
    return end


def received(count, **bounds):
    """A session that has received so many messages, 16 bytes each, and handled none of them."""
    end = session(**bounds)
    for seq in range(1, count + 1):
        assert end.take(seq, {"type": "hello"}, 16)
    return end


def handle(end, count):
    """Let the next messages be handled, one after the other."""
    for _ in range(count):
        assert end.next() is not None
        end.finished()


def written(end):
    """All the frames that go out now."""
    return list(iter(end.next_frame, None))


def frame(seq, ack=0):
    return b'{"type":"hello","seq":%d,"ack":%d}' % (seq, ack)


def outgoing(end):
    """The highest number committed, the highest confirmed, and the messages and bytes that are kept."""
    return (end.sent, end.confirmed, len(end.kept), end.kept_bytes)


def incoming(end):
    """The highest number received, the highest handled, and whether nothing waits and nothing is owed."""
    return (end.received, end.handled, end.is_idle, end.owes)


def breaks(code, step, *arguments):
    """The sentence with which the other end's step is refused, closing with this code."""
    with pytest.raises(Violation) as caught:
        step(*arguments)
    assert caught.value.code == code
    return caught.value.detail


# A new session


def test_a_new_session_has_sent_nothing_received_nothing_and_owes_nothing():
    end = session()

    assert (end.sid, end.epoch, end.client_id, end.bounds) == ("s-1", "e-1", "alice", (1000, 1_048_576, 65_536))
    assert (end.attempt, end.fence) == (0, 0)
    assert outgoing(end) == (0, 0, 0, 0)
    assert incoming(end) == (0, 0, True, False)
    assert (end.kept, end.weight, end.is_full, end.is_written, end.owes_much) == ((), 0, False, True, False)
    assert (end.next_frame(), end.next()) == (None, None)


# Bounds


def test_a_message_has_room_up_to_the_bounds_of_messages_and_of_bytes():
    end = session(messages=2, size=100)

    assert (end.has_room(100), end.has_room(101)) == (True, False)
    end.admit(60)
    assert (end.has_room(40), end.has_room(41)) == (True, False)
    end.admit(1)
    assert not end.has_room(1)


@pytest.mark.parametrize(("messages", "size"), [(3, 1000), (1000, 48)])
def test_a_session_is_full_at_the_bound_of_messages_or_of_bytes(messages, size):
    end = sent(2, messages=messages, size=size)
    assert not end.is_full

    end.appended(3, HI)

    assert end.is_full
    assert not end.has_room(1)


def test_room_is_taken_while_a_message_is_on_its_way_into_the_store():
    end = session(messages=1)

    end.admit(16)
    assert (end.is_storing, end.count, end.weight, end.is_full, outgoing(end)) == (True, 1, 16, True, (0, 0, 0, 0))

    end.release(16)
    end.appended(1, HI)
    assert (end.is_storing, end.weight, end.is_full, outgoing(end)) == (False, 16, True, (1, 0, 1, 16))


def test_what_waits_for_its_handler_is_counted_until_that_has_finished():
    end = received(2)
    assert end.waiting == (2, 32)

    end.next()
    assert end.waiting == (2, 32)
    end.finished()
    assert end.waiting == (1, 16)
    handle(end, 1)
    assert end.waiting == (0, 0)


def test_what_was_given_away_is_what_was_ever_written():
    """What is committed above it nobody has seen, on whichever connection."""
    end = sent(3)
    assert end.given_away == 0
    end.next_frame()
    end.next_frame()
    end.resume(1)

    assert end.given_away == 2
    written(end)
    assert end.given_away == 3


def test_room_that_was_given_back_is_there_again():
    end = session(messages=1)
    end.admit(16)

    end.release(16)

    assert (end.is_storing, end.weight, end.is_full, end.has_room(16)) == (False, 0, False, True)


@pytest.mark.parametrize(("messages", "size"), [(2, 1000), (1000, 40)])
def test_what_has_no_room_is_refused_in_one_sentence_and_takes_none(messages, size):
    end = sent(1, messages=messages, size=size)
    end.admit(16)

    with pytest.raises(SessionFull) as caught:
        end.admit(16)

    assert str(caught.value) == (
        f"2 messages of 32 bytes wait to be confirmed, and at most {messages} of {size} bytes are kept"
        " (settings kept_limit, kept_bytes)"
    )
    assert end.weight == 32


@pytest.mark.parametrize(
    ("kept", "messages", "size", "room"),
    [(3, 2, 1000, True), (4, 2, 1000, False), (1, 1000, 16, True), (2, 1000, 16, False), (1, 1000, 15, False)],
)
def test_an_answer_has_room_beyond_the_bound_up_to_twice_as_much(kept, messages, size, room):
    assert sent(kept, messages=messages, size=size).has_room_beyond(16) is room


def test_what_is_on_its_way_into_the_store_takes_room_beyond_the_bound_too():
    end = session(messages=1)
    end.admit(16)
    assert end.has_room_beyond(16)

    end.admit(16, beyond=True)

    assert not end.has_room_beyond(1)


def test_what_must_be_kept_is_kept_beyond_the_bounds():
    end = sent(1, messages=1, size=16)

    end.admit(16, beyond=True)
    end.release(16)
    end.appended(2, HI)

    assert (outgoing(end), end.weight, end.is_full) == ((2, 0, 2, 32), 32, True)


@pytest.mark.parametrize(
    ("kept", "messages", "size", "over"),
    [
        (0, 4, 1000, False),
        (1, 4, 1000, False),
        (2, 4, 1000, True),
        (2, 5, 1000, True),
        (0, 1000, 32, False),
        (0, 1000, 31, True),
        (1, 1000, 64, False),
        (1, 1000, 63, True),
    ],
)
def test_a_message_may_take_a_session_over_half_of_a_bound(kept, messages, size, over):
    assert sent(kept, messages=messages, size=size).half_full(16) is over


def test_what_is_on_its_way_into_the_store_counts_for_the_half_too():
    end = session(messages=4)
    assert not end.half_full(1)

    end.admit(1)
    end.admit(1)

    assert end.half_full(1)


# What goes out


def test_messages_are_kept_under_their_numbers_oldest_first():
    end = session()

    end.appended(1, b'{"type":"a"}')
    end.appended(2, b'{"type":"bc"}')

    assert end.kept == (b'{"type":"a"}', b'{"type":"bc"}')
    assert outgoing(end) == (2, 0, 2, 25)
    assert not end.is_written


@pytest.mark.parametrize("seq", [0, 1, 3])
def test_a_number_that_is_not_the_next_is_a_bug_and_nothing_has_changed(seq):
    end = sent(1)

    with pytest.raises(StateError, match=f"message {seq} was committed after message 1"):
        end.appended(seq, HI)

    assert outgoing(end) == (1, 0, 1, 16)


def test_a_message_is_written_once_with_its_number_and_what_we_have_handled():
    end = sent(2)

    assert end.next_frame() == b'{"type":"hello","seq":1,"ack":0}'
    assert not end.is_written
    assert end.next_frame() == b'{"type":"hello","seq":2,"ack":0}'

    assert end.is_written
    assert end.next_frame() is None
    assert outgoing(end) == (2, 0, 2, 32)


def test_what_a_message_says_is_written_as_it_was_kept():
    end = session()
    end.appended(1, '{"type":"x","text":"grüß }","n":[1,{}]}'.encode())

    assert end.next_frame() == '{"type":"x","text":"grüß }","n":[1,{}],"seq":1,"ack":0}'.encode()


def test_a_message_tells_what_was_handled_until_it_goes_out():
    end = received(3)
    end.appended(1, HI)
    handle(end, 2)
    assert end.owes

    assert end.next_frame() == frame(1, 2)

    assert incoming(end) == (3, 2, False, False)


def test_what_the_other_end_has_handled_is_forgotten():
    end = sent(3)
    written(end)

    assert end.confirm(2) == 2
    assert (outgoing(end), end.kept) == ((3, 2, 1, 16), (HI,))
    assert end.confirm(3) == 1

    assert (outgoing(end), end.kept) == ((3, 3, 0, 0), ())
    assert end.is_written


@pytest.mark.parametrize("upto", [0, 1, 2])
def test_what_was_confirmed_before_forgets_nothing(upto):
    end = sent(3)
    end.confirm(2)

    assert end.confirm(upto) == 0

    assert outgoing(end) == (3, 2, 1, 16)


def test_a_message_that_was_confirmed_before_it_was_written_here_is_not_written():
    end = sent(3)

    assert end.confirm(2) == 2

    assert written(end) == [frame(3)]


def test_messages_go_on_where_the_confirmed_ones_ended():
    end = sent(2)
    written(end)
    end.confirm(2)

    end.appended(3, HI)

    assert written(end) == [frame(3)]
    assert outgoing(end) == (3, 2, 1, 16)


@pytest.mark.parametrize("count", [0, 2])
def test_an_ack_above_what_was_sent_breaks_the_rules(count):
    end = sent(count)

    assert breaks(4011, end.confirm, count + 1) == f"ack {count + 1} is above what was sent"

    assert outgoing(end) == (count, 0, count, 16 * count)


# What comes in


def test_messages_are_handled_one_at_a_time_in_the_order_of_their_numbers():
    end = session()
    assert end.take(1, {"type": "a"}, 12)
    assert end.take(2, {"type": "b"}, 13)
    assert incoming(end) == (2, 0, False, False)

    assert end.next() == Arrived(1, {"type": "a"}, 12)
    assert end.next() is None
    assert incoming(end) == (2, 0, False, False)

    end.finished()
    assert incoming(end) == (2, 1, False, True)
    assert end.next() == Arrived(2, {"type": "b"}, 13)
    end.finished()
    assert incoming(end) == (2, 2, True, True)
    assert end.next() is None


def test_a_message_that_deserves_an_error_is_counted_and_handled_like_any():
    end, error = session(), PeerError("bad-message", "a message has a type, and the type is text")

    assert end.take(1, error, 20)

    assert end.next() == Arrived(1, error, 20)
    end.finished()
    assert incoming(end) == (1, 1, True, True)


@pytest.mark.parametrize("seq", [1, 2, 3])
def test_a_duplicate_is_dropped_whatever_became_of_the_first(seq):
    """One was handled, one is being handled, one waits."""
    end = received(3)
    handle(end, 1)
    end.next()

    assert not end.take(seq, {"type": "hello"}, 16)

    assert incoming(end) == (3, 1, False, True)
    end.finished()
    handle(end, 1)
    assert end.next() is None


@pytest.mark.parametrize(("before", "seq"), [(0, 2), (2, 4), (2, 1_000_000)])
def test_a_gap_breaks_the_rules_and_nothing_has_changed(before, seq):
    end = received(before)

    assert breaks(4010, end.take, seq, {"type": "hello"}, 16) == f"message {seq} came after message {before}"

    assert (end.received, end.handled) == (before, 0)


def test_more_messages_than_twice_the_bound_before_one_is_handled_break_the_rules():
    """Answers go out beyond the bound, up to twice as much."""
    end = received(8, messages=4)

    detail = breaks(1008, end.take, 9, {"type": "hello"}, 16)

    assert detail == "more than twice what limits.kept and limits.kept_bytes allow at once"
    assert incoming(end) == (8, 0, False, False)
    handle(end, 1)
    assert end.take(9, {"type": "hello"}, 16)


def test_more_bytes_than_twice_the_bound_and_64_kib_and_what_a_session_adds_break_the_rules():
    """The other end may count its bytes in another way."""
    end = session(size=1000)
    assert end.take(1, {"type": "hello"}, 60_000)
    assert end.take(2, {"type": "hello"}, 2000 + 65_536 + 2 * MEMBERS - 60_000)

    breaks(1008, end.take, 3, {"type": "hello"}, MEMBERS + 1)

    assert incoming(end) == (2, 0, False, False)
    assert end.take(3, {"type": "hello"}, MEMBERS)
    handle(end, 3)
    assert end.take(4, {"type": "hello"}, 2000 + 65_536 + MEMBERS)


def test_a_message_that_is_being_handled_still_counts_for_the_bounds():
    end = received(8, messages=4)
    end.next()

    breaks(1008, end.take, 9, {"type": "hello"}, 16)


def test_who_is_trusted_never_sends_too_much_but_leaves_no_gap_either():
    end = received(8, messages=4, size=100)

    assert end.take(9, {"type": "hello"}, 1_000_000, trusted=True)
    assert not end.take(9, {"type": "hello"}, 1_000_000, trusted=True)
    with pytest.raises(Violation, match="message 11 came after message 9"):
        end.take(11, {"type": "hello"}, 16, trusted=True)

    assert incoming(end) == (9, 0, False, False)


def test_that_a_handler_finished_where_none_was_running_is_a_bug():
    end = received(1)

    with pytest.raises(StateError, match="finished, and nothing was being handled"):
        end.finished()

    assert incoming(end) == (1, 0, False, False)
    handle(end, 1)
    with pytest.raises(StateError):
        end.finished()


# What is owed


def test_what_was_handled_is_owed_until_it_is_told():
    end = received(2)
    assert not end.owes

    handle(end, 2)
    assert (end.owes, end.owes_much) == (True, False)

    assert end.tell() == 2
    assert not end.owes


def test_thirty_two_messages_are_much_to_owe():
    end = received(2 * ACK_EVERY)
    assert ACK_EVERY == 32

    handle(end, 31)
    assert (end.owes, end.owes_much) == (True, False)
    handle(end, 1)
    assert end.owes_much

    end.tell()
    assert not end.owes_much
    handle(end, 31)
    assert not end.owes_much


@pytest.mark.parametrize("size", [64, 100, 1000])
def test_a_quarter_of_the_bytes_is_much_to_owe(size):
    end = received(100, size=size)
    quarter = ceil(size / 4 / 16)
    assert quarter < ACK_EVERY

    handle(end, quarter - 1)
    assert not end.owes_much
    handle(end, 1)
    assert end.owes_much

    end.tell()
    assert not end.owes_much


# Coming back


@pytest.mark.parametrize(
    ("last", "theirs", "fits"),
    [(1, 2, True), (3, 2, True), (3, 9, True), (0, 2, False), (4, 2, False), (3, 1, False)],
)
def test_the_numbers_of_who_comes_back_fit_if_nothing_is_missing_on_either_side(last, theirs, fits):
    """Of three sent the first was confirmed, and two were received."""
    end = received(2)
    for seq in (1, 2, 3):
        end.appended(seq, HI)
    end.confirm(1)

    assert end.judge(last, theirs) is fits

    assert outgoing(end) == (3, 1, 2, 32)
    assert incoming(end) == (2, 0, False, False)


def test_a_resumed_session_writes_again_all_that_was_not_handled():
    end = sent(3)
    assert written(end) == [frame(1), frame(2), frame(3)]

    end.resume(1)

    assert (outgoing(end), end.is_written) == ((3, 1, 2, 32), False)
    assert written(end) == [frame(2), frame(3)]


def test_a_session_that_resumes_with_all_handled_has_nothing_to_write():
    end = sent(3)
    end.next_frame()

    end.resume(3)

    assert (outgoing(end), end.is_written, end.next_frame()) == ((3, 3, 0, 0), True, None)


def test_what_was_written_and_not_handled_is_written_again_with_what_is_handled_now():
    end = sent(1)
    assert end.next_frame() == frame(1, 0)
    assert end.take(1, {"type": "hello"}, 16)
    handle(end, 1)

    end.resume(0)

    assert end.next_frame() == frame(1, 1)


def test_a_resume_beyond_what_was_sent_breaks_the_rules():
    end = sent(2)

    breaks(4011, end.resume, 3)

    assert outgoing(end) == (2, 0, 2, 32)


def test_a_resumed_session_goes_on_receiving_where_it_was():
    end = received(2)
    end.next()

    end.resume(0)

    assert not end.take(2, {"type": "hello"}, 16)
    assert end.take(3, {"type": "hello"}, 16)
    assert incoming(end) == (3, 0, False, False)


def test_what_is_handled_after_it_was_told_is_still_owed_by_the_resumed_session():
    """A client names what it has handled in its opening; its handlers do not wait for the answer."""
    end = received(2)
    handle(end, 1)
    assert end.tell() == 1
    handle(end, 1)

    end.resume(0)

    assert (end.owes, end.tell()) == (True, 2)


def test_only_the_second_stumble_with_no_progress_between_is_one_too_many():
    end = sent(2)
    told = []

    told.append(end.stumble())
    end.confirm(1)
    told.append(end.stumble())
    end.take(1, {"type": "hello"}, 16)
    told += [end.stumble(), end.stumble(), end.stumble()]

    assert told == [False, False, False, True, True]


# Out of a store


def test_a_session_that_a_store_remembers_goes_on_where_it_was_committed():
    end = session(sent=5, confirmed=3, handled=7, attempt=2, fence=4, kept=(HI, HI))

    assert (outgoing(end), incoming(end)) == ((5, 3, 2, 32), (7, 7, True, False))
    assert (end.attempt, end.fence, end.weight, end.is_written) == (2, 4, 32, False)
    assert written(end) == [frame(4, 7), frame(5, 7)]
    assert not end.take(7, {"type": "hello"}, 16)
    assert end.take(8, {"type": "hello"}, 16)
    assert end.confirm(4) == 1
    end.appended(6, HI)
    assert (outgoing(end), written(end)) == ((6, 4, 2, 32), [frame(6, 7)])


@pytest.mark.parametrize(("confirmed", "kept"), [(3, ()), (3, (HI,)), (3, (HI,) * 3), (5, (HI,))])
def test_a_store_that_keeps_more_or_less_than_was_not_confirmed_is_a_bug(confirmed, kept):
    sentence = f"a session that sent 5 and had {confirmed} confirmed keeps not {len(kept)}"

    with pytest.raises(StateError, match=sentence):
        session(sent=5, confirmed=confirmed, kept=kept)


def test_what_a_client_says_of_its_session_never_changes():
    assert Resume("s-1", "e-1", 1, 2, 3).__dataclass_params__.frozen


# Whatever happens

MOST = 5

CLIENT, SERVER = "client", "server"


def other(name):
    return SERVER if name == CLIENT else CLIENT


class Pair:
    """The two ends of a session, a connection that is cut at any time, handlers that take theirs, and crashes."""

    def __init__(self):
        self.ends = {name: session(messages=MOST) for name in (CLIENT, SERVER)}
        #: What each end has sent, and what it has handled.
        self.sent = {name: [] for name in self.ends}
        self.handled = {name: [] for name in self.ends}
        #: The messages whose handlers are running.
        self.running = dict.fromkeys(self.ends)
        #: The frames under way, by who wrote them.
        self.frames = {name: [] for name in self.ends}
        self.connected = True

    def send(self, name):
        end, message = self.ends[name], b'{"n":%d}' % len(self.sent[name])
        try:
            end.admit(len(message))
        except SessionFull:
            assert end.sent - end.confirmed == MOST
            return
        end.release(len(message))
        end.appended(end.sent + 1, message)
        self.sent[name].append(message)

    def write(self, name):
        written = self.ends[name].next_frame() if self.connected else None
        if written is not None:
            self.frames[name].append(written)

    def acknowledge(self, name):
        end = self.ends[name]
        if self.connected and end.owes:
            self.frames[name].append(ack_frame(end.tell()))

    def arrive(self, name):
        """The oldest frame under way, written by `name`, comes to the other end."""
        if not self.frames[name]:
            return
        end, message = self.ends[other(name)], json.loads(self.frames[name].pop(0))
        end.confirm(message["ack"])
        if "seq" in message:
            before, seq = end.received, message["seq"]
            assert end.take(seq, {"n": message["n"]}, 7) is (seq > before)

    def handle(self, name):
        """A handler finishes, and the next one begins."""
        end, running = self.ends[name], self.running[name]
        if running is not None:
            self.handled[name].append(b'{"n":%d}' % running.message["n"])
            end.finished()
        self.running[name] = end.next()

    def cut(self):
        """What was under way is lost."""
        self.connected = False
        self.frames = {name: [] for name in self.ends}

    def crash(self, name):
        """What was committed is left of it; a handler that had not finished has done nothing."""
        self.cut()
        end = self.ends[name]
        self.ends[name] = session(
            messages=MOST, sent=end.sent, confirmed=end.confirmed, handled=end.handled, kept=end.kept
        )
        self.running[name] = None

    def resume(self, *, answer_arrives=True):
        """The client comes back, and handles something before the answer arrives, if it does."""
        if self.connected:
            return
        client, server = self.ends[CLIENT], self.ends[SERVER]
        last, count = client.tell(), client.sent
        self.handle(CLIENT)
        assert server.judge(last, count)
        server.resume(last)
        last, count = server.tell(), server.sent
        if answer_arrives:
            assert client.judge(last, count)
            client.resume(last)
            self.connected = True

    def in_peace(self):
        """Nothing is cut any more, and everything happens that still has to."""
        self.resume()
        for step in (self.write, self.arrive, self.handle, self.acknowledge, self.arrive):
            for _ in range(2 * MOST):
                for name in self.ends:
                    step(name)

    def hold_what_they_promise(self):
        for name, end in self.ends.items():
            peer, handled = self.ends[other(name)], self.handled[other(name)]
            # In order, once, and nothing between is missing.
            assert handled == self.sent[name][: peer.handled]
            # Nothing is forgotten before it was handled, and nothing kept for longer than that is known.
            assert end.confirmed <= peer.handled <= peer.received <= end.sent
            assert end.kept == tuple(self.sent[name][end.confirmed :])
            assert end.kept_bytes == end.weight == sum(map(len, end.kept))
            # What was handled is known, or under way, or owed.
            assert end.confirmed == peer.handled or self.frames[other(name)] or peer.owes or not self.connected


STEPS = {
    "send": Pair.send,
    "write": Pair.write,
    "arrive": Pair.arrive,
    "handle": Pair.handle,
    "acknowledge": Pair.acknowledge,
    "cut": lambda pair, name: pair.cut(),
    "crash": Pair.crash,
    "resume": lambda pair, name: pair.resume(),
    "resume in vain": lambda pair, name: pair.resume(answer_arrives=False),
}

#: A step, whose it is, and how often it is taken at once. Most of life is not disaster.
OFTEN = ["send", "write", "arrive", "handle"] * 4 + ["acknowledge", "resume"] * 2 + ["cut", "crash", "resume in vain"]
LIVES = st.lists(st.tuples(st.sampled_from(OFTEN), st.sampled_from([CLIENT, SERVER]), st.integers(1, 4)), min_size=50)


@given(LIVES)
def test_over_a_connection_that_is_cut_at_random_nothing_is_lost_nothing_comes_twice_and_all_in_order(life):
    pair = Pair()

    for step, name, times in life:
        for _ in range(times):
            STEPS[step](pair, name)
        pair.hold_what_they_promise()

    pair.in_peace()
    pair.hold_what_they_promise()
    for name, end in pair.ends.items():
        assert pair.handled[other(name)] == pair.sent[name]
        assert (end.confirmed, end.kept, end.is_idle) == (end.sent, (), True)
