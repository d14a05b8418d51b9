"""Who is alive: the best of a client's connections counts, joins and leaves are told once, counts are always right."""

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from heartbeat.core.presence import Presence, Standing

ACTIVE, AWAY, CONNECTED, SUSPECT, DETACHED = Standing

GRACE, GRACE_AWAY = 40.0, 75.0


def register():
    return Presence(GRACE, GRACE_AWAY)


def looks(presence):
    """Open connections, clients by standing from active to detached, and the ids of all that are known."""
    return (presence.connections, [presence.count(standing) for standing in Standing], presence.client_ids())


def joined(presence, name, standing=ACTIVE):
    """A connection of `name` that was announced and stands so."""
    connection = presence.open(name)
    presence.announce(connection)
    presence.stand(connection, standing)
    return connection


def test_at_first_nobody_is_there():
    presence = register()

    assert looks(presence) == (0, [0, 0, 0, 0, 0], ())
    assert presence.active == presence.clients == presence.known == 0
    assert "alice" not in presence
    assert presence.standing_of("alice") is None
    assert presence.expire(1e9) == []


def test_who_opens_a_connection_is_connected_and_not_yet_active():
    presence = register()

    connection = presence.open("alice")

    assert (connection.client_id, connection.standing) == ("alice", CONNECTED)
    assert looks(presence) == (1, [0, 0, 1, 0, 0], ("alice",))
    assert "alice" in presence
    assert presence.standing_of("alice") is CONNECTED


def test_a_client_joins_once_by_whichever_connection():
    presence = register()
    first, second = presence.open("alice"), presence.open("alice")

    assert [presence.announce(connection) for connection in (second, first, second)] == [True, False, False]


@pytest.mark.parametrize("standing", [ACTIVE, AWAY, CONNECTED, SUSPECT])
def test_a_client_stands_as_its_connection_stands(standing):
    presence = register()
    connection = presence.open("alice")

    presence.stand(connection, standing)

    expected = [0, 0, 0, 0, 0]
    expected[standing] = 1
    assert looks(presence) == (1, expected, ("alice",))
    assert presence.standing_of("alice") is standing
    assert presence.active == expected[ACTIVE]


def test_a_client_is_the_best_of_its_connections():
    presence = register()
    first, second = presence.open("alice"), presence.open("alice")
    found = []

    for standing in (SUSPECT, AWAY, ACTIVE, CONNECTED):
        presence.stand(first, standing)
        found.append(presence.standing_of("alice"))

    assert found == [CONNECTED, AWAY, ACTIVE, CONNECTED]
    presence.stand(second, SUSPECT)
    assert looks(presence) == (2, [0, 0, 1, 0, 0], ("alice",))


def test_a_client_with_one_connection_left_is_what_that_one_is():
    presence = register()
    best = joined(presence, "alice")
    presence.open("alice")

    assert presence.close(best, 0.0, at_once=True) is False

    assert looks(presence) == (1, [0, 0, 1, 0, 0], ("alice",))


def test_what_the_wire_calls_clients_counts_ids_and_not_connections():
    presence = register()
    joined(presence, "alice")
    joined(presence, "alice")
    joined(presence, "bob")
    joined(presence, "carol", AWAY)

    assert presence.active == 2
    assert looks(presence) == (4, [2, 1, 0, 0, 0], ("alice", "bob", "carol"))


def test_who_leaves_at_once_is_gone():
    presence = register()
    connection = joined(presence, "alice")

    assert presence.close(connection, 0.0, at_once=True) is True

    assert looks(presence) == (0, [0, 0, 0, 0, 0], ())
    assert presence.expire(1e9) == []


@pytest.mark.parametrize("at_once", [True, False])
def test_who_never_joined_does_not_leave_and_is_forgotten_at_once(at_once):
    presence = register()
    connection = presence.open("alice")

    assert presence.close(connection, 0.0, at_once=at_once) is False

    assert looks(presence) == (0, [0, 0, 0, 0, 0], ())
    assert presence.expire(1e9) == []


@pytest.mark.parametrize(
    ("standing", "grace"), [(ACTIVE, GRACE), (CONNECTED, GRACE), (SUSPECT, GRACE), (AWAY, GRACE_AWAY)]
)
def test_an_absence_becomes_a_leave_after_the_grace(standing, grace):
    presence = register()
    connection = joined(presence, "alice", standing)

    assert presence.close(connection, 10.0, at_once=False) is False
    assert looks(presence) == (0, [0, 0, 0, 0, 1], ("alice",))
    assert presence.standing_of("alice") is DETACHED

    assert presence.expire(10.0 + grace - 0.001) == []
    assert presence.expire(10.0 + grace) == ["alice"]
    assert looks(presence) == (0, [0, 0, 0, 0, 0], ())
    assert presence.expire(1e9) == []


def test_who_comes_back_within_the_grace_neither_left_nor_joins():
    presence = register()
    presence.close(joined(presence, "alice"), 10.0, at_once=False)

    connection = presence.open("alice")

    assert presence.announce(connection) is False
    assert presence.expire(1e9) == []
    assert looks(presence) == (1, [0, 0, 1, 0, 0], ("alice",))


