"""Sessions of a fleet: a client that comes to another server finds his own, with nothing lost and nothing twice.

Several servers in one process over one real Redis; the clients are the real ones, in virtual time.
"""

import json
import struct
import time

import pytest
import redis_server
from fleet import Books, Node, Teller, Walk, redis_time
from peers import frame
from twisted.internet.defer import Deferred
from twisted.logger import formatEvent

from heartbeat import roaming
from heartbeat.cluster import sessions
from heartbeat.core.errors import StoreError
from heartbeat.core.session import Resume
from heartbeat.store import Append, Head, TakenOver

pytestmark = redis_server.needs_redis

# Seconds between calls in these tests, where they wait for leases to end.
QUICK = 0.1


# Coming back elsewhere.


def test_a_client_that_comes_to_another_server_goes_on_in_its_session(gather):
    fleet, one, other = gather()
    alice = fleet.client("alice", one)
    sid = alice.sid
    alice.writes_to("alice")
    fleet.settle()
    assert alice.node is one

    alice.moves_to(other)
    fleet.until(lambda: alice.node is other)
    alice.writes_to("alice")
    fleet.settle()

    assert alice.sid == sid
    assert alice.reasons == []
    assert [number for _, number in alice.read] == [1, 2]
    assert one.ended == [(sid, "moved")]
    assert one.lost == other.lost == []


def test_letters_reach_clients_on_other_servers_in_order_and_their_senders_are_told(gather):
    fleet, one, other = gather()
    alice, bob = fleet.client("alice", one), fleet.client("bob", other)

    for _ in range(20):
        alice.writes_to("bob")
        bob.writes_to("alice")
    fleet.settle()

    assert len(alice.read) == len(bob.read) == 20
    assert {tuple(told) for told in alice.told.values()} == {("queued", "delivered")}


def test_who_had_the_session_is_cut_off_at_once_and_says_nothing(gather):
    """The old server has not noticed that its client is gone; nobody is told of a session that is lost."""
    fleet, one, other = gather()
    alice = fleet.client("alice", one)
    left = alice._connection.transport.other
    alice.vanishes_to(other)
    fleet.until(lambda: alice.node is other)
    fleet.until(lambda: one.ended)

    assert struct.pack("!H", 4001) in left.written[-60:]
    assert one.ended == [(alice.sid, "moved")]
    assert (one.lost, alice.reasons) == ([], [])
    assert one.sessions.of("alice") == ()


def test_what_a_client_sent_and_was_not_told_of_is_handled_once_wherever_it_comes(gather):
    """Its first server is cut off from Redis: what that has asked for may be done, and must not be done twice."""
    fleet, one, other = gather()
    alice, bob = fleet.client("alice", one), fleet.client("bob", other)
    one.is_cut_off()
    for _ in range(5):
        alice.writes_to("bob")
    fleet.pass_by(1.0)
    assert set(alice.letters.values()) == {"waiting"}
    assert bob.read == []

    alice.moves_to(other)
    fleet.until(lambda: alice.node is other)
    alice.writes_to("bob")
    fleet.until(lambda: len(bob.read) == 6)
    one.is_back()
    fleet.settle()

    assert [number for _, number in bob.read] == [1, 2, 3, 4, 5, 6]
    assert set(alice.letters.values()) == {"handled"}


def test_a_server_that_is_cut_off_acknowledges_nothing_answers_beats_and_goes_on_when_it_is_back(gather):
    fleet, one, other = gather()
    alice, bob = fleet.client("alice", one), fleet.client("bob", other)
    pongs = []
    alice.pongReceived = lambda rtt, clients: pongs.append(rtt)
    one.is_cut_off()
    connection = alice._connection
    for _ in range(5):
        alice.writes_to("bob")
    fleet.pass_by(8.0)
    assert len(pongs) >= 3
    assert (set(alice.letters.values()), bob.read) == ({"waiting"}, [])

    one.is_back()
    fleet.settle()

    assert alice._connection is connection
    assert [number for _, number in bob.read] == [1, 2, 3, 4, 5]


