"""Groups of a fleet: one group over all servers, whose members hear the same as they would at a single server.

Several servers in one process over one real Redis; the pages are of bytes, the clients of the walk the real ones.
"""

import json
import time

import pytest
import redis_server
from fleet import Books, Teller, Walk
from peers import CLOSE, frame
from twisted.internet.defer import Deferred

from heartbeat import groups
from heartbeat.chat import Chat, GroupChat
from heartbeat.cluster.words import arguments_of
from heartbeat.store import Fate, Head, Join, Kept, Leave, Mark, Missed, Say

pytestmark = redis_server.needs_redis

# Seconds between calls in these tests, where they wait for leases to end.
QUICK = 0.1


class Voice:
    """A page of bytes, in a session or without one: says, hears, and acknowledges only when told to."""

    def __init__(self, page, *, in_session=True):
        self.page = page
        self.in_session = in_session
        self.said = 0
        if not in_session:
            page.say({"type": "onopen"})
        self.answer = page.messages[0]

    def says(self, action, group="room", **more):
        self.page.say(self.message(action, group, **more))

    def message(self, action, group="room", **more):
        """What it is going to say."""
        self.said += 1
        numbered = {"seq": self.said} if self.in_session else {}
        return {"type": "ongroupchat", "group": group, "action": action} | more | numbered

    @property
    def name(self):
        return self.answer["client_id"]

    @property
    def sid(self):
        return self.answer["sid"]

    @property
    def heard(self):
        """All that was said to it but beats, without what only says how far others are."""
        told = [one for one in self.page.messages if one["type"] in ("ongroupchat", "error")]
        return [{key: value for key, value in one.items() if key != "ack"} for one in told]

    @property
    def events(self):
        """The same in short."""
        return [
            ("missed", one["missed"])
            if "missed" in one
            else (one["code"],)
            if one["type"] == "error"
            else (one["action"], one["from"], one["members"], *([one["text"]] if "text" in one else []))
            for one in self.heard
        ]

    @property
    def latest(self):
        """Its last event; none where nothing has come yet, as to one whose neighbour heard first."""
        return self.events[-1] if self.events else ()

    @property
    def last(self):
        return max((one["seq"] for one in self.page.messages if "seq" in one), default=0)

    def acks(self):
        self.page.say({"type": "ack", "ack": self.last})

    def resume(self, **numbers):
        """What to say to come back to this session."""
        session = {name: self.answer[name] for name in ("sid", "epoch")}
        return session | {"last": self.last, "sent": self.said, "try": 1} | numbers


def voice(fleet, node, name=None):
    """A page at this server, in a session if it has a name."""
    return Voice(fleet.page(node, name), in_session=name is not None)


def hears(fleet, *events_of):
    """Each of these pages hears this last."""
    for voice, *event in events_of:
        fleet.until(lambda voice=voice, event=event: voice.latest == tuple(event))


def joined(fleet, *nodes, group="room"):
    """A member at each of these servers, the first alice, then bob, carol and dave."""
    voices = []
    for name, node in zip(("alice", "bob", "carol", "dave"), nodes, strict=False):
        voices.append(voice(fleet, node, name))
        voices[-1].says("join", group)
        hears(fleet, *((one, "join", name, len(voices)) for one in voices))
    return voices


def vanishes(fleet, node, voice):
    """Its connection breaks, and its server and Redis know that."""
    voice.page.transport.abortConnection()
    fleet.until(lambda: "detached_at" in Books(fleet).known(voice.sid))


def comes_back(fleet, node, voice, **numbers):
    """The same, at this server, in another connection."""
    page = fleet.page(node, voice.name, session=voice.resume(**numbers))
    assert page.messages[0]["resumed"]
    voice.page = page
    voice.answer = page.messages[0]


def quiet(fleet, seconds=0.15):
    """Whatever is on its way arrives."""
    until = time.monotonic() + seconds
    fleet.until(lambda: time.monotonic() > until)


# The same as with one server.

TEXTS = ('"\\/\b\n', "größer € 😀", "\ud800", "")

STEPS = [
    ("alice", "join"),
    ("page", "join", {"id": 7}),
    ("bob", "join", {"id": "b1"}),
    ("tab", "join"),
    ("alice", "join"),
    ("alice", "say", {"text": "hi", "id": "s1"}),
    ("page", "say", {"text": "hi all", "id": -5}),
    *(("bob", "say", {"text": text}) for text in TEXTS),
    ("bob", "ack"),
    ("alice", "ack"),
    ("tab", "ack"),
    ("carol", "say", {"text": "let me in"}),
    ("carol", "leave"),
    ("carol", "join"),
    ("carol", "join", {"group": '"\\ü\ud800'}),
    ("carol", "say", {"group": '"\\ü\ud800', "text": "here"}),
    ("carol", "join", {"group": "b"}),
    ("carol", "join", {"group": "c", "id": "c9"}),
    ("carol", "say", {"group": "b", "text": "x" * 480}),
    ("carol", "say", {"group": "b", "text": 7}),
    ("carol", "leave", {"group": "b", "text": "never told"}),
    ("tab", "leave"),
    ("bob", "vanish"),
    *(("alice", action) for _ in range(5) for action in ("join", "ack")),
    *(("alice", *action) for n in range(6) for action in (("say", {"text": str(n)}), ("ack",))),
    ("bob", "back"),
    ("alice", "say", {"text": "again"}),
    ("bob", "ack"),
    ("tab", "join"),
    ("bob", "quit"),
    ("tab", "quit"),
    *(("page", "say", {"text": str(n)}) for n in range(12)),
    ("alice", "ack"),
    ("page", "say", {"text": "last"}),
    ("page", "leave"),
    ("page", "say", {"text": "too late"}),
    ("page", "join"),
    ("page", "quit"),
    ("alice", "leave"),
]

