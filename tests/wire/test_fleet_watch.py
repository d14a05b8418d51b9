"""A fleet as it is watched from one of its servers: several servers and one Redis, and what that one's site tells."""

import json
import os
import signal
import socket
from itertools import count
from types import SimpleNamespace

import pytest
import redis_server
from fleet import redis_answer
from test_admin import TOKEN, Answer, Asked
from test_chat import Person
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock

from heartbeat import HeartbeatService
from heartbeat.cluster import gather, subscription
from heartbeat.cluster import presence as fleets
from heartbeat.cluster.presence import FleetPresence
from heartbeat.tap import Options

pytestmark = redis_server.needs_redis

_prefixes = (f"watch{number}:" for number in count())


class Watched(Asked):
    """Somebody who asks the site on which one server of a fleet is watched, and has a way to be its client."""

    def __init__(self, serve, world, connect, turns, fleet):
        server = serve()
        server.heartbeat.fleet = self.fleet = fleet
        fleet.start(server.presence)
        super().__init__(server, world, TOKEN, near=True, fleet=fleet)
        self.turns = turns
        self._connect = connect

    def __call__(self, path, method="GET", body=b"", **headers):
        """The answer to a request, once there is one."""
        transport = self.begin(path, method, body, **headers)
        self.turns.until(lambda: self.world.advance(0) or transport.value())
        return Answer(transport.value())

    def person(self, name):
        """A client of this server."""
        self.world.listen(self.server)
        return Person(self._connect, name)


@pytest.fixture
def watch(serve, world, connect, redis, monkeypatch):
    """Have a fleet of so many servers; in the end all leave it."""
    monkeypatch.setattr(fleets, "_PAUSE", 0.0)
    monkeypatch.setattr(fleets, "_AGAIN", 0.02)
    monkeypatch.setattr(subscription, "_AGAIN", 0.02)
    # All that are asked answer here, however slow the machine is.
    monkeypatch.setattr(gather, "_PATIENCE", 15.0)
    turns, made = redis_server.Turns(), []

    def watch(number=2, *, redis=redis, refresh=60.0):
        prefix = next(_prefixes)
        for _ in range(number):
            fleet = FleetPresence(redis.url, prefix=prefix, refresh=refresh, reactor=turns.reactor)
            made.append(Watched(serve, world, connect, turns, fleet))
        turns.until(
            lambda: all(one.fleet.is_up and one.fleet._subscription.is_up and one.fleet.nodes == number for one in made)
        )
        return made

    yield watch
    for one in made:
        one.leave()
        turns.result(one.fleet.stop())
    turns.rest()


def ids(answer):
    return [client["client_id"] for client in answer.json["clients"]]


def servers(answer):
    """Of each server, by its name in the fleet: its own numbers."""
    return {one["node"]: one for one in answer.json["servers"]}


def test_the_numbers_of_all_are_added_up_and_those_of_each_are_told(watch, monkeypatch):
    """A client on two servers is one that is active; of what waits and of lateness the greatest counts."""
    one, other = watch()
    one.person("alice")
    one.person("bob")
    other.person("alice")
    one.server.heartbeat.tally.convictions["silent"] += 2
    other.server.heartbeat.tally.convictions["silent"] += 3
    one.turns.until(lambda: one.fleet.counts == (2, 2, 3))

    # Here both are one process, which has one lateness.
    one.server.heartbeat.ticker.pulse.late = 0.25
    with monkeypatch.context() as patched:
        patched.setattr(other.server.heartbeat.ticker, "pulse", SimpleNamespace(late=0.5))
        told = one("/fleet/totals").json
    assert (told["connections"], told["clients"]["active"], told["sessions"], told["opened"]) == (3, 2, 3, 3)
    assert (told["convictions"]["silent"], told["convictions"]["no-pong"]) == (5, 0)
    assert (told["states"]["acknowledged"], told["levels"]) == (3, {"0": 0, "1": 3})
    assert told["late_s"] == 0.5
    assert told["room"] == 2 * one("/totals").json["room"]
    assert (told["unready"], told["ready"], told["missing"]) == ("", 2, 0)
    assert told["fleet"] == {"up": True, "nodes": 2, "clients": 2, "known": 2, "connections": 3}
    each = servers(one("/fleet/totals"))
    assert {node: numbers["connections"] for node, numbers in each.items()} == {one.fleet.node: 2, other.fleet.node: 1}
    assert {node: numbers["is_this"] for node, numbers in each.items()} == {
        one.fleet.node: True,
        other.fleet.node: False,
    }
    assert each[one.fleet.node]["server"] == f"{socket.gethostname()}:{os.getpid()}"
    # From the other it is the same, but for who is asked.
    assert other("/fleet/totals").json["connections"] == 3