def test_whoever_was_cut_off_for_longer_than_its_lease_has_its_sessions_still_if_nobody_has_taken_them(gather):
    fleet, one, other = gather(refresh=QUICK)
    alice, bob = fleet.client("alice", one), fleet.client("bob", one)
    one.is_cut_off()
    fleet.until(lambda: Books(fleet).known(alice.sid)["node"] == "")
    bob.moves_to(other)
    fleet.until(lambda: bob.node is other)
    connection = alice._connection
    alice.writes_to("bob")
    one.is_back()
    fleet.settle()

    assert alice._connection is connection
    assert one.ended == [(bob.sid, "moved")]


def test_a_client_that_comes_back_to_a_server_which_knows_nothing_of_its_travels_goes_on_where_it_was(gather):
    """Its first server has heard nothing of all that, and still has the session, as it was long ago."""
    fleet, one, other = gather()
    alice = fleet.client("alice", one)
    sid = alice.sid
    one.hears_nothing()
    other.listens = False
    alice.moves_to(other)
    # Else it could be told so in answer to that he is gone.
    fleet.until(lambda: "detached_at" in Books(fleet).known(sid))
    other.listens = True
    fleet.until(lambda: alice.node is other)
    for _ in range(3):
        alice.writes_to("alice")
    fleet.until(lambda: len(alice.read) == 3)
    assert one.channel_of(alice) is not None

    alice.moves_to(one)
    fleet.until(lambda: alice.is_there and alice.node is one)
    alice.writes_to("alice")
    fleet.settle()

    assert (alice.sid, alice.reasons) == (sid, [])
    assert [number for _, number in alice.read] == [1, 2, 3, 4]


def test_a_server_that_counts_its_fence_up_has_not_been_given_the_one_of_that_number(gather):
    """A client comes to a server that cannot reach Redis, and then to another, which is given the very number."""
    fleet, one, other = gather()
    alice = fleet.client("alice", one)
    one.is_cut_off()
    alice.moves_to(one)
    fleet.until(lambda: one.channel_of(alice).session.fence == 1)
    alice.moves_to(other)
    fleet.until(lambda: alice.node is other)
    assert other.channel_of(alice).session.fence == 1
    late = one.store.handle(alice.sid, 1, 99, [])

    one.is_back()
    with pytest.raises(TakenOver, match=r"^the session was taken over: fence 1 is of another server$"):
        fleet.result(late)
    fleet.until(lambda: one.channel_of(alice) is None)
    assert fleet.result(one.store.keep([(alice.sid, 1)])) == ((-2, -2),)
    fleet.settle()


REFUSED = {
    "nobody's": ("b", "alice", 3, 2, 5, "unknown"),
    "another's": ("a", "mallory", 3, 2, 5, "auth"),
    "a late attempt": ("a", "alice", 2, 2, 5, "stale"),
    "a late attempt that does not fit": ("a", None, 1, 9, 0, "stale"),
    "below what is kept": ("a", None, 3, 0, 5, "gap"),
    "above what was sent": ("a", None, 3, 4, 5, "gap"),
    "less sent than was handled": ("a", "alice", 3, 2, 4, "gap"),
}