BOUNDS = {
    "interval": 60.0,
    "kept_limit": 10,
    "message_limit": 1024,
    "groups_per_session": 2,
    "group_members": 4,
    "full_patience": 3600.0,
}


def acted(voices, make, vanish, back, settle):
    """Each of `STEPS`, and after each how much every voice has heard by then."""
    counts = []
    for name, action, *more in STEPS:
        if name not in voices:
            voices[name] = make(name)
        one = voices[name]
        if action == "ack":
            one.acks()
        elif action == "vanish":
            vanish(name, one)
        elif action == "back":
            back(name, one)
        elif action == "quit":
            one.page.leave()
        else:
            one.says(action, **({"group": "room"} | (more[0] if more else {})))
        settle(len(counts))
        counts.append({name: len(one.heard) for name, one in voices.items()})
    return counts


def transcripts(voices):
    """What each has heard, by names that are always the same."""
    page = json.dumps(voices["page"].name)
    return {
        name: [json.dumps(message).replace(page, '"page"') for message in one.heard] for name, one in voices.items()
    }


def test_members_at_several_servers_hear_the_same_as_at_one_under_the_same_numbers(gather, serve, connect, world):
    factory = serve(**BOUNDS, trust_client_ids=True)
    Chat(factory)
    GroupChat(factory)

    def make(name):
        page = connect().open()
        if name == "page":
            return Voice(page, in_session=False)
        page.say({"type": "onopen", "v": 1, "client_id": "bob" if name == "tab" else name}, {"type": "ping"})
        return Voice(page)

    def vanish(name, one):
        one.page.transport.abortConnection()
        world.advance(0.1)

    def back(name, one):
        page, session = connect().open(), one.resume()
        page.say({"type": "onopen", "v": 1, "client_id": one.name, "session": session}, {"type": "ping"})
        one.page = heard_before(one, page)

    alone = {}
    counts = acted(alone, make, vanish, back, lambda step: None)

    fleet, *nodes = gather(3, **BOUNDS)
    at = {"alice": nodes[0], "bob": nodes[1], "tab": nodes[0], "page": nodes[2], "carol": nodes[2]}
    several = {}

    def settle(step):
        try:
            fleet.until(lambda: not any(node.store._redis._asked for node in nodes))
            fleet.until(lambda: {name: len(one.heard) for name, one in several.items()} == counts[step], 5)
        except AssertionError:
            raise AssertionError((STEPS[step], counts[step], transcripts(several))) from None

    def make_there(name):
        return voice(fleet, at[name], None if name == "page" else "bob" if name == "tab" else name)

    def back_there(name, one):
        page = fleet.page(nodes[2], one.name, session=one.resume())
        one.page = heard_before(one, page)

    counted = acted(several, make_there, lambda name, one: vanishes(fleet, at[name], one), back_there, settle)

    assert counted == counts
    assert transcripts(several) == transcripts(alone)
    assert any("missed" in message for one in alone.values() for message in map(str, one.heard))
    recounted(fleet)


def heard_before(one, page):
    """The page, with what was heard on the one before."""
    page.earlier = [*getattr(one.page, "earlier", []), *one.page.messages]
    page.__class__ = type("Later", (page.__class__,), {"messages": property(all_messages)})
    return page


def all_messages(page):
    return [*page.earlier, *map(json.loads, page.texts)]


def recounted(fleet):
    """The books are right, now or in a moment."""
    until = time.monotonic() + 10
    while True:
        quiet(fleet, 0.05)
        try:
            fleet.recount()
        except AssertionError:
            if time.monotonic() > until:
                raise
        else:
            return


# Wherever the members are.


def test_a_member_who_comes_to_another_server_has_not_left(gather):
    fleet, one, other = gather(interval=60.0)
    alice, bob = joined(fleet, one, other)

    comes_back(fleet, one, bob)
    alice.says("say", text="where are you?")
    hears(fleet, (bob, "say", "alice", 2, "where are you?"))
    bob.says("say", text="here")
    hears(fleet, (alice, "say", "bob", 2, "here"))

    assert [event[0] for event in alice.events] == ["join", "join", "say", "say"]
    recounted(fleet)


def test_how_many_are_in_a_group_is_the_same_at_every_server(gather):
    fleet, one, other = gather(interval=60.0)
    joined(fleet, one, other)

    assert [fleet.result(node.groups.members("room")) for node in (one, other)] == [2, 2]
    assert fleet.result(one.groups.members("nobody's")) == 0


def test_another_tab_of_a_member_at_another_server_is_no_news_until_the_last_has_left(gather):
    fleet, one, other = gather(interval=60.0)
    alice, bob = joined(fleet, one, other)
    tab = voice(fleet, one, "bob")
    tab.says("join")
    hears(fleet, (tab, "join", "bob", 2))
    bob.says("leave")
    hears(fleet, (bob, "leave", "bob", 2))
    assert len(alice.events) == 2

    tab.says("leave")
    hears(fleet, (tab, "leave", "bob", 1), (alice, "leave", "bob", 1))
    recounted(fleet)