def test_clients_come_a_page_at_a_time_from_wherever_they_are(watch):
    """In the order of their ids, none twice and none left out, whatever size the pages are."""
    one, other = watch()
    for name in ("alice", "carol", "erin", "frank"):
        one.person(name)
    for name in ("bob", "carol", "dora"):
        other.person(name)

    answer = one("/fleet/clients")
    assert ids(answer) == ["alice", "bob", "carol", "dora", "erin", "frank"]
    assert (answer.json["next"], answer.json["missing"]) == (None, 0)
    (carol,) = (client for client in answer.json["clients"] if client["client_id"] == "carol")
    assert (carol["standing"], carol["sessions"]) == ("active", 2)
    assert {connection["node"] for connection in carol["connections"]} == {one.fleet.node, other.fleet.node}
    for limit in range(1, 8):
        turned, after = [], ""
        while after is not None:
            page = one(f"/fleet/clients?limit={limit}&after={after}")
            assert 1 <= len(ids(page)) <= limit
            turned += ids(page)
            after = page.json["next"]
        assert turned == ["alice", "bob", "carol", "dora", "erin", "frank"]


def test_clients_are_asked_for_by_their_standing_on_any_server_and_shown_by_the_best(watch):
    one, other = watch()
    one.person("alice").peer.transport.abortConnection()
    one.person("bob").peer.transport.abortConnection()
    one.world.advance(0.5)
    other.person("alice")

    assert ids(one("/fleet/clients?standing=detached")) == ["alice", "bob"]
    assert ids(one("/fleet/clients?standing=active")) == ["alice"]
    everybody = {client["client_id"]: client for client in one("/fleet/clients").json["clients"]}
    assert (everybody["alice"]["standing"], everybody["bob"]["standing"]) == ("active", "detached")
    assert (one("/fleet/clients?standing=asleep").status, one("/fleet/clients?limit=0").status) == (400, 400)


def test_links_that_died_are_told_of_all_servers_the_latest_first(watch, world):
    one, other = watch()
    for number, server in enumerate((one, other, one)):
        server.person(f"n{number}").peer.transport.abortConnection()
        world.advance(1)

    deaths = one("/fleet/deaths").json["deaths"]
    assert [(death["client_id"], death["node"]) for death in deaths] == [
        ("n2", one.fleet.node),
        ("n1", other.fleet.node),
        ("n0", one.fleet.node),
    ]


def test_a_client_is_kicked_wherever_it_is(watch):
    one, other = watch()
    here, there = one.person("alice"), other.person("alice")

    assert one.post("/fleet/clients/alice/kick", None).status == 401
    assert one.post("/fleet/clients/alice/kick").json == {"client_id": "alice", "closed": 2, "missing": 0}
    one.world.advance(0.5)
    assert (here.peer.closed_with, there.peer.closed_with) == (1008, 1008)
    nobody = one.post("/fleet/clients/nobody/kick")
    assert (nobody.status, nobody.text) == (404, "no such client is connected\n")


