"""Messages from client to client and to groups: each arrives, and whoever sent it is told what became of it."""

import json

import pytest
from peers import frame
from twisted.internet.defer import Deferred

from heartbeat.chat import Chat, GroupChat
from heartbeat.core.presence import Standing


class Person:
    """A client of bytes in a session: says, hears, and acknowledges only when told to."""

    def __init__(self, connect, name, resume=None, said=0):
        self.name = name
        self.peer = connect().open()
        self.said = said
        self.peer.say({"type": "onopen", "v": 1, "client_id": name, "session": resume}, {"type": "ping"})
        self.answer = self.peer.messages[0]

    def say(self, **message):
        """Send a numbered message."""
        self.said += 1
        self.peer.say(message | {"seq": self.said})

    def chat(self, name, to, text="hi"):
        self.say(type="onchat", id=name, to=to, text=text)

    def group(self, action, group="room", **more):
        self.say(type="ongroupchat", group=group, action=action, **more)

    @property
    def heard(self):
        """The numbered messages so far, without their numbers."""
        numbered = [message for message in self.peer.messages if "seq" in message]
        return [{name: value for name, value in one.items() if name not in ("seq", "ack")} for one in numbered]

    @property
    def last(self):
        """The highest number heard."""
        return max((message["seq"] for message in self.peer.messages if "seq" in message), default=0)

    def ack(self):
        """Acknowledge all that was heard."""
        self.peer.say({"type": "ack", "ack": self.last})

    def statuses(self, name):
        """What was said of the message with this id."""
        return [one["status"] for one in self.heard if one.get("id") == name and "status" in one]

    def resume(self, attempt=1):
        """What to say to come back to this session."""
        session = {name: self.answer[name] for name in ("sid", "epoch")}
        return session | {"last": self.last, "sent": self.said, "try": attempt}


@pytest.fixture
def person(connect):
    """A client in a session of its own."""
    return lambda name, **more: Person(connect, name, **more)


@pytest.fixture
def serve_chat(serve):
    """A server with both kinds of chat."""

    def serve_chat(**settings):
        factory = serve(**settings)
        Chat(factory)
        factory.groups = GroupChat(factory)
        return factory

    return serve_chat


def aborted(person, world):
    person.peer.transport.abortConnection()
    world.advance(0.1)


# From client to client.


def test_a_session_that_is_about_to_begin_is_sent_nothing(serve_chat, person, connect, world):
    """The store takes its time to open it, and whoever asked may not wait: a copy in it would be lost with him."""
    factory = serve_chat()
    alice = person("alice")
    opening = Deferred()
    store = factory.heartbeat.sessions.store
    open_at_once, store.open = store.open, lambda head: opening.addCallback(lambda _: open_at_once(head))
    bob = connect().open()
    bob.say({"type": "onopen", "v": 1, "client_id": "bob"})
    alice.chat("m1", "bob")
    world.advance(0.1)
    assert alice.heard == [{"type": "onchat", "id": "m1", "status": "unknown"}]

    opening.callback(None)
    world.advance(0.1)
    assert bob.messages[0]["client_id"] == "bob"
    alice.chat("m2", "bob")
    world.advance(0.1)
    assert bob.messages[-1]["id"] == "m2"
    assert alice.heard[1]["status"] == "queued"


def test_a_message_reaches_its_recipient_with_its_sender_and_the_sender_is_told_twice(serve_chat, person, world):
    serve_chat()
    alice, bob = person("alice"), person("bob")

    alice.chat("m1", "bob")
    world.advance(0.1)
    assert bob.heard == [{"type": "onchat", "id": "m1", "from": "alice", "text": "hi"}]
    assert alice.heard == [{"type": "onchat", "id": "m1", "status": "queued"}]

    bob.ack()
    assert alice.heard[1:] == [{"type": "onchat", "id": "m1", "status": "delivered"}]
    assert bob.heard[1:] == []


def test_it_reaches_each_of_his_sessions_and_the_first_that_handles_it_is_delivery(serve_chat, person):
    serve_chat()
    alice, phone, desk = person("alice"), person("bob"), person("bob")

    alice.chat(1, "bob")
    assert phone.heard == desk.heard == [{"type": "onchat", "id": 1, "from": "alice", "text": "hi"}]
    desk.ack()
    assert alice.statuses(1) == ["queued", "delivered"]

    phone.ack()
    assert alice.statuses(1) == ["queued", "delivered"]