def test_an_event_goes_with_the_word_of_it_and_nobody_reads_the_store_for_it(gather):
    fleet, one, other = gather(interval=60.0)
    alice, bob = joined(fleet, one, other)
    read = []
    for node in (one, other):
        node.store.replay = lambda *about: read.append(about)
    for number in range(20):
        alice.says("say", text=str(number))
        alice.acks()
    hears(fleet, (bob, "say", "alice", 2, "19"))

    assert read == []
    recounted(fleet)


def test_what_is_heard_late_or_too_early_takes_no_turn_that_is_not_its_own(gather):
    """What is published comes on another way than what is read."""
    fleet, one, other = gather(interval=60.0)
    alice, bob = joined(fleet, one, other)
    bob.acks()
    channel, heard = other.sessions.channels[bob.sid], []
    passed_on = other.sessions.passed_on
    other.sessions.passed_on = lambda *what: heard.append(what)
    for text in ("one", "two", "three"):
        alice.says("say", text=text)
    fleet.until(lambda: len(heard) == 3)
    passed_on(*heard[1])
    fleet.until(lambda: channel.session.sent == 4)
    bob.acks()
    fleet.until(lambda: channel.session.confirmed == 4)
    passed_on(*heard[0])
    passed_on(*heard[2])
    passed_on("nobody's", Kept(1, b"{}", None))

    assert not channel.ended
    assert [event[-1] for event in bob.events[1:]] == ["one", "two", "three"]
    recounted(fleet)


def test_a_server_that_has_heard_nothing_for_a_while_reads_what_was_said(gather):
    fleet, one, other = gather(interval=60.0)
    alice, bob = joined(fleet, one, other)
    other.hears_nothing()
    alice.says("say", text="hello?")
    hears(fleet, (alice, "say", "alice", 2, "hello?"))
    quiet(fleet)
    assert len(bob.events) == 1

    other.hears_again()
    hears(fleet, (bob, "say", "alice", 2, "hello?"))
    recounted(fleet)


def answered_late(store, name):
    """Have what this is asked for be answered when we say so; each answer with what it waits to be told."""
    ask, answers = getattr(store, name), []

    def late(*about):
        answer = Deferred()
        ask(*about).addCallback(lambda found: answers.append((answer, found)))
        return answer

    setattr(store, name, late)
    return answers


def test_what_is_said_while_sessions_are_looked_at_is_not_taken_for_lost(gather):
    """What is published may be here before the answer to what was asked earlier, which knows nothing of it."""
    fleet, one, other = gather(interval=60.0)
    alice, bob = joined(fleet, one, other)
    bob.acks()
    channel, answers = other.sessions.channels[bob.sid], answered_late(other.store, "keep")
    other.is_deaf()
    fleet.until(lambda: answers)
    alice.says("say", text="in between")
    hears(fleet, (bob, "say", "alice", 2, "in between"))
    ((answer, found),) = answers
    assert found[0][0] < channel.session.sent
    answer.callback(found)

    assert not channel.ended
    del other.store.keep
    recounted(fleet)


def test_nor_is_what_is_said_while_a_session_is_resumed(gather):
    fleet, one, other = gather(interval=60.0)
    alice, bob = joined(fleet, one, other)
    bob.acks()
    channel, answers = other.sessions.channels[bob.sid], answered_late(other.store, "retake")
    vanishes(fleet, other, bob)
    back = fleet.page(other)
    back.say({"type": "onopen", "v": 1, "client_id": "bob", "session": bob.resume()})
    fleet.until(lambda: answers)
    alice.says("say", text="in between")
    fleet.until(lambda: channel.session.sent == 2)
    ((answer, found),) = answers
    assert found.sent < channel.session.sent
    answer.callback(found)
    fleet.until(lambda: back.messages)

    assert not channel.ended
    assert back.messages[0]["sid"] == bob.sid
    del other.store.retake
    recounted(fleet)


def test_what_is_said_while_a_member_comes_to_another_server_is_there_when_he_is(gather):
    fleet, one, other = gather(interval=60.0)
    _, bob = joined(fleet, one, one)
    expect, came = other.sessions._expect, []

    def in_between(sid, asked):
        """Something is passed on to this server after it has the session, and before it knows that."""
        asked.addCallback(lambda found: other.sessions.passed_on(sid, Kept(9, b"{}", None)) or found)
        came.append(sid)
        return expect(sid, asked)

    other.sessions._expect = in_between
    comes_back(fleet, other, bob)

    assert came == [bob.sid]
    fleet.until(lambda: not other.sessions._reading and not other.store._redis._asked)
    recounted(fleet)


# Ends.


@pytest.mark.parametrize("how", ["closed", "expired", "full", "the server that it was at died"])
def test_a_member_whose_session_ends_has_left_once_whoever_ends_it(gather, how):
    fleet, one, other = gather(refresh=QUICK, window=1.0, interval=60.0)
    alice, bob, carol = joined(fleet, one, other, one)
    bob.says("join", "attic")
    hears(fleet, (bob, "join", "bob", 1))
    if how == "closed":
        bob.page.leave()
    elif how == "expired":
        bob.page.transport.abortConnection()
    elif how == "full":
        vanishes(fleet, other, bob)
        other.sessions.channels[bob.sid].end("full")
    else:
        other.dies()

    hears(fleet, (alice, "leave", "bob", 2), (carol, "leave", "bob", 2))
    quiet(fleet)
    assert [event[0] for event in alice.events] == ["join", "join", "join", "leave"]
    recounted(fleet)
    assert Books(fleet).named("g:") == {'"room"'}