def test_one_server_of_all_is_drained_by_its_name(watch):
    one, other = watch()
    path = f"/fleet/servers/{other.fleet.node}/drain"

    assert one.post(path, None).status == 401
    assert one(path, authorization=f"Bearer {TOKEN.decode()}").status == 405
    drained = one.post(path)
    assert (drained.status, drained.json) == (202, {"draining": True})
    assert (one.drained, other.drained) == (0, 1)
    assert one.post(f"/fleet/servers/{one.fleet.node}/drain").status == 202
    assert one.drained == 1
    nobody = one.post("/fleet/servers/0123456789abcdef/drain")
    assert (nobody.status, nobody.text) == (404, "no such server is in the fleet\n")
    # That of all has no name.
    assert one.post("/fleet/servers//drain").status == 404
    assert (one.drained, other.drained) == (1, 1)
    assert one("/fleet/servers").status == one("/fleet").status == 404


def test_a_server_that_drains_is_no_longer_ready_and_that_is_said(watch):
    one, other = watch()
    other.server.heartbeat.drain()

    told = one("/fleet/totals").json
    assert (told["unready"], told["ready"]) == ("0 of 2 servers are ready", 0)
    one.person("alice")
    told = one("/fleet/totals")
    assert told.json["unready"] == "1 of 2 servers are ready"
    assert servers(told)[other.fleet.node]["unready"] == "the server is on its way out"


def test_a_server_that_is_killed_is_missing_until_its_lease_ends_and_the_others_are_shown_at_once(watch, redis):
    one, other = made = watch()
    one.person("alice")
    other.person("bob")
    one.turns.until(lambda: one.fleet.counts == (2, 2, 2))
    made.remove(other)
    other.leave()
    other.fleet._cancel_timer()
    other.fleet._presence = None
    one.turns.result(other.fleet._subscription.stop())

    told = one("/fleet/totals").json
    assert (told["missing"], told["unready"], told["connections"]) == (1, "1 of 2 servers are ready", 1)
    assert one("/fleet/clients").json["missing"] == 1
    prefix = one.fleet._channel.partition("changed@")[0]
    assert redis_answer(redis, "ZADD", f"{prefix}nodes", "XX", "CH", 0, other.fleet.node) == 1
    one.fleet._soon()
    one.turns.until(lambda: one.fleet.nodes == 1)
    told = one("/fleet/totals").json
    assert (told["missing"], told["unready"]) == (0, "")
    one.turns.result(other.fleet._redis.stop())


def test_while_redis_is_away_a_server_shows_itself_and_says_that_it_is_alone(watch, tmp_path):
    with redis_server.RedisServer(tmp_path) as redis:
        one, other = watch(redis=redis)
        one.person("alice")
        other.person("bob")
        one.turns.until(lambda: one.fleet.counts == (2, 2, 2))
        redis.pause(signal.SIGSTOP)
        redis.kill()
        one.turns.until(lambda: not one.fleet.is_up)

        told = one("/fleet/totals").json
        assert (told["fleet"]["up"], told["fleet"]["nodes"], told["connections"]) == (False, 2, 1)
        assert list(servers(one("/fleet/totals"))) == [one.fleet.node]
        assert ids(one("/fleet/clients")) == ["alice"]
        assert told["clients"]["active"] == 1
        drained = one.post(f"/fleet/servers/{other.fleet.node}/drain")
        assert (drained.status, drained.text) == (503, "Redis is away\n")
        kicked = one.post("/fleet/clients/bob/kick")
        sentence = "1 server(s) of the fleet have not answered, and no other has this client\n"
        assert (kicked.status, kicked.text) == (503, sentence)
        assert one.post("/fleet/clients/alice/kick").json == {"client_id": "alice", "closed": 1, "missing": 1}
        one.world.advance(0.5)
        redis.start()
        one.turns.until(lambda: one.fleet.is_up and other.fleet.is_up and one.fleet.nodes == 2)
        one.turns.until(lambda: one("/fleet/totals").json["connections"] == 2)


STRANGE = [
    5,
    "a",
    [],
    {},
    True,
    {"deaths": 5},
    {"deaths": [{"at": "now"}]},
    {"clients": [{"client_id": 5}], "next": None},
]