@pytest.mark.parametrize(("sid", "name", "attempt", "last", "sent", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_elsewhere_is_refused_for_the_same_reasons_and_left_as_it_was(
    gather, sid, name, attempt, last, sent, why
):
    fleet, one, other = gather()
    fleet.result(one.store.open(Head("a", "e", "alice", 60.0)))
    fleet.result(one.store.append([Append("a", b"%d" % number) for number in (1, 2, 3)]))
    fleet.result(one.store.confirm("a", 0, 1, []))
    fleet.result(one.store.handle("a", 0, 5, []))
    fleet.result(one.store.take_over("a", 2))
    before = Books(fleet).known("a")

    assert fleet.result(other.store.claim(sid, name, attempt, last, sent)) == why
    assert Books(fleet).known("a") == before

    head, kept = fleet.result(other.store.claim("a", "alice", 3, 2, 5))
    assert (head.fence, head.attempt, head.sent, head.confirmed, head.handled) == (2, 3, 3, 1, 5)
    assert [message.payload for message in kept] == [b"2", b"3"]
    assert Books(fleet).known("a")["node"] == other.store.node


# What others do to a session.


def test_who_has_heard_nothing_for_a_while_looks_at_all_its_sessions(gather):
    fleet, one, other = gather()
    alice, bob = fleet.client("alice", one), fleet.client("bob", other)
    other.hears_nothing()
    alice.writes_to("bob")
    fleet.until(lambda: alice.told)
    fleet.pass_by(0.5)
    assert bob.read == []

    other.hears_again()
    fleet.settle()
    assert len(bob.read) == 1


def test_who_has_not_heard_that_a_session_has_moved_lets_go_of_it_when_it_hears_again(gather):
    fleet, one, other = gather()
    alice = fleet.client("alice", one)
    one.hears_nothing()
    alice.vanishes_to(other)
    fleet.until(lambda: other.channel_of(alice))
    fleet.pass_by(0.1)
    assert one.channel_of(alice) is not None

    one.hears_again()
    fleet.until(lambda: one.ended == [(alice.sid, "moved")])


def test_a_letter_is_read_when_it_is_appended_and_not_when_something_else_happens(gather):
    """There is nothing besides: no beat, no call for a minute, no other message."""
    fleet, one, other = gather(interval=60.0)
    alice, bob = fleet.client("alice", one), fleet.client("bob", other)
    asked = [len(node.store._redis._asked) for node in (one, other)]
    before = fleet.world.now

    alice.writes_to("bob")
    fleet.until(lambda: bob.read)

    assert asked == [0, 0]
    assert fleet.world.now - before < 30


def test_who_comes_back_to_a_deaf_server_is_read_what_was_appended_while_he_was_away(gather):
    fleet, one, other = gather()
    alice, bob = fleet.client("alice", one), fleet.client("bob", other)
    other.hears_nothing()
    alice.writes_to("bob")
    fleet.until(lambda: alice.told)
    assert bob.read == []

    bob.moves_to(other)
    fleet.until(lambda: bob.read)
    fleet.settle()


def coming(fleet, node, client, attempt):
    """A client comes to a server: what that is told, and what holds it back from there."""
    held, came, claim = Deferred(), [], node.store.claim
    node.store.claim = lambda *about: claim(*about).addCallback(lambda found: held.addCallback(lambda _: found))
    session = client._session.channel.session
    resume = Resume(session.sid, session.epoch, session.received, session.sent, attempt)
    node.sessions.elsewhere(resume, None, ()).addCallback(came.append)
    fleet.until(lambda: Books(fleet).known(session.sid)["node"] == node.store.node and not node.store._redis._asked)
    return held, came


def test_what_is_appended_while_a_session_comes_is_read_when_it_is_there(gather):
    fleet, one, other = gather()
    alice, bob = fleet.client("alice", one), fleet.client("bob", one)
    held, came = coming(fleet, other, bob, 1)
    fleet.until(lambda: not bob.is_there)
    bob.stopService()
    alice.writes_to("bob")
    fleet.until(lambda: other.sessions._expected[came_sid(other)].grew)

    held.callback(None)
    fleet.until(lambda: came and came[0].session.sent == 1)
    fleet.clients.remove(bob)


def came_sid(node):
    """The session that this server waits for."""
    (sid,) = node.sessions._expected
    return sid


def test_a_session_that_has_gone_on_before_it_is_there_does_not_come(gather):
    fleet, one, other, third = gather(3)
    bob = fleet.client("bob", one)
    sid = bob.sid
    held, came = coming(fleet, other, bob, 1)
    released, gone_on = coming(fleet, third, bob, 2)
    fleet.until(lambda: other.sessions._expected[sid].fence == 2)
    released.callback(None)
    held.callback(None)
    fleet.until(lambda: came and gone_on)

    assert came == ["stale"]
    assert (sid in other.sessions.channels, third.sessions.channels[sid]) == (False, gone_on[0])


def test_letters_of_many_servers_to_one_client_come_each_once_and_in_the_order_of_each(gather):
    fleet, *nodes = gather(4)
    senders = [fleet.client(f"c{number}", node) for number, node in enumerate(nodes)]
    bob = fleet.client("bob", nodes[0])
    for _ in range(25):
        for sender in senders:
            sender.writes_to("bob")
        bob.writes_to("bob")
    fleet.settle()

    assert len(bob.read) == 125


def test_what_is_appended_while_others_are_read_is_read_too(gather):
    """The answer with the first is on its way when it is said that there is a second."""
    fleet, one, other = gather()
    alice, bob = fleet.client("alice", one), fleet.client("bob", other)
    replay, held, grown = other.store.replay, Deferred(), []
    other.store.replay = lambda *about: replay(*about).addCallback(lambda kept: held.addCallback(lambda _: kept))
    grew = other.sessions.grew
    other.sessions.grew = lambda sid: (grown.append(sid), grew(sid))
    alice.writes_to("bob")
    fleet.until(lambda: len(grown) == 1 and not other.store._redis._asked)
    alice.writes_to("bob")
    fleet.until(lambda: len(grown) == 2)
    other.store.replay = replay
    assert bob.read == []

    held.callback(None)
    fleet.until(lambda: len(bob.read) == 2)
    fleet.settle()


# Receipts.


def away(fleet, node, client_id):
    """A session of this client, whose page is gone."""
    page = fleet.page(node, client_id)
    page.say({"type": "ping"})
    sid = page.messages[0]["sid"]
    page.transport.abortConnection()
    fleet.until(lambda: node.sessions.channels[sid].connection is None)
    return page, sid


def test_of_copies_on_several_servers_the_first_that_is_handled_is_told_once(gather):
    fleet, one, other = gather()
    alice = fleet.client("alice", one)
    pages = [fleet.page(node, "bob") for node in (one, other)]
    number = alice.writes_to("bob")
    for page in pages:
        fleet.until(lambda page=page: page.messages[-1].get("text") == str(number))
    assert alice.told == {number: ["queued"]}

    pages[0].say({"type": "ack", "ack": 1})
    fleet.until(lambda: alice.told[number] == ["queued", "delivered"])
    pages[1].say({"type": "ack", "ack": 1})
    fleet.pass_by(1.0)
    assert alice.told[number] == ["queued", "delivered"]
    fleet.settle()
    for page in pages:
        page.leave()
    fleet.settle()


def test_of_copies_on_several_servers_the_last_that_is_lost_is_told_once(gather):
    fleet, one, other = gather()
    alice = fleet.client("alice", one)
    pages = [fleet.page(node, "bob") for node in (one, other)]
    number = alice.writes_to("bob")
    for page in pages:
        fleet.until(lambda page=page: page.messages[-1].get("text") == str(number))

    pages[0].leave()
    fleet.until(lambda: not one.sessions.of("bob"))
    fleet.pass_by(1.0)
    assert alice.told == {number: ["queued"]}
    pages[1].leave()
    fleet.until(lambda: alice.told[number] == ["queued", "lost"])
    fleet.settle()


def test_a_copy_that_nobody_here_has_read_yet_is_lost_with_its_session_all_the_same(gather):
    """The server that ends the session has not heard of the last letter in it."""
    fleet, one, other = gather()
    alice = fleet.client("alice", one)
    _, sid = away(fleet, other, "bob")
    other.hears_nothing()
    numbers = [alice.writes_to("bob") for _ in range(3)]
    fleet.until(lambda: len(alice.told) == 3)
    assert other.sessions.channels[sid].session.sent == 0

    other.sessions.channels[sid].end("full")
    fleet.until(lambda: all(alice.told[number] == ["queued", "lost"] for number in numbers))
    fleet.settle()
    assert Books(fleet).sids == {alice.sid}


def test_a_client_that_is_nowhere_is_unknown(gather):
    fleet, one, _ = gather()
    alice = fleet.client("alice", one)
    number = alice.writes_to("nobody")
    fleet.settle()
    assert alice.told == {number: ["unknown"]}


# Room.


def test_a_session_takes_as_much_as_its_bound_and_its_sender_is_told_that_it_is_full(gather):
    fleet, one, other = gather(kept_limit=10)
    alice = fleet.client("alice", one, kept_limit=1000)
    page = fleet.page(other, "bob")

    def answers(sender, count):
        numbers = [sender.writes_to("bob") for _ in range(count)]
        fleet.until(lambda: all(number in sender.told for number in numbers))
        return [sender.told[number][0] for number in numbers]

    # Who waits to be told of half as many as he may keep has to wait for more.
    assert answers(alice, 7) == ["queued"] * 5 + ["full"] * 2
    assert answers(fleet.client("carol", one), 4) == ["queued"] * 4
    assert answers(fleet.client("dave", other), 4) == ["queued"] + ["full"] * 3
    assert len([message for message in page.messages if "text" in message]) == 10
    page.leave()
    fleet.settle()


def test_a_tab_that_was_closed_long_ago_does_not_keep_a_client_from_what_he_could_read_elsewhere(gather):
    fleet, one, other = gather(kept_limit=4)
    writers = [fleet.client(name, one, kept_limit=1000) for name in ("alice", "carol", "dave")]
    _, sid = away(fleet, other, "bob")
    for writer in writers[:2]:
        for _ in range(2):
            writer.writes_to("bob")
    fleet.until(lambda: Books(fleet).known(sid)["sent"] == "4")
    page = fleet.page(one, "bob")

    number = writers[2].writes_to("bob")
    fleet.until(lambda: page.messages[-1].get("text") == str(number))
    fleet.until(lambda: (sid, "full") in other.ended)
    page.say({"type": "ack", "ack": 1})
    fleet.settle()

    assert [writer.told[max(writer.letters)][-1] for writer in writers] == ["lost", "lost", "delivered"]
    page.leave()
    fleet.settle()


# Pages without a session.


def plain_page(fleet, node):
    """A page that has no session; its name is one that the server gave it."""
    page = fleet.page(node)
    page.say({"type": "onopen"})
    return page, page.messages[0]["client_id"]


def test_a_page_without_a_session_is_written_to_wherever_it_is_and_writes_to_others(gather):
    fleet, one, other = gather()
    alice = fleet.client("alice", one)
    page, name = plain_page(fleet, other)
    fleet.until(lambda: Books(fleet).named("p:") == {name})

    number = alice.writes_to(name)
    fleet.until(lambda: page.messages[-1].get("text") == str(number))
    page.say({"type": "onchat", "id": "m1000", "to": "alice", "text": "1000"})
    fleet.until(lambda: page.messages[-1].get("status") == "delivered")
    page.say({"type": "onchat", "id": "m2", "to": "nobody", "text": ""})
    fleet.until(lambda: page.messages[-1].get("status") == "unknown")

    fleet.until(lambda: alice.told)
    assert alice.told == {number: ["sent"]}
    assert [one["status"] for one in page.messages if one.get("id") == "m1000"] == ["queued", "delivered"]
    page.leave()
    fleet.until(lambda: not Books(fleet).named("p:"))
    assert not Books(fleet).named("q:")


def test_a_letter_from_a_page_that_has_just_come_to_one_that_has_finds_it(gather):
    """That either is there is told before the letter, and not a moment later."""
    fleet, one, _ = gather()
    (page, _), (other, name) = plain_page(fleet, one), plain_page(fleet, one)
    page.say({"type": "onchat", "id": "m1", "to": name, "text": "1"})
    fleet.until(lambda: other.messages[-1].get("text") == "1")
    fleet.until(lambda: page.messages[-1].get("status") == "sent")


def test_the_pages_of_a_server_that_died_are_nowhere(gather):
    fleet, one, other = gather(refresh=QUICK)
    alice = fleet.client("alice", one)
    _, name = plain_page(fleet, other)
    fleet.until(lambda: Books(fleet).named("p:") == {name})
    other.dies()
    fleet.until(lambda: not Books(fleet).named("p:"))
    number = alice.writes_to(name)
    fleet.settle()
    assert alice.told == {number: ["unknown"]}


# Those that go.


def test_the_sessions_of_a_server_that_died_wait_for_their_clients_and_end_after_their_windows(gather):
    fleet, one, other = gather(refresh=QUICK, window=1.0)
    alice, bob = fleet.client("alice", one), fleet.client("bob", other)
    page, sid = away(fleet, other, "carol")
    number = alice.writes_to("carol")
    fleet.until(lambda: alice.told)
    ends = float(fleet.asks("ZSCORE", f"{fleet.prefix}nodes", other.store.node))
    other.dies()
    fleet.until(lambda: bob.node is one)

    fleet.until(lambda: alice.told[number] == ["queued", "lost"])

    # Its lease, and a window from then on.
    assert redis_time(fleet.redis) >= ends + 1000
    fleet.settle()
    assert (bob.reasons, bob.sid in Books(fleet).sids, sid in Books(fleet).sids) == ([], True, False)
    again = fleet.page(one, "carol", session=resume(page))
    assert (again.messages[0]["resumed"], again.messages[0]["reason"]) == (False, "expired")
    again.leave()
    fleet.settle()


def resume(page, **numbers):
    """What a page says to come back to its session."""
    answer = page.messages[0]
    return {"sid": answer["sid"], "epoch": answer["epoch"], "last": 0, "sent": 0, "try": 1} | numbers


def test_a_session_that_came_with_a_client_who_was_gone_by_then_ends_where_it_is(gather):
    """Nobody else is at that server, so nobody's connection reminds it."""
    fleet, one, other = gather(window=3.0)
    page, sid = away(fleet, one, "bob")
    again = fleet.page(other)
    again.transport.write(frame(json.dumps({"type": "onopen", "v": 1, "session": resume(page)}).encode()))
    fleet.world.advance(0.01)
    again.transport.abortConnection()
    fleet.world.advance(0.3)
    assert not other.sessions.channels

    fleet.until(lambda: (sid, "moved") in one.ended)
    fleet.until(lambda: (sid, "expired") in other.ended)
    fleet.settle()
    assert Books(fleet).sids == set()


def test_of_many_sessions_some_are_looked_at_in_a_call(gather, monkeypatch):
    monkeypatch.setattr(sessions, "_SLICE", 3)
    monkeypatch.setattr(roaming, "_SLICE", 3)
    fleet, one, other = gather(refresh=QUICK, window=3.0)
    alice = fleet.client("alice", other)
    for number in range(10):
        away(fleet, other, f"c{number}")
    one.is_cut_off()
    other.dies()
    one.is_back()
    fleet.until(lambda: alice.node is one)
    fleet.until(lambda: Books(fleet).sids == {alice.sid})
    assert {why for _, why in one.ended} == {"expired"}
    fleet.settle()


def test_a_server_that_stops_leaves_its_sessions_to_the_others_at_once(gather):
    """Its lease would hold for three minutes."""
    fleet, one, other = gather()
    alice = fleet.client("alice", one)
    bob = fleet.client("bob", other)
    _, sid = away(fleet, other, "carol")
    other.stops()
    assert Books(fleet).known(sid)["node"] == ""
    fleet.until(lambda: bob.node is one)
    number = bob.writes_to("alice")
    fleet.settle()

    assert [read for _, read in alice.read] == [number]
    assert bob.reasons == []


def test_a_server_that_starts_again_is_another_one(gather):
    fleet, one, other = gather()
    alice = fleet.client("alice", one)
    name = one.store.node
    one.listens = False
    fleet.result(one.sessions.stop())
    one.drops_all()
    fleet.until(lambda: alice.node is other)
    fleet.result(one.sessions.start())
    one.listens = True

    assert one.store.node != name
    alice.moves_to(one)
    fleet.until(lambda: alice.node is one)
    alice.writes_to("alice")
    fleet.settle()
    assert alice.reasons == []


# Redis goes, and comes back.


def test_while_redis_is_away_from_all_nobody_loses_anything_however_long_that_takes(own, gather):
    """Longer than all leases hold; whoever comes first is not to think that all others are dead."""
    fleet, one, other = gather(redis=own, refresh=QUICK)
    alice, bob = fleet.client("alice", one), fleet.client("bob", other)
    connections = [client._connection for client in (alice, bob)]
    own.kill()
    for _ in range(3):
        alice.writes_to("bob")
        bob.writes_to("alice")
    until = time.monotonic() + 6 * QUICK
    fleet.until(lambda: time.monotonic() > until)
    assert {*alice.letters.values(), *bob.letters.values()} == {"waiting"}

    own.start()
    fleet.settle()

    assert [client._connection for client in (alice, bob)] == connections
    assert (one.ended, other.ended) == ([], [])


@pytest.mark.parametrize(("heard_ms_ago", "is_kept"), [(200_000, True), (1000, False)])
def test_a_lease_that_has_ended_counts_only_where_others_were_heard_meanwhile(gather, heard_ms_ago, is_kept):
    """Two refreshes of silence, of all: that was Redis' own absence, or its clock."""
    fleet, one, other = gather()
    alice = fleet.client("alice", other)
    seconds, micros = map(int, fleet.asks("TIME"))
    now = 1000 * seconds + micros // 1000
    fleet.asks("ZADD", f"{fleet.prefix}nodes", now - 1, one.store.node, now - 1, other.store.node)
    fleet.asks("SET", f"{fleet.prefix}heard", now - heard_ms_ago)

    fleet.result(one.store._call())

    assert Books(fleet).known(alice.sid)["node"] == (other.store.node if is_kept else "")
    # Whose lease has ended says that he is there, when he hears of it.
    fleet.result(other.store._call().addCallback(other.store._tended))
    fleet.until(lambda: Books(fleet).known(alice.sid)["node"] == other.store.node)


def test_a_redis_that_has_forgotten_everything_is_said_to_the_clients_and_they_begin_anew(own, gather):
    fleet, one, other = gather(redis=own, refresh=QUICK)
    alice, bob = fleet.client("alice", one), fleet.client("bob", other)
    before = alice.sid
    fleet.asks("FLUSHALL")
    fleet.until(lambda: {alice.node, bob.node} == {one, other} and alice.sid != before)
    alice.writes_to("bob")
    fleet.settle()

    assert one.sessions.epoch == other.sessions.epoch == alice._session.channel.session.epoch
    assert {why for _, why in (*one.ended, *other.ended)} == {"unknown"}


def test_a_redis_that_has_lost_the_last_of_a_session_is_not_believed(gather):
    """As a replica that had not everything when it became the master: two messages have the same number."""
    fleet, one, other = gather()
    alice, bob = fleet.client("alice", one), fleet.client("bob", other)
    page = fleet.page(other, "carol")
    alice.writes_to("carol")
    alice.writes_to("carol")
    fleet.until(lambda: page.messages[-1].get("text") == "2")
    sid = page.messages[0]["sid"]
    ((_, payload, receipt), _) = Books(fleet).kept(sid)
    fleet.asks("HSET", f"{fleet.prefix}s:{sid}", "sent", "1", "bytes", len(payload))
    fleet.asks("DEL", f"{fleet.prefix}l:{sid}")
    fleet.asks("XADD", f"{fleet.prefix}l:{sid}", "1-0", "p", payload, "r", receipt)
    bob.writes_to("carol")
    bob.writes_to("carol")

    fleet.until(lambda: page.closed_with)
    assert page.closed_with == 1013
    assert other.ended == [(sid, "unknown")]


@pytest.mark.parametrize("lost", ["sent", "handled"])
@pytest.mark.parametrize("found_by", ["hearing again", "resuming"])
def test_that_redis_has_lost_the_last_of_a_session_is_found_when_it_is_looked_at(gather, lost, found_by):
    fleet, one = gather(1)
    alice = fleet.client("alice", one)
    for _ in range(2):
        alice.writes_to("alice")
    fleet.settle()
    sid = alice.sid
    fleet.asks("HSET", f"{fleet.prefix}s:{sid}", lost, 1, "confirmed", 1)

    one.hears_again() if found_by == "hearing again" else alice.moves_to(one)
    fleet.until(lambda: alice.is_there and alice.sid != sid)

    assert one.ended == [(sid, "unknown")]
    assert alice._session.channel.session.epoch == one.sessions.epoch
    fleet.asks("DEL", *(f"{fleet.prefix}{name}" for name in (f"s:{sid}", f"l:{sid}", f"m:{sid}")))
    fleet.asks("SREM", f"{fleet.prefix}c:alice", sid)
    fleet.asks("SREM", f"{fleet.prefix}n:{one.store.node}", sid)


def test_who_starts_before_redis_does_lets_clients_in_as_soon_as_that_is_there(own, gather, log):
    own.kill()
    fleet, *_ = gather(0, redis=own)
    node = Node(fleet, next(fleet._numbers))
    started = node.sessions.start()
    client = Teller(fleet, "alice")
    fleet.clients.append(client)
    client.startService()
    fleet.pass_by(2.0)
    assert not started.called
    said = [formatEvent(event) for event in log]
    assert len([one for one in said if one.endswith("nobody is let in until it can be")]) == 1

    own.start()
    fleet.result(started)
    fleet.until(lambda: client.sid)
    fleet.settle()


def test_a_stop_does_not_wait_for_a_redis_that_never_came(own, gather):
    own.kill()
    fleet, *_ = gather(0, redis=own)
    node = Node(fleet, next(fleet._numbers))
    started = node.sessions.start()
    fleet.pass_by(0.5)
    fleet.result(node.sessions.stop())
    with pytest.raises(StoreError):
        fleet.result(started)
    own.start()


def test_whoever_comes_while_redis_is_away_is_told_to_come_back(gather):
    fleet, one, _ = gather(judge_timeout=1.0)
    one.is_cut_off()
    page = fleet.page(one, "alice")
    assert (page.closed_with, page.close_reason) == (1013, "sessions cannot be kept just now")

    one.is_back()
    # What was asked for him is asked all the same, and ended again.
    fleet.until(lambda: not Books(fleet).sids and not one.sessions.channels)


# By chance.


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 40))])
def test_whatever_happens_nothing_is_lost_nothing_comes_twice_and_all_comes_in_order(gather, seed):
    fleet, *_ = gather(0, refresh=QUICK)
    walk = Walk(fleet, seed)

    walk.steps(120)
    walk.finish()

    # Most have a hundred and more; that is by chance, as the walk itself.
    assert sum(len(client.read) for client in fleet.clients) > 20