def test_a_session_that_ends_before_its_server_knows_that_it_has_joined_is_no_member(gather):
    """What it has asked for is done, and nobody is there to be told; nor is anything said in the group meanwhile."""
    fleet, one, other = gather(interval=60.0)
    (alice,) = joined(fleet, one)
    bob = voice(fleet, other, "bob")
    message = frame(json.dumps(bob.message("join")).encode())
    bob.page.transport.write(message + frame(b"\x03\xe8", CLOSE))
    fleet.world.advance(0.05)

    hears(fleet, (alice, "leave", "bob", 1))
    assert [event[0] for event in alice.events] == ["join", "join", "leave"]
    recounted(fleet)


def test_who_was_in_many_groups_leaves_them_by_and_by_and_is_not_found_in_some_of_them_meanwhile(gather, monkeypatch):
    monkeypatch.setattr("heartbeat.cluster.sessions._TOLD", 3)
    fleet, one, other = gather(interval=60.0, groups_per_session=10)
    alice, bob = joined(fleet, one, other)
    for number in range(7):
        for voice_ in (alice, bob):
            voice_.says("join", f"g{number}")
            fleet.until(lambda voice_=voice_, group=f"g{number}": voice_.heard[-1]["group"] == group)
    vanishes(fleet, other, bob)
    asked, claims, ask = [], [], other.store._ask

    def claimed(answer):
        """Somebody comes with that session between two calls, with all his numbers right."""
        claims.append(one.store.claim(bob.sid, "bob", 1, bob.last, bob.said))
        return answer

    def counted(name, *arguments):
        answer = ask(name, *arguments)
        if name == "expire":
            asked.append(answer.addCallback(claimed))
        return answer

    other.store._ask = counted
    other.sessions.channels[bob.sid].end("full")
    fleet.until(lambda: [event[0] for event in alice.events].count("leave") == 8)

    # One after each of four, in which he leaves two, and it is over with the last.
    assert len(asked) == 4
    assert {fleet.result(claim) for claim in claims} == {"full"}
    fleet.until(lambda: not Books(fleet).known(bob.sid))
    recounted(fleet)


def test_members_who_are_at_no_server_hear_what_is_said_when_they_are_back(gather):
    fleet, one, other = gather(refresh=QUICK, interval=60.0)
    alice, bob = joined(fleet, one, other)
    bob.acks()
    other.dies()
    fleet.until(lambda: Books(fleet).known(bob.sid)["node"] == "")
    for text in ("one", "two"):
        alice.says("say", text=text)
    hears(fleet, (alice, "say", "alice", 2, "two"))

    comes_back(fleet, one, bob)
    fleet.until(lambda: len(bob.events) == 2)
    assert [event[-1] for event in bob.events] == ["one", "two"]
    recounted(fleet)


# Room.


def test_who_is_away_keeps_half_of_his_bound_and_is_told_how_many_he_missed_wherever_he_comes(gather):
    fleet, one, other, third = gather(3, kept_limit=20, interval=60.0)
    alice, bob = joined(fleet, one, other)
    bob.acks()
    vanishes(fleet, other, bob)
    for number in range(15):
        alice.says("say", text=str(number))
        hears(fleet, (alice, "say", "alice", 2, str(number)))
        alice.acks()
        fleet.until(lambda: not one.store._redis._asked)

    comes_back(fleet, third, bob)
    hears(fleet, (bob, "missed", 5))
    alice.says("say", text="again")
    hears(fleet, (bob, "say", "alice", 2, "again"))

    assert [event[-1] for event in bob.events] == [*map(str, range(10)), 5, "again"]
    assert Books(fleet).named("gm:") == set()
    recounted(fleet)


def test_who_is_there_and_full_misses_and_is_told_with_the_next_that_he_has_room_for(gather):
    """With room for one message he is told the number, and what was said then he has missed again."""
    fleet, one, other = gather(kept_limit=4, full_patience=3600.0, interval=60.0)
    alice, bob = joined(fleet, one, other)

    def says(text):
        alice.says("say", text=text)
        hears(fleet, (alice, "say", "alice", 2, text))
        alice.acks()
        fleet.until(lambda: not one.store._redis._asked and not other.store._redis._asked)

    for number in range(6):
        says(str(number))
    assert [event[-1] for event in bob.events[1:]] == ["0", "1", "2"]
    bob.page.say({"type": "ack", "ack": 1})
    fleet.until(lambda: not other.store._redis._asked)
    says("again")
    hears(fleet, (bob, "missed", 3))
    bob.acks()
    fleet.until(lambda: not other.store._redis._asked)
    says("and again")
    hears(fleet, (bob, "say", "alice", 2, "and again"))

    says("once more")
    hears(fleet, (bob, "say", "alice", 2, "once more"))

    assert [event[-1] for event in bob.events[4:]] == [3, 1, "and again", "once more"]
    recounted(fleet)