@pytest.mark.parametrize("answer", STRANGE, ids=json.dumps)
def test_a_server_that_answers_what_is_no_answer_has_not_answered(watch, answer):
    """As one of another version may."""
    one, other = watch()
    one.person("alice")
    other.fleet.answering = lambda word, about: answer

    assert (one("/fleet/totals").json["missing"], one("/fleet/totals").json["connections"]) == (1, 1)
    assert (ids(one("/fleet/clients")), one("/fleet/clients").json["missing"]) == (["alice"], 1)
    assert one("/fleet/deaths").json == {"deaths": [], "missing": 1}
    kicked = one.post("/fleet/clients/alice/kick").json
    assert kicked == {"client_id": "alice", "closed": 1, "missing": 1} if answer != 5 else {**kicked, "closed": 6}


def test_a_server_that_knows_less_is_shown_with_what_it_knows(watch):
    """One of an earlier version: what it does not count is nothing there."""
    one, other = watch()
    other.person("bob")
    answer = other.fleet.answering

    def fewer(word, about):
        return answer(word, about).addCallback(
            lambda totals: {name: totals[name] for name in ("unready", "room", "watched_since", "server", "clients")}
        )

    other.fleet.answering = fewer
    one.turns.until(lambda: one.fleet.counts == (1, 1, 1))
    told = one("/fleet/totals").json
    assert (told["missing"], told["connections"], told["clients"]["active"]) == (0, 0, 1)


def test_who_asks_a_server_that_stops_before_it_has_looked_is_told_so(watch, world, monkeypatch):
    """Not answered with the others' numbers, as if there were none here."""
    one, _ = watch()
    monkeypatch.setattr(one.fleet._gatherer, "answering", lambda word, about: Deferred())
    asked = one.begin("/fleet/totals")
    one.turns.turn()
    one.fleet._gatherer.stop()

    assert (Answer(asked.value()).status, Answer(asked.value()).text) == (503, "this server stops\n")


@pytest.mark.parametrize("path", ["/fleet/totals", "/fleet/clients", "/fleet/deaths"])
def test_who_may_watch_a_fleet_is_who_may_watch_a_server(watch, path):
    (one,) = watch(1)

    assert one(path).status == 200
    assert one(path, host="evil.example").status == 403
    assert one(path, host="evil.example", authorization=f"Bearer {TOKEN.decode()}").status == 200
    assert one(path, "POST").status == 405


def test_a_server_that_is_watched_nowhere_answers_the_others_of_its_fleet_all_the_same(watch):
    """It has no `--admin`, and is drained from another server's page."""
    (one,) = watch(1)
    name = one.fleet._gatherer._name.removesuffix("ask")
    there = FleetPresence(f"{one.fleet.url}", prefix=name, reactor=one.turns.reactor)
    service = HeartbeatService(cluster=there, reactor=MemoryReactorClock())
    service.privilegedStartService()
    service.startService()
    one.turns.until(lambda: one.fleet.nodes == 2 and there._subscription.is_up)

    assert set(servers(one("/fleet/totals"))) == {one.fleet.node, there.node}
    assert one.post(f"/fleet/servers/{there.node}/drain").status == 202
    one.turns.until(lambda: service.factory.heartbeat.draining is not None)
    one.turns.result(service.stopService())


def test_a_server_of_no_fleet_has_no_such_address(serve, world):
    site = Asked(serve(), world, None, near=True)

    assert site("/fleet/totals").status == 404
    assert site("/totals").json["fleet"] is None
    site.leave()


def test_the_command_line_has_both(tmp_path):
    options = Options()
    options.parseOptions(["--cluster", "redis://host", "--admin", "tcp:0:interface=127.0.0.1"])
    factory = options.service().factory

    assert factory.heartbeat.fleet.answering("drain?", {}) is None
    assert factory.heartbeat.fleet.answering("deaths", {}) == {"deaths": []}