def test_who_comes_back_and_goes_again_has_the_whole_grace_again():
    presence = register()
    presence.close(joined(presence, "alice"), 0.0, at_once=False)
    presence.close(presence.open("alice"), 30.0, at_once=False)

    assert presence.expire(40.0) == []
    assert presence.expire(69.9) == []
    assert presence.expire(70.0) == ["alice"]


def test_who_left_for_good_and_joins_anew_is_not_taken_for_the_absentee_of_before():
    presence = register()
    presence.close(joined(presence, "alice"), 0.0, at_once=False)
    presence.close(presence.open("alice"), 10.0, at_once=True)
    presence.close(joined(presence, "alice"), 20.0, at_once=False)

    assert presence.expire(59.9) == []
    assert presence.expire(60.0) == ["alice"]


def test_leaves_come_in_the_order_in_which_the_graces_end():
    presence = register()
    presence.close(joined(presence, "away", AWAY), 0.0, at_once=False)
    presence.close(joined(presence, "late"), 10.0, at_once=False)
    presence.close(joined(presence, "early"), 5.0, at_once=False)

    assert presence.expire(100.0) == ["early", "late", "away"]


# Sessions


def test_a_client_of_whom_a_session_is_kept_is_detached_without_any_connection():
    presence = register()

    presence.keep("alice")

    assert looks(presence) == (0, [0, 0, 0, 0, 1], ("alice",))
    assert presence.expire(1e9) == []


def test_a_session_that_ends_while_its_client_is_there_changes_nothing():
    presence = register()
    connection = joined(presence, "alice")
    presence.keep("alice")

    presence.release("alice")

    assert looks(presence) == (1, [1, 0, 0, 0, 0], ("alice",))
    assert presence.close(connection, 0.0, at_once=True) is True
    assert looks(presence) == (0, [0, 0, 0, 0, 0], ())


def test_a_client_that_nobody_expects_is_forgotten_with_its_last_session():
    presence = register()
    presence.keep("alice")
    presence.keep("alice")

    presence.release("alice")
    assert looks(presence) == (0, [0, 0, 0, 0, 1], ("alice",))
    presence.release("alice")

    assert looks(presence) == (0, [0, 0, 0, 0, 0], ())


@pytest.mark.parametrize("at_once", [True, False])
def test_while_a_session_is_kept_every_end_is_an_absence_and_the_leave_waits_for_the_grace(at_once):
    presence = register()
    presence.keep("alice")

    assert presence.close(joined(presence, "alice"), 10.0, at_once=at_once) is False
    assert looks(presence) == (0, [0, 0, 0, 0, 1], ("alice",))

    assert presence.expire(10.0 + GRACE - 0.001) == []
    assert presence.expire(10.0 + GRACE) == ["alice"]


def test_who_left_is_detached_for_as_long_as_its_session_is_kept_and_joins_anew_if_it_comes_back():
    presence = register()
    presence.keep("alice")
    presence.close(joined(presence, "alice"), 0.0, at_once=False)
    assert presence.expire(GRACE) == ["alice"]
    assert looks(presence) == (0, [0, 0, 0, 0, 1], ("alice",))

    connection = presence.open("alice")

    assert presence.announce(connection) is True
    assert presence.close(connection, 50.0, at_once=False) is False
    assert presence.expire(50.0 + GRACE) == ["alice"]
    presence.release("alice")
    assert looks(presence) == (0, [0, 0, 0, 0, 0], ())


def test_a_session_that_ends_in_an_absence_leaves_the_absence_its_grace():
    presence = register()
    presence.keep("alice")
    presence.close(joined(presence, "alice"), 0.0, at_once=False)

    presence.release("alice")

    assert looks(presence) == (0, [0, 0, 0, 0, 1], ("alice",))
    assert presence.expire(GRACE) == ["alice"]
    assert looks(presence) == (0, [0, 0, 0, 0, 0], ())


@pytest.mark.parametrize("at_once", [True, False])
def test_who_never_joined_is_known_for_as_long_as_its_session_is_kept(at_once):
    presence = register()
    presence.keep("alice")

    assert presence.close(presence.open("alice"), 0.0, at_once=at_once) is False

    assert looks(presence) == (0, [0, 0, 0, 0, 1], ("alice",))
    assert presence.expire(1e9) == []
    presence.release("alice")
    assert looks(presence) == (0, [0, 0, 0, 0, 0], ())


def test_who_goes_twice_in_one_moment_leaves_once():
    presence = register()
    presence.keep("alice")
    presence.close(joined(presence, "alice"), 0.0, at_once=False)
    presence.close(presence.open("alice"), 0.0, at_once=False)

    assert presence.expire(GRACE) == ["alice"]

    assert looks(presence) == (0, [0, 0, 0, 0, 1], ("alice",))


# Other servers


def test_what_the_wire_calls_clients_is_our_own_as_they_are_and_those_elsewhere_as_they_were_last_heard():
    presence = register()
    alice = joined(presence, "alice")

    presence.counted_elsewhere(5)
    assert (presence.active, presence.clients) == (1, 6)

    joined(presence, "bob")
    assert (presence.active, presence.clients) == (2, 7)
    presence.stand(alice, AWAY)
    assert (presence.active, presence.clients) == (1, 6)
    presence.counted_elsewhere(0)
    assert (presence.active, presence.clients) == (1, 1)