def test_a_group_has_so_many_members_over_the_fleet_and_who_is_refused_has_his_room_back(gather):
    fleet, one, other = gather(group_members=2, interval=60.0)
    alice, _ = joined(fleet, one, other)
    late, page = voice(fleet, other, "carol"), voice(fleet, one)
    late.says("join", id="c1")
    page.says("join", id="p1")
    fleet.until(lambda: late.heard and page.heard)

    why = "a group has 2 members at most (setting group_members)"
    assert late.heard == [{"type": "error", "code": "full", "detail": why, "re": "c1", "seq": 1}]
    assert page.heard == [{"type": "error", "code": "full", "detail": why, "re": "p1"}]
    assert one.factory.heartbeat.refusals.counts["group_members"] == 1
    assert other.factory.heartbeat.refusals.counts["group_members"] == 1
    recounted(fleet)
    for refused in (late, page):
        refused.says("say", text="let me in")
    fleet.until(lambda: [voice.latest for voice in (late, page)] == [("not-a-member",)] * 2)
    recounted(fleet)

    alice.says("leave")
    hears(fleet, (alice, "leave", "alice", 1))
    late.says("join")
    hears(fleet, (late, "join", "carol", 2))
    recounted(fleet)


def test_what_is_said_to_many_is_charged_to_who_says_it_at_whatever_server_they_are(gather, monkeypatch):
    monkeypatch.setattr(groups, "FAN_OUT", 1)
    fleet, one, other = gather(interval=60.0)
    alice, *_ = joined(fleet, one, other, other)
    page = voice(fleet, one)
    page.says("join")
    hears(fleet, (page, "join", page.name, 4))
    edge = one.sessions.channels[alice.sid].connection
    for speaker, counted in ((alice, edge), (page, next(iter(one.groups._ids)))):
        counted.left = 100
        speaker.says("say", text=f"from {speaker.name}")
        hears(fleet, (speaker, "say", speaker.name, 4, f"from {speaker.name}"))
        fleet.until(lambda counted=counted: counted.left == 100 - 1 - 4)


def test_one_who_redis_does_not_know_as_a_member_any_more_is_told_so(gather):
    """As after the loss of its last writes: the server thinks that he is one."""
    fleet, one, other = gather(interval=60.0)
    (alice,) = joined(fleet, one)
    page = voice(fleet, other)
    page.says("join")
    hears(fleet, (page, "join", page.name, 2))
    fleet.asks("DEL", *(f"{fleet.prefix}{name}" for name in ('g:"room"', 'gc:"room"', f"m:{alice.sid}")))
    fleet.asks("DEL", f"{fleet.prefix}y:{other.store.node}")

    alice.says("say", text="hello?", id="a")
    page.says("say", text="hello?", id="p")
    fleet.until(lambda: all(voice.latest == ("not-a-member",) for voice in (alice, page)))
    assert alice.heard[-1]["re"] == "a"
    recounted(fleet)


# Pages without a session.


def test_pages_without_a_session_hear_and_are_heard_at_every_server_as_long_as_they_are_there(gather):
    fleet, one, other = gather(interval=60.0)
    (alice,) = joined(fleet, one)
    pages = [voice(fleet, node) for node in (one, other, other)]
    for number, page in enumerate(pages):
        page.says("join")
        hears(fleet, *((voice, "join", page.name, number + 2) for voice in (alice, *pages[: number + 1])))
    pages[1].says("say", text="hi", id=3)
    hears(fleet, *((voice, "say", pages[1].name, 4, "hi") for voice in (alice, *pages)))
    assert pages[0].heard[-1]["id"] == 3

    pages[2].page.leave()
    hears(fleet, *((voice, "leave", pages[2].name, 3) for voice in (alice, *pages[:2])))
    pages[0].says("leave")
    hears(fleet, *((voice, "leave", pages[0].name, 2) for voice in (alice, *pages[:2])))
    recounted(fleet)


def test_only_servers_with_members_hear_what_is_said(gather):
    fleet, one, other, third = gather(3, interval=60.0)
    (alice,) = joined(fleet, one)
    bob, page = voice(fleet, third, "bob"), voice(fleet, other)
    bob.says("join", "attic")
    page.says("join")
    hears(fleet, (page, "join", page.name, 2), (bob, "join", "bob", 1))
    words = {node: [] for node in (one, other, third)}
    for node, heard in words.items():
        node.store._subscription.heard = lambda channel, word, heard=heard: heard.append(word)
    alice.says("say", text="hi")
    fleet.until(lambda: any(b'"hi"' in word for word in words[other]))
    quiet(fleet)

    # That they have joined may be heard now, by who was told before.
    assert [sum(b'"hi"' in word for word in words[node]) for node in (one, other, third)] == [0, 1, 0]
    for node in words:
        node.hears_again()
    hears(fleet, (alice, "say", "alice", 2, "hi"))


@pytest.mark.parametrize("how", ["dies", "stops"])
def test_the_pages_of_a_server_that_is_gone_have_left_each_once(gather, how):
    fleet, one, other = gather(refresh=QUICK, interval=60.0)
    (alice,) = joined(fleet, one)
    pages = [voice(fleet, other) for _ in range(3)]
    for page in pages:
        page.says("join")
        page.says("join", "attic")
        hears(fleet, (page, "join", page.name, pages.index(page) + 1))
    getattr(other, how)()

    fleet.until(lambda: [event[0] for event in alice.events].count("leave") == 3)
    left = [event[1] for event in alice.events if event[0] == "leave"]
    assert sorted(left) == sorted(page.name for page in pages)
    assert [event[2] for event in alice.events[-3:]] == [3, 2, 1]
    fleet.until(lambda: Books(fleet).named("g:") == {'"room"'})
    assert not Books(fleet).named("y:")
    recounted(fleet)


