"""A fleet of real servers on one real Redis: what the pongs say, when a server is killed, and when Redis is."""

import contextlib
import sys
import time
from pathlib import Path

import pytest
import pytest_twisted
from ports import free_port
from processes import twistd
from twisted.internet import reactor
from twisted.internet.defer import DeferredList
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from heartbeat import HeartbeatClient, Settings

# The Redis of the tests stands beside those on the wire.
sys.path.append(str(Path(__file__).parents[1] / "wire"))

import redis_server

pytestmark = [pytest.mark.slow, redis_server.needs_redis]

NODES, CLIENTS = 3, 30
# As the servers have it: the lease holds for three refreshes of 5 s. Some for programs and lines on a busy machine.
LEASE, SLACK = 15.0, 5.0


class Client(HeartbeatClient):
    """One client; keeps what its pongs said, and how often its link ended."""

    def __init__(self, url, name):
        self.said = []
        self.ends = 0
        settings = Settings(interval=0.25, client_id=name, attempts=1)
        super().__init__(url, settings=settings, reactor=reactor)

    def pongReceived(self, rtt, clients):
        self.said.append(clients)

    def linkChanged(self, status):
        self.ends += status.event in ("dead", "closed", "unreachable")


async def until(condition, seconds):
    """Let the reactor turn until this is so; how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it never is"
        await deferLater(reactor, 0.05, lambda: None)
    return time.monotonic() - began


class Fleet:
    """The servers, each on its port and in a folder of its own, and their clients."""

    def __init__(self, folder, redis, life):
        self.folder = folder
        self.redis = redis
        self.life = life
        self.ports = [free_port() for _ in range(NODES)]
        self.servers = [self.serve(number) for number in range(NODES)]
        #: Those that beat just now.
        self.there = []

    def serve(self, number):
        folder = self.folder / f"node{number}"
        folder.mkdir(exist_ok=True)
        listen = f"tcp:{self.ports[number]}:interface=127.0.0.1"
        options = ("--cluster", self.redis.url, "--store", "memory", "--listen", listen)
        return self.life.enter_context(twistd(*options, cwd=folder))

    def come(self, names, number):
        """Clients of these names, at the server of this number."""
        clients = [Client(f"ws://127.0.0.1:{self.ports[number]}/ws", name) for name in names]
        for client in clients:
            client.startService()
            self.life.callback(client.stopService)
        self.there += clients
        return clients

    def go(self, clients):
        self.there = [client for client in self.there if client not in clients]
        return DeferredList([client.stopService() for client in clients])

    async def say(self, number, seconds):
        """Wait until the latest pongs of all who are there name this number; what they named, and how long it took."""
        for client in self.there:
            del client.said[:]
        took = await until(lambda: all(client.said[-1:] == [number] for client in self.there), seconds)
        return {said for client in self.there for said in client.said}, took

    async def hear(self, sentence, servers=None):
        for server in servers or self.servers:
            await deferToThread(server.line_with, sentence, 30)


async def a_server_dies(fleet, crowds):
    """By `kill -9`, its clients with it; half of them are elsewhere at once. It comes back, and so do the others."""
    fleet.servers[0].kill()
    fleet.go(crowds[0])
    names = [client.settings.client_id for client in crowds[0]]
    crowds[1] += fleet.come(names[:5], 1)
    named, took = await fleet.say(CLIENTS - 5, LEASE + SLACK)
    print(f"the clients of a server that was killed were gone after {took:.1f} s")
    # Whoever comes is counted before Redis has said that he was counted already.
    assert named <= set(range(CLIENTS - 5, CLIENTS + 5 + 1))

    fleet.servers[0] = fleet.serve(0)
    await fleet.hear(f"counted with those of {NODES - 1} other server(s)", fleet.servers[:1])
    crowds[0] = fleet.come(names[5:], 0)
    await fleet.say(CLIENTS, 20)


async def redis_dies(fleet, crowds):
    """Heartbeats go on, and say what was last heard. Then it is there, and knows nothing."""
    ends = [client.ends for client in fleet.there]
    fleet.redis.kill()
    await fleet.hear("counted as they last were")
    for client in fleet.there:
        del client.said[:]
    await until(lambda: all(len(client.said) >= 8 for client in fleet.there), 20)
    assert {said for client in fleet.there for said in client.said} == {CLIENTS}
    assert [client.ends for client in fleet.there] == ends

    await fleet.go([crowds[2].pop()])
    fleet.redis.start()
    await fleet.hear("is there again")
    await fleet.say(CLIENTS - 1, 10)


async def a_server_stops(fleet, crowds):
    """In order: nobody waits for its lease to end."""
    leaving = crowds.pop()
    await fleet.go(leaving)
    fleet.servers.pop().stop()
    await fleet.say(CLIENTS - 1 - len(leaving), 3)


@pytest_twisted.ensureDeferred
async def test_what_the_pongs_say_is_right_over_a_kill_of_a_server_and_one_of_redis(tmp_path):
    """Three servers, 30 clients; no link ends but those of the server that is killed."""
    with contextlib.ExitStack() as life:
        redis = life.enter_context(redis_server.RedisServer(tmp_path))
        fleet = Fleet(tmp_path, redis, life)
        await fleet.hear("clients are counted with those of")
        crowds = [fleet.come([f"client-{number}" for number in range(at, CLIENTS, NODES)], at) for at in range(NODES)]
        await fleet.say(CLIENTS, 20)

        await a_server_dies(fleet, crowds)
        await redis_dies(fleet, crowds)
        await a_server_stops(fleet, crowds)

        await fleet.go(fleet.there)
        for server in fleet.servers:
            server.stop()
            said = server.seen + server.rest()
            assert not [line for line in said if "Traceback" in line or "Unhandled" in line or " bug" in line]
            # One line at the start, one when Redis goes and one when it is back; none for the attempts in between.
            told = [line for line in said if "[heartbeat.cluster" in line or "internet.protocol.Factory" in line]
            assert len(told) == 3, told