def test_a_recipient_who_is_away_gets_it_when_he_comes_back(serve_chat, person, world):
    serve_chat()
    alice, bob = person("alice"), person("bob")
    aborted(bob, world)

    alice.chat("m1", "bob")
    assert alice.statuses("m1") == ["queued"]
    back = person("bob", resume=bob.resume())

    assert back.answer["resumed"] is True
    assert back.heard == [{"type": "onchat", "id": "m1", "from": "alice", "text": "hi"}]
    back.ack()
    assert alice.statuses("m1") == ["queued", "delivered"]


@pytest.mark.parametrize("end", ["he leaves for good", "his window ends"])
def test_a_message_is_lost_when_the_last_session_that_keeps_it_ends(serve_chat, person, world, end):
    serve_chat(window=30.0)
    alice, phone, desk = person("alice"), person("bob"), person("bob")
    alice.chat("m1", "bob")
    phone.peer.leave(1000)
    assert alice.statuses("m1") == ["queued"]

    if end == "he leaves for good":
        desk.peer.leave(1000)
    else:
        aborted(desk, world)
        for _ in range(16):
            alice.peer.say({"type": "ping"})
            world.advance(2)
    assert alice.statuses("m1") == ["queued", "lost"]


def test_nobody_by_that_name_is_unknown_and_so_is_who_has_left(serve_chat, person):
    serve_chat()
    alice, bob = person("alice"), person("bob")
    bob.peer.leave(1000)

    alice.chat("m1", "bob")
    alice.chat("m2", "nobody")

    assert [alice.statuses(name) for name in ("m1", "m2")] == [["unknown"], ["unknown"]]


def test_a_page_without_a_session_is_written_to_and_nothing_more_is_known(serve_chat, person, connect):
    factory = serve_chat()
    page = connect().open()
    page.say({"type": "onopen"})
    name = page.messages[0]["client_id"]
    alice = person("alice")

    alice.chat("m1", name)
    assert page.messages[1:] == [{"type": "onchat", "id": "m1", "from": "alice", "text": "hi"}]
    assert alice.statuses("m1") == ["sent"]

    page.leave()
    alice.chat("m2", name)
    assert alice.statuses("m2") == ["unknown"]
    assert factory.heartbeat.plain == {}


@pytest.fixture
def waits(world, monkeypatch):
    """The bytes that wait for the connection made first, in a list of one."""
    waits = [0]

    def queued(transport):
        return waits[0] if transport is world.connections[0][0] else 0

    monkeypatch.setattr("heartbeat.outbox.queued", queued)
    return waits


def test_a_page_without_a_session_for_which_too_much_waits_has_no_room(serve_chat, person, connect, world, waits):
    """Nothing is kept for it, so nobody may have our memory filled by writing to it; when it has read, it has room."""
    serve_chat(outgoing_limit=100_000)
    page = connect().open()
    page.say({"type": "onopen"})
    name = page.messages[0]["client_id"]
    alice = person("alice")

    waits[0] = 100_000
    alice.chat("m1", name)
    waits[0] = 100_001
    alice.chat("m2", name)
    waits[0] = 50_001
    alice.chat("m3", name)
    waits[0] = 50_000
    world.advance(0.5)
    alice.chat("m4", name)

    assert [alice.statuses(one) for one in ("m1", "m2", "m3", "m4")] == [["sent"], ["full"], ["full"], ["sent"]]
    assert [one["id"] for one in page.messages[1:]] == ["m1", "m4"]


def test_a_page_that_says_nothing_and_takes_nothing_is_closed_4008(serve_chat, person, connect, world, waits):
    """It need not say anything to be found out: it is looked at when somebody writes to it."""
    serve_chat(outgoing_limit=100_000)
    page = connect().open()
    page.say({"type": "onopen"})
    waits[0] = 100_001
    person("alice").chat("m1", page.messages[0]["client_id"])
    world.advance(5.5)
    assert page.closed_with is None
    world.advance(2.0)

    assert page.closed_with == 4008


def test_a_page_without_a_session_can_send_and_is_told_on_its_connection(serve_chat, person, connect):
    serve_chat()
    bob = person("bob")
    page = connect().open()

    page.say({"type": "onchat", "id": 7, "to": "bob", "text": "hi"})
    sender = bob.heard[0]["from"]
    assert sender.startswith("c-")
    bob.ack()

    assert page.messages == [{"type": "onchat", "id": 7, "status": word} for word in ("queued", "delivered")]


def test_one_may_write_to_oneself(serve_chat, person):
    serve_chat()
    alice = person("alice")

    alice.chat("m1", "alice")
    alice.ack()

    assert sorted(one.get("status", "text") for one in alice.heard) == ["delivered", "queued", "text"]


