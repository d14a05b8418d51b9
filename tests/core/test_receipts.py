"""Who waits for word of a message: is told once, of the first copy confirmed or of the last one lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat.core.receipts import Receipts


@pytest.fixture
def receipts():
    return Receipts()


def test_the_only_copy_is_told_of_confirmed_or_lost(receipts):
    for confirmed in (True, False):
        receipts.noted("alice/1")
        assert receipts.awaited("alice") == 1
        assert receipts.settled("alice/1", confirmed=confirmed) == 1
        assert receipts.awaited("alice") == 0


def test_of_several_copies_the_first_that_is_confirmed_is_told_of_and_no_other(receipts):
    for _ in range(3):
        receipts.noted("alice/1")

    assert receipts.settled("alice/1", confirmed=True) == 3
    assert receipts.settled("alice/1", confirmed=True) == 0
    assert receipts.settled("alice/1", confirmed=False) == 0


def test_of_several_copies_that_are_lost_the_last_is_told_of(receipts):
    for _ in range(2):
        receipts.noted("alice/1")

    assert receipts.settled("alice/1", confirmed=False) == 0
    assert receipts.awaited("alice") == 1
    assert receipts.settled("alice/1", confirmed=False) == 1
    assert receipts.awaited("alice") == 0


def test_each_sender_waits_for_his_own(receipts):
    for receipt in ("alice/1", "alice/2", "alice/2", "bob/1"):
        receipts.noted(receipt)

    assert [receipts.awaited(name) for name in ("alice", "bob", "carol")] == [2, 1, 0]
    receipts.clear()
    assert receipts.awaited("alice") == 0
    assert receipts.settled("alice/1", confirmed=True) == 0


@given(st.lists(st.tuples(st.sampled_from(["a/1", "a/2", "b/1"]), st.sampled_from(["noted", "confirmed", "lost"]))))
def test_nobody_is_told_twice_and_nobody_waits_for_what_is_not_kept(steps):
    receipts, kept = Receipts(), {}
    for receipt, step in steps:
        if step == "noted":
            kept[receipt] = kept.get(receipt, 0) + 1
            receipts.noted(receipt)
            continue
        copies = kept.get(receipt, 0)
        told = copies and (step == "confirmed" or copies == 1)
        assert receipts.settled(receipt, confirmed=step == "confirmed") == (copies if told else 0)
        kept[receipt] = 0 if told else max(0, copies - 1)
    for sender in "ab":
        assert receipts.awaited(sender) == sum(1 for name, copies in kept.items() if copies and name[0] == sender)
