"""How much all sessions keep: booked on each account and on that of all, and never more than there is room for."""

from hypothesis import given
from hypothesis import strategies as st

from heartbeat.core.accounts import ALL, Accounts


def test_what_is_booked_stands_on_each_account_and_on_that_of_all():
    accounts = Accounts(1600)
    accounts.book(["id a", "at x"], 30)
    accounts.book(["id b"], 20)

    assert [accounts.on(name) for name in (ALL, "id a", "at x", "id b", "id c")] == [50, 30, 30, 20, 0]
    assert len(accounts) == 4


def test_an_account_that_is_empty_is_none():
    accounts = Accounts(1600)
    accounts.book(["id a"], 30)
    accounts.book(["id a"], -30)

    assert len(accounts) == 0


def test_each_has_a_sixteenth_of_the_room_and_the_first_that_has_too_little_is_named():
    accounts = Accounts(1600)
    accounts.book(["id a", "at x"], 60)
    accounts.book(["at x"], 40)

    assert accounts.overdrawn(["id a"], 40) is None
    assert accounts.overdrawn(["id a"], 41) == "id a"
    assert accounts.overdrawn(["id a", "at x"], 1) == "at x"
    assert accounts.overdrawn(["id b"], 100) is None
    assert accounts.overdrawn(["id b"], 101) == "id b"


def test_all_together_have_their_bound_too():
    accounts = Accounts(1600)
    for n in range(16):
        accounts.book([f"id {n}"], 99)

    assert accounts.overdrawn(["id x"], 16) is None
    assert accounts.overdrawn(["id x"], 17) == ALL
    assert accounts.overdrawn([], 17) == ALL


def test_what_is_forgotten_is_on_no_account():
    accounts = Accounts(1600)
    accounts.book(["id a"], 30)
    accounts.clear()

    assert (len(accounts), accounts.on(ALL), accounts.most) == (0, 0, 1600)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100))))
def test_what_is_booked_and_taken_back_leaves_nothing(bookings):
    accounts = Accounts(1600)
    for name, size in bookings:
        accounts.book([name], size)
    assert accounts.on(ALL) == sum(size for _, size in bookings)
    for name, size in bookings:
        accounts.book([name], -size)

    assert len(accounts) == 0