def test_of_many_pages_of_a_server_that_is_gone_some_leave_at_a_time(gather, monkeypatch):
    monkeypatch.setattr("heartbeat.cluster.sessions._SLICE", 3)
    fleet, one, other = gather(interval=60.0)
    (alice,) = joined(fleet, one)
    pages = [voice(fleet, other) for _ in range(5)]
    for page in pages:
        page.says("join")
        hears(fleet, (page, "join", page.name, pages.index(page) + 2))
    other.dies()
    fleet.asks("ZADD", f"{fleet.prefix}nodes", 0, other.store.node)

    counts = []
    while Books(fleet).named("y:"):
        fleet.result(one.store._call())
        fleet.until(lambda: not one.store._redis._asked)
        counts.append(fleet.result(one.groups.members("room")))
        assert len(counts) < 20, "they never leave"

    assert len(counts) > 1
    assert counts == sorted(counts, reverse=True)
    fleet.until(lambda: (alice.latest[0], alice.latest[2]) == ("leave", 1))
    recounted(fleet)


def test_pages_of_a_server_that_was_taken_for_dead_are_members_again_when_it_is_back(gather):
    fleet, one, other = gather(refresh=QUICK, interval=60.0, group_members=3)
    (alice,) = joined(fleet, one)
    pages = [voice(fleet, other) for _ in range(2)]
    for page in pages:
        page.says("join")
        hears(fleet, (alice, "join", page.name, pages.index(page) + 2))
    other.is_cut_off()
    fleet.until(lambda: [event[0] for event in alice.events].count("leave") == 2)
    late = voice(fleet, one, "late")
    late.says("join")
    hears(fleet, (alice, "join", "late", 2))

    other.is_back()
    fleet.until(lambda: [event[0] for event in alice.events].count("join") == 5)
    # There is room for one of them.
    fleet.until(lambda: sorted(page.latest[:1] for page in pages) == [("full",), ("join",)])
    recounted(fleet)


def test_a_server_that_was_cut_off_for_a_moment_joins_nobody_twice(gather):
    fleet, one, other = gather(interval=60.0)
    (alice,) = joined(fleet, one)
    page = voice(fleet, other)
    page.says("join")
    hears(fleet, (page, "join", page.name, 2))
    other.sessions.forgotten()
    alice.says("say", text="still there?")
    hears(fleet, *((one, "say", "alice", 2, "still there?") for one in (alice, page)))

    assert [event[0] for event in alice.events] == ["join", "join", "say"]
    assert [event[0] for event in page.events] == ["join", "say"]
    recounted(fleet)


def test_a_page_that_joins_while_its_server_is_taken_for_dead_is_swept_if_that_is_true(gather):
    fleet, one, other = gather(interval=60.0)
    (alice,) = joined(fleet, one)
    page = voice(fleet, other)
    fleet.asks("ZREM", f"{fleet.prefix}nodes", other.store.node)
    page.says("join")
    hears(fleet, (alice, "join", page.name, 2))
    other.dies()

    fleet.result(one.store._call())
    hears(fleet, (alice, "leave", page.name, 1))
    recounted(fleet)


# Redis goes, and servers begin anew.


def test_while_redis_is_away_what_is_said_waits_and_is_heard_once(own, gather):
    fleet, one, other = gather(redis=own, interval=60.0)
    alice, bob = joined(fleet, one, other)
    page = voice(fleet, one)
    own.kill()
    fleet.until(lambda: one.store._redis._is_away)
    alice.says("say", text="anybody?")
    page.says("join")
    bob.page.transport.abortConnection()
    quiet(fleet)
    assert alice.events[-1][0] == "join"

    own.start()
    hears(fleet, (alice, "join", page.name, 3))
    comes_back(fleet, other, bob)
    hears(fleet, (bob, "join", page.name, 3), (page, "join", page.name, 3))

    assert [event[-1] for event in alice.events[2:]] == ["anybody?", 3]
    recounted(fleet)


def test_what_a_member_said_at_a_server_that_is_cut_off_is_said_once_at_another(gather):
    fleet, one, other = gather(interval=60.0)
    alice, bob = joined(fleet, one, other)
    message = bob.message("say", text="once")
    other.is_cut_off()
    bob.page.say(message)
    quiet(fleet)
    comes_back(fleet, one, bob, sent=1)
    bob.page.say({"type": "ongroupchat"} | {key: message[key] for key in ("group", "action", "text", "seq")})
    hears(fleet, (alice, "say", "bob", 2, "once"))

    other.is_back()
    quiet(fleet)
    assert [event[0] for event in alice.events] == ["join", "join", "say"]
    recounted(fleet)


def test_a_redis_that_has_forgotten_everything_has_the_pages_that_are_there_in_their_groups_again(own, gather):
    fleet, one, _ = gather(redis=own, refresh=QUICK, interval=60.0)
    (alice,) = joined(fleet, one)
    page = voice(fleet, one)
    page.says("join")
    hears(fleet, (alice, "join", page.name, 2))
    fleet.asks("FLUSHALL")

    hears(fleet, (page, "join", page.name, 1))
    assert fleet.result(one.groups.members("room")) == 1
    recounted(fleet)