def test_a_recipient_whose_session_is_full_has_no_room_and_nothing_is_kept_in_his_others(serve_chat, person, world):
    serve_chat(kept_limit=4, full_patience=1000.0)
    alice, phone, desk = person("alice"), person("bob"), person("bob")
    for n in range(2):
        alice.chat(n, "bob")
        alice.ack()
    carol = person("carol")
    for n in range(2, 4):
        carol.chat(n, "bob")
        carol.ack()
        phone.ack()

    dave = person("dave")
    dave.chat("m1", "bob")

    assert dave.statuses("m1") == ["full"]
    assert len(desk.heard) == len(phone.heard) == 4
    desk.ack()
    dave.chat("m2", "bob")
    assert dave.statuses("m2") == ["queued"]


def test_a_session_that_was_left_alone_and_is_full_does_not_keep_a_recipient_from_his_others(serve_chat, person, world):
    serve_chat(kept_limit=4)
    alice, desk, tab = person("alice"), person("bob"), person("bob")
    aborted(tab, world)
    for n in range(6):
        alice.chat(n, "bob")
        desk.ack()
        alice.ack()

    assert [alice.statuses(n) for n in range(6)] == [["queued", "delivered"]] * 6
    assert len(desk.heard) == 6
    back = person("bob", resume=tab.resume())
    assert (back.answer["resumed"], back.answer["reason"]) == (False, "full")


def test_the_only_session_of_a_recipient_is_full_and_stays(serve_chat, person, world):
    serve_chat(kept_limit=4)
    alice, bob = person("alice"), person("bob")
    aborted(bob, world)
    for n in range(2):
        alice.chat(n, "bob")
        alice.ack()
    carol = person("carol")
    for n in range(2, 5):
        carol.chat(n, "bob")
        carol.ack()

    assert carol.statuses(4) == ["full"]
    back = person("bob", resume=bob.resume())
    assert (back.answer["resumed"], len(back.heard)) == (True, 4)


def test_who_waits_for_too_many_receipts_is_told_full_until_some_are_settled(serve_chat, person):
    """Each of them is to be told about one day, and that needs room in the sender's session."""
    serve_chat(kept_limit=8)
    alice, bob = person("alice"), person("bob")
    for n in range(5):
        alice.chat(n, "bob")
        alice.ack()

    assert [alice.statuses(n) for n in range(5)] == [["queued"]] * 4 + [["full"]]
    bob.ack()
    alice.ack()
    alice.chat(5, "bob")
    assert alice.statuses(5) == ["queued"]


@pytest.mark.parametrize(
    "wrong",
    [{"id": None}, {"id": ""}, {"id": "x" * 65}, {"id": True}, {"id": 2**63}, {"to": 7}, {"text": None}, {"text": 1}],
)
def test_what_is_no_chat_message_is_refused_by_a_numbered_error_and_counts_as_handled(serve_chat, person, wrong):
    serve_chat()
    alice = person("alice")
    alice.say(**({"type": "onchat", "id": "m1", "to": "bob", "text": "hi"} | wrong))
    alice.chat("m2", "nobody")

    error, status = alice.heard
    assert (error["type"], error["code"]) == ("error", "bad-message")
    assert status["status"] == "unknown"
    assert alice.peer.messages[-1]["ack"] == 2


def test_a_message_that_our_own_members_make_too_long_is_refused(serve_chat, person):
    serve_chat(message_limit=1024)
    alice, bob = person("alice"), person("bob")

    alice.chat("m1", "bob", text="x" * 930)

    assert [(one["code"], one["re"]) for one in alice.heard] == [("too-big", "m1")]
    assert bob.heard == []


def test_a_lone_surrogate_is_passed_on(serve_chat, person):
    serve_chat()
    alice, bob = person("alice"), person("bob")

    alice.said += 1
    alice.peer.say(b'{"type":"onchat","id":"m1","to":"bob","text":"\\ud800","seq":1}')

    assert bob.heard[0]["text"] == "\ud800"


def test_a_message_that_comes_again_is_passed_on_once(serve_chat, person):
    serve_chat()
    alice, bob = person("alice"), person("bob")
    text = json.dumps({"type": "onchat", "id": "m1", "to": "bob", "text": "hi", "seq": 1}).encode()

    alice.peer.write(frame(text), frame(text))

    assert len(bob.heard) == 1
    assert alice.statuses("m1") == ["queued"]