def test_who_wants_to_know_is_told_of_everything_that_others_count_and_of_nothing_else():
    presence = register()
    told = []
    presence.changed = told.append

    def since():
        found, told[:] = set(told), []
        return found

    alice = presence.open("alice")
    assert since() == {"alice"}
    for standing in (AWAY, SUSPECT, CONNECTED):
        presence.stand(alice, standing)
    assert presence.announce(alice) is True
    assert since() == set()
    presence.stand(alice, ACTIVE)
    assert since() == {"alice"}
    second = presence.open("alice")
    assert since() == {"alice"}
    presence.close(second, 0.0, at_once=True)
    assert since() == {"alice"}
    presence.keep("bob")
    assert since() == {"bob"}
    presence.close(alice, 0.0, at_once=False)
    assert since() == {"alice"}
    presence.release("bob")
    assert since() == {"bob"}
    assert presence.expire(GRACE) == ["alice"]
    assert since() == {"alice"}


class Register(RuleBasedStateMachine):
    """A register, and beside it what a scan over all its connections finds."""

    connections = Bundle("connections")

    @initialize()
    def begin(self):
        self.presence = register()
        self.now = 0.0
        #: client id: the standings of its connections
        self.standings = {}
        #: client id: how many sessions are kept for it
        self.sessions = Counter()
        self.announced = set()
        #: client id: when it leaves
        self.leaves = {}
        #: What is known of each by whoever is told of the changes.
        self.told = {}
        self.changed = set()
        self.presence.changed = self.changed.add

    @rule(target=connections, name=st.sampled_from("abcd"))
    def open(self, name):
        connection = self.presence.open(name)
        self.standings.setdefault(name, {})[connection] = CONNECTED
        self.leaves.pop(name, None)
        return connection

    @rule(name=st.sampled_from("abcd"))
    def keep(self, name):
        self.presence.keep(name)
        self.sessions[name] += 1
        self.standings.setdefault(name, {})

    @precondition(lambda self: self.sessions.total())
    @rule(data=st.data())
    def release(self, data):
        name = data.draw(st.sampled_from(sorted(self.sessions.elements())))
        self.presence.release(name)
        self.sessions[name] -= 1
        self.forget_unless_expected(name)

    @rule(connection=connections)
    def announce(self, connection):
        name = connection.client_id
        assert self.presence.announce(connection) is (name not in self.announced)
        self.announced.add(name)

    @rule(connection=connections, standing=st.sampled_from([ACTIVE, AWAY, CONNECTED, SUSPECT]))
    def stand(self, connection, standing):
        self.presence.stand(connection, standing)
        self.standings[connection.client_id][connection] = standing

    @rule(connection=consumes(connections), at_once=st.booleans())
    def close(self, connection, at_once):
        name = connection.client_id
        standing = self.standings[name].pop(connection)
        last = not self.standings[name]
        # While a session is kept no end is final.
        at_once = at_once and not self.sessions[name]
        absent = last and not at_once and name in self.announced
        left = last and at_once and name in self.announced

        assert self.presence.close(connection, self.now, at_once=at_once) is left

        if absent:
            self.leaves[name] = self.now + (GRACE_AWAY if standing is AWAY else GRACE)
        elif last:
            self.announced.discard(name)
            self.forget_unless_expected(name)

    @rule(seconds=st.floats(0.0, 60.0))
    def expire(self, seconds):
        self.now += seconds
        gone = {name for name, at in self.leaves.items() if at <= self.now}
        told = self.presence.expire(self.now)
        assert (set(told), len(told)) == (gone, len(gone))
        for name in gone:
            del self.leaves[name]
            self.announced.discard(name)
            self.forget_unless_expected(name)

    def forget_unless_expected(self, name):
        if not self.standings[name] and not self.sessions[name] and name not in self.announced:
            del self.standings[name]

    @invariant()
    def counts_are_what_a_scan_finds(self):
        best = {name: min(found.values(), default=DETACHED) for name, found in self.standings.items()}
        scan = Counter(best.values())
        assert {name: self.presence.standing_of(name) for name in self.presence.client_ids()} == best
        assert [self.presence.count(standing) for standing in Standing] == [scan[standing] for standing in Standing]
        assert self.presence.active == scan[ACTIVE]
        assert self.presence.connections == sum(map(len, self.standings.values()))
        assert self.presence.known == len(best)

    @invariant()
    def who_is_told_of_the_changes_knows_who_is_there_and_who_is_active(self):
        for name in self.changed:
            self.told[name] = self.presence.standing_of(name)
        self.changed.clear()
        told = {name: standing is ACTIVE for name, standing in self.told.items() if standing is not None}
        assert told == {name: self.presence.standing_of(name) is ACTIVE for name in self.presence.client_ids()}


test_after_everything_that_happens_the_counts_are_what_a_scan_finds = Register.TestCase