def test_a_server_that_starts_again_has_the_pages_that_are_still_there_in_their_groups(gather):
    fleet, one, other = gather(interval=60.0)
    (alice,) = joined(fleet, one)
    page, bob = voice(fleet, other), voice(fleet, other, "bob")
    for number, voice_ in enumerate((page, bob)):
        voice_.says("join")
        hears(fleet, (alice, "join", voice_.name, number + 2))
    fleet.result(other.sessions.stop())
    hears(fleet, (alice, "leave", page.name, 2))

    fleet.result(other.sessions.start())
    hears(fleet, (alice, "join", page.name, 3))
    comes_back(fleet, one, bob)
    recounted(fleet)


# As effects of a script.


def test_of_effects_that_do_not_follow_none_of_a_group_is_carried_out(gather):
    """They are read all the same, or what stands after them would be taken for something else."""
    fleet, one, _ = gather(interval=60.0)
    (alice,) = joined(fleet, one)
    sid, room = alice.sid, '"room"'
    follows = (
        Join('"attic"', sid, '"alice"', b"", b"{}", 10),
        Say(room, sid, b"", b"{}"),
        Missed(sid, (room, '"attic"')),
        Leave(room, sid, b"", b"{}"),
    )
    before = Books(fleet).known(sid)
    numbers = fleet.result(one.store.append([Fate(sid, 1, "nobody waits", True, follows), Mark(sid, "after", "all")]))

    assert numbers == (None, None)
    assert Books(fleet).known(sid) == before
    assert Books(fleet).hash(f"m:{sid}")["after"] == "all"
    assert arguments_of(follows).count(b"{}") == 3
    fleet.result(one.store.append([Mark(sid, "after", None)]))


def test_a_session_that_is_gone_joins_nothing(gather):
    fleet, one, _ = gather()
    assert fleet.result(one.store.append([Join('"room"', "gone", '"x"', b"", b"{}", 10)])) == (None,)
    assert Books(fleet).named("g:") == set()


# By chance.

ROOMS = ("hall", "attic")


class Talker(Teller):
    """A client that is in groups by turns; `mine` are those that it means to be in, `said` what was taken of it."""

    def __init__(self, fleet, name, wants=None, **settings):
        super().__init__(fleet, name, wants, **settings)
        self.mine = set()
        self.said = {room: [] for room in ROOMS}
        self.is_done = False

    def does(self, action, room, **more):
        """Say this in a group, if it can be sent."""
        sent = self.send({"type": "ongroupchat", "group": room, "action": action} | more)
        if action == "say":
            sent.addCallback(lambda _: self.said[room].append(more["text"]))
        sent.addErrback(lambda failure: None)

    @property
    def is_full(self):
        return self._session.channel.session.is_full