def test_the_sender_is_told_of_delivery_when_he_comes_back(serve_chat, person, world):
    serve_chat()
    alice, bob = person("alice"), person("bob")
    alice.chat("m1", "bob")
    aborted(alice, world)
    bob.ack()

    back = person("alice", resume=alice.resume(), said=alice.said)
    assert back.heard == [{"type": "onchat", "id": "m1", "status": "delivered"}]


def test_a_sender_who_has_gone_for_good_is_told_nothing(serve_chat, person):
    serve_chat()
    alice, bob = person("alice"), person("bob")
    alice.chat("m1", "bob")
    alice.peer.leave(1000)

    bob.ack()

    assert len(bob.heard) == 1


# To groups.


def events(person, group="room"):
    """What a member heard of a group, in short."""
    heard = [one for one in person.heard if one.get("group") == group]
    return [
        (one["missed"],) if "missed" in one else (one["action"], one["from"], one.get("text"), one["members"])
        for one in heard
    ]


def test_a_group_hears_who_joins_who_leaves_and_what_is_said(serve_chat, person):
    serve_chat()
    alice, bob = person("alice"), person("bob")

    alice.group("join")
    bob.group("join")
    alice.group("say", text="hi", id="s1")
    bob.group("leave")
    alice.group("say", text="alone")

    assert events(alice) == [
        ("join", "alice", None, 1),
        ("join", "bob", None, 2),
        ("say", "alice", "hi", 2),
        ("leave", "bob", None, 1),
        ("say", "alice", "alone", 1),
    ]
    assert events(bob) == events(alice)[1:4]
    assert [one["id"] for one in bob.heard if "id" in one] == ["s1"]


def test_another_tab_of_a_member_is_a_member_too_and_no_news(serve_chat, person):
    factory = serve_chat()
    alice, bob, tab = person("alice"), person("bob"), person("bob")
    for one in (alice, bob, tab):
        one.group("join")
    alice.group("say", text="hi")
    tab.group("leave")
    bob.group("leave")

    assert events(alice) == [
        ("join", "alice", None, 1),
        ("join", "bob", None, 2),
        ("say", "alice", "hi", 2),
        ("leave", "bob", None, 1),
    ]
    assert events(tab) == [("join", "bob", None, 2), ("say", "alice", "hi", 2), ("leave", "bob", None, 2)]
    assert factory.groups.members("room") == 1


def test_text_is_passed_on_when_it_is_said_and_not_with_a_join_or_a_leave(serve_chat, person):
    """Else a join could be too long to be told, and be one all the same."""
    factory = serve_chat(message_limit=1024)
    alice, bob = person("alice"), person("bob")
    alice.group("join")
    bob.group("join", text="x" * 900)
    bob.group("say", text="x" * 930)
    bob.group("leave", text="x" * 900)

    assert [event[:3] for event in events(alice)] == [
        ("join", "alice", None),
        ("join", "bob", None),
        ("leave", "bob", None),
    ]
    assert [one["code"] for one in bob.heard if "code" in one] == ["too-big"]
    assert factory.groups.members("room") == 1


def test_to_join_again_is_answered_and_changes_nothing(serve_chat, person):
    serve_chat()
    alice, bob = person("alice"), person("bob")
    alice.group("join")
    bob.group("join")
    bob.group("join")

    assert events(bob) == [("join", "bob", None, 2)] * 2
    assert events(alice) == [("join", "alice", None, 1), ("join", "bob", None, 2)]


@pytest.mark.parametrize("action", ["leave", "say"])
def test_who_is_no_member_neither_says_nor_leaves(serve_chat, person, action):
    serve_chat()
    alice, bob = person("alice"), person("bob")
    alice.group("join")

    bob.group(action, text="hi")

    assert [one["code"] for one in bob.heard] == ["not-a-member"]
    assert events(alice) == [("join", "alice", None, 1)]


@pytest.mark.parametrize(
    "wrong", [{"group": ""}, {"group": "x" * 65}, {"group": 1}, {"action": "shout"}, {"action": []}, {"id": []}]
)
def test_what_is_no_group_message_is_refused(serve_chat, person, wrong):
    serve_chat()
    alice = person("alice")

    alice.say(**({"type": "ongroupchat", "group": "room", "action": "join"} | wrong))

    assert [one["code"] for one in alice.heard] == ["bad-message"]


def test_text_that_is_none_is_not_said(serve_chat, person):
    serve_chat()
    alice = person("alice")
    alice.group("join")
    alice.group("say", text=7)

    assert [one.get("code") for one in alice.heard] == [None, "bad-message"]