class GroupWalk(Walk):
    """A fleet that talks in groups. A session that is nobody's, and has room without end, is in them all the time."""

    WEIGHTS = Walk.WEIGHTS | {
        "write": 0,
        "burst": 0,
        "say": 40,
        "go": 12,
        "chatter": 6,
        "come": 6,
        "quit": 2,
        "leave": 3,
    }

    def __init__(self, fleet, seed):
        self.pages = []
        self.gone = []
        self.newcomers = 0
        super().__init__(fleet, seed, make=Talker)
        self.store = fleet.world.nodes[0].store
        fleet.result(self.store.open(Head("recorder", "e", "recorder", 300.0)))
        boundless = ("node", "recorder", "confirmed", 10**9, "bytes", -(10**9))
        fleet.asks("HSET", f"{fleet.prefix}s:recorder", *boundless)
        for room in ROOMS:
            fleet.result(self.store.append([Join(f'"{room}"', "recorder", '"recorder"', b"", b"", 9)]))
            for client in fleet.clients:
                self.go(client, None, room)

    def say(self, client, node):
        room = self.chance.choice(ROOMS)
        if room in client.mine and not client.is_full:
            client.does("say", room, text=f"{client.name} {self.fleet.next_number()}")

    def chatter(self, client, node):
        """More than fits into half of what is kept."""
        for _ in range(14):
            self.say(client, node)

    def go(self, client, node, room=None):
        """Into a group, or out of it."""
        room = room or self.chance.choice(ROOMS)
        if not client.is_full:
            client.does("leave" if room in client.mine else "join", room)
            client.mine ^= {room}

    def come(self, client, node):
        """A page without a session, which is a member."""
        if node not in self.cut and node.store._is_open:
            page = self.fleet.page(node)
            page.say({"type": "onopen"}, {"type": "ongroupchat", "group": self.chance.choice(ROOMS), "action": "join"})
            self.pages.append((node, page))

    def leave(self, client, node):
        if self.pages:
            self.pages.pop(0)[1].leave()

    def quit(self, client, node):
        """Somebody goes for good, and somebody else comes."""
        if client.is_there and client.node not in (None, *self.cut):
            self.fleet.clients.remove(client)
            client.stopService()
            self.gone.append(client)
            self.newcomers += 1
            there = next(one for one in self.fleet.world.nodes if one not in self.cut)
            self.fleet.client(f"newcomer{self.newcomers}", there, make=Talker).wants = None

    def finish(self):
        """Everything heals, and all that was said is known."""
        while self.cut:
            self.cut.pop().is_back()
        for _, page in self.pages:
            page.transport.abortConnection()
        fleet = self.fleet
        fleet.until(lambda: not (fleet.unsettled() or Books(fleet).named("y:")), 30)
        # Whoever is owed a number is told it with the next that he hears.
        store = fleet.world.nodes[0].store
        for room in ROOMS:
            fleet.result(store.append([Leave(f'"{room}"', "recorder", b"", b"")]))
        fleet.until(lambda: not fleet.unsettled())
        events = [json.loads(payload) for _, payload, _ in Books(fleet).kept("recorder")]
        for key in ("s:recorder", "l:recorder"):
            fleet.asks("DEL", f"{fleet.prefix}{key}")
        fleet.asks("SREM", f"{fleet.prefix}c:recorder", "recorder")
        fleet.asks("SREM", f"{fleet.prefix}n:{self.store.node}", "recorder")
        recounted(fleet)
        fleet.until(lambda: not fleet.unsettled())
        for room in ROOMS:
            self.check(room, heard_in(room, events))
        return len(events)

    def check(self, room, told):
        """Each has heard what of all that was told was his to hear, or how much of it he missed."""
        present, stretches = {}, {}
        for event in told:
            action, name, _, members = event
            if action == "join":
                assert name not in present, (name, "joins twice")
                present[name] = True
                stretches.setdefault(name, []).append([])
            assert name in present, (name, action, "is no member")
            for one in present:
                stretches[one][-1].append(event)
            if action == "leave":
                del present[name]
            assert members == len(present), (event, present)
        assert set(map(json.loads, Books(self.fleet).hash(f'gc:"{room}"'))) == set(present)
        for talker in (*self.fleet.clients, *self.gone):
            is_whole = talker in self.fleet.clients
            heard_as_told(talker.name, heard_in(room, talker.others), stretches.get(talker.name, []), is_whole=is_whole)
            said = [text for action, name, text, _ in told if (action, name) == ("say", talker.name)]
            numbers = [int(text.split()[-1]) for text in said]
            assert numbers == sorted(set(numbers)), "out of order, or twice"
            assert set(talker.said[room]) <= set(said), "said, handled, and heard by nobody"
            assert not is_whole or (room in talker.mine) == (talker.name in present), talker.name


def heard_in(room, messages):
    """What was heard of a group, in short."""
    return [
        one.get("missed") or (one["action"], one["from"], one.get("text"), one["members"])
        for one in messages
        if one.get("group") == room
    ]


def heard_as_told(name, heard, stretches, *, is_whole):
    """Somebody was in a group for these stretches; he has heard all of that, but for what he was told he missed.

    Of all ways to read it, for who comes, misses all and goes has heard nothing of it, and what he hears when he comes
    again may be the same.
    """
    ends = {0}
    for stretch in stretches:
        ends = {end for begin in ends for end in _ends_of(stretch, heard, begin, name, is_whole)}
    assert len(heard) in ends, (name, "heard", heard, "of", stretches)


def _ends_of(stretch, heard, begin, name, is_whole):
    """How much of what he has heard, from there on, may have been of this stretch: where the rest begins."""
    # Whoever leaves is not told any more what he has missed by then, nor, without room, that he has left.
    has_left = stretch[-1][:2] == ("leave", name)
    at, number = 0, begin
    while at < len(stretch):
        rest = heard[number : number + 1]
        if has_left:
            yield number
            if rest == stretch[-1:]:
                yield number + 1
        if not rest:
            if not (has_left or is_whole):
                yield number
            return
        (one,) = rest
        if type(one) is not int and one != stretch[at]:
            return
        at += one if type(one) is int else 1
        number += 1
    if at == len(stretch):
        yield number


WENT = [("join", "x", 5), ("leave", "y", 4), ("leave", "x", 3)]
CAME = [("join", "x", 5), ("say", "z", 5)]


@pytest.mark.parametrize(
    ("heard", "is_right"),
    [
        ([*WENT, *CAME], True),
        (CAME, True),
        ([WENT[0], *CAME], True),
        ([WENT[0], WENT[-1], *CAME], True),
        ([WENT[0], 1, WENT[-1], *CAME], True),
        ([2], True),
        ([*WENT, 2], True),
        ([*WENT, 1, CAME[-1]], True),
        (CAME[1:], False),
        (CAME[:1], False),
        ([*WENT, 1], False),
        ([*WENT, 3], False),
        ([*WENT, CAME[-1]], False),
        ([*WENT, *CAME, CAME[-1]], False),
        ([*reversed(WENT), *CAME], False),
        ([], False),
    ],
)
def test_the_walk_is_told_what_was_not_heard(heard, is_right):
    try:
        heard_as_told("x", heard, [WENT, CAME], is_whole=True)
    except AssertionError:
        assert not is_right
    else:
        assert is_right


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 40))])
def test_whatever_happens_every_member_hears_all_once_and_in_order_or_how_much_he_missed(gather, seed):
    fleet, *_ = gather(0, refresh=QUICK, kept_limit=24)
    walk = GroupWalk(fleet, seed)

    walk.steps(150)

    # Most have twice as much and more; that is by chance, as the walk itself.
    assert walk.finish() > 30