def test_a_session_is_in_a_hundred_groups_at_most(serve_chat, person):
    factory = serve_chat()
    alice = person("alice")
    for n in range(factory.heartbeat_settings.groups_per_session + 1):
        alice.group("join", f"g{n}")

    assert [one["code"] for one in alice.heard if "code" in one] == ["full"]
    assert factory.groups.members("g100") == 0


def test_a_member_who_is_away_stays_one_and_hears_all_of_it_when_he_is_back(serve_chat, person, world):
    serve_chat()
    alice, bob = person("alice"), person("bob")
    alice.group("join")
    bob.group("join")
    bob.ack()
    aborted(bob, world)
    alice.group("say", text="hi")

    back = person("bob", resume=bob.resume())

    assert events(back) == [("say", "alice", "hi", 2)]
    assert events(alice)[-1] == ("say", "alice", "hi", 2)


def test_what_is_over_half_of_the_bound_of_one_who_is_away_is_counted_and_told(serve_chat, person, world):
    serve_chat(kept_limit=20)
    alice, bob = person("alice"), person("bob")
    alice.group("join")
    bob.group("join")
    bob.ack()
    aborted(bob, world)
    for n in range(15):
        alice.group("say", text=str(n))
        alice.ack()

    back = person("bob", resume=bob.resume())
    alice.group("say", text="again")

    assert [event[2] if len(event) > 1 else event for event in events(back)] == [
        *map(str, range(10)),
        (5,),
        "again",
    ]


def test_a_member_who_is_there_and_full_misses_and_is_told_when_he_has_room(serve_chat, person):
    serve_chat(kept_limit=4, full_patience=1000.0)
    alice, bob = person("alice"), person("bob")
    alice.group("join")
    bob.group("join")
    for n in range(6):
        alice.group("say", text=str(n))
        alice.ack()
    assert [event[2] for event in events(bob)] == [None, "0", "1", "2"]

    bob.ack()
    alice.group("say", text="again")

    assert events(bob)[4:] == [(3,), ("say", "alice", "again", 2)]


def test_who_has_room_for_the_number_of_what_he_missed_and_for_no_more_is_told_it_once(serve_chat, person):
    serve_chat(kept_limit=4, full_patience=1000.0)
    alice, bob = person("alice"), person("bob")
    alice.group("join")
    bob.group("join")
    for n in range(6):
        alice.group("say", text=str(n))
        alice.ack()
    bob.peer.say({"type": "ack", "ack": 1})
    alice.group("say", text="again")
    alice.ack()
    assert events(bob)[4:] == [(3,)]

    bob.ack()
    alice.group("say", text="and again")

    assert events(bob)[5:] == [(1,), ("say", "alice", "and again", 2)]


@pytest.mark.parametrize("how", ["1000", "the window"])
def test_a_member_whose_session_ends_has_left_the_group(serve_chat, person, world, how):
    factory = serve_chat(window=5.0)
    alice, bob = person("alice"), person("bob")
    alice.group("join")
    bob.group("join")

    if how == "1000":
        bob.peer.leave(1000)
    else:
        aborted(bob, world)
        world.advance(6)

    assert events(alice)[-1] == ("leave", "bob", None, 1)
    assert factory.groups.members("room") == 1


def test_pages_without_a_session_are_members_as_long_as_they_are_connected(serve_chat, person, connect):
    serve_chat()
    alice, page = person("alice"), connect().open()
    alice.group("join")
    page.say({"type": "ongroupchat", "group": "room", "action": "join"})
    alice.group("say", text="hi")
    page.leave()

    assert [(one["action"], one["members"]) for one in page.messages] == [("join", 2), ("say", 2)]
    assert [event[0] for event in events(alice)] == ["join", "join", "say", "leave"]


def test_a_page_that_does_not_read_misses_what_is_said_in_its_groups(serve_chat, person, connect, waits):
    serve_chat(outgoing_limit=100_000)
    page, alice = connect().open(), person("alice")
    page.say({"type": "ongroupchat", "group": "room", "action": "join"})
    alice.group("join")
    waits[0] = 100_001
    alice.group("say", text="hi")

    assert [one["action"] for one in page.messages] == ["join", "join"]
    assert events(alice)[-1][0] == "say"


def test_when_the_last_member_has_gone_nothing_of_the_group_is_left(serve_chat, person):
    factory = serve_chat()
    alice = person("alice")
    alice.group("join")
    alice.peer.leave(1000)

    assert (factory.groups.groups.groups, factory.groups.groups.joined) == ({}, {})
    assert factory.presence.count(Standing.DETACHED) == 0
