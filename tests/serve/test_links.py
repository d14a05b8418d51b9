"""Links that are cut without a word: two hosts in network namespaces made by the test, packets dropped between them."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import BIN, Program

HERE = Path(__file__).parent

# At the defaults, in seconds, as the server prints it; and some for starting programs and reading lines.
BOUND, SLACK = 15.4, 1.5

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("iptables"),
    reason="not run: the tests of cut links need root, and Debian's packages iproute2 and iptables",
)

pytestmark = [pytest.mark.faults, needs_namespaces]


def run(*words):
    subprocess.run(words, check=True, capture_output=True, timeout=30)


class Hosts:
    """A server's host and a client's, joined by a cable; each is a network namespace."""

    SERVER = "10.213.0.1"
    CLIENT = "10.213.0.2"

    def __init__(self):
        self.server, self.client = f"hb-server-{os.getpid()}", f"hb-client-{os.getpid()}"

    def __enter__(self):
        for name in (self.server, self.client):
            run("ip", "netns", "add", name)
        run("ip", "link", "add", "hb0", "netns", self.server, "type", "veth", "peer", "hb1", "netns", self.client)
        ends = ((self.server, "hb0", self.SERVER), (self.client, "hb1", self.CLIENT))
        for name, device, address in ends:
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", device)
            run("ip", "-n", name, "link", "set", device, "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_exception):
        for name in (self.server, self.client):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True, timeout=30)

    def on(self, host, *command):
        """A program on one of the hosts."""
        return Program(["ip", "netns", "exec", host, *command])

    def drop(self, chain, *, undo=False):
        """Drop every packet that enters (INPUT) or leaves (OUTPUT) the server's host; nobody is told."""
        rule = [chain, "-i" if chain == "INPUT" else "-o", "hb0", "-j", "DROP"]
        run("ip", "netns", "exec", self.server, "iptables", "-w", "10", "-D" if undo else "-A", *rule)


@pytest.fixture
def hosts():
    with Hosts() as both:
        yield both


@pytest.mark.parametrize(
    ("beats", "chains"),
    [
        ("client", ["INPUT", "OUTPUT"]),
        ("server", ["INPUT", "OUTPUT"]),
        ("client", ["INPUT"]),
        ("server", ["OUTPUT"]),
    ],
    ids=["client beats, both ways", "server beats, both ways", "client beats, to it", "server beats, from it"],
)
def test_a_cut_link_is_found_by_both_ends_within_the_bound_and_mended_after_it(hosts, chains, beats):
    """No FIN, no RST: each end finds out in time; when the link is back, the client is back."""
    server_program = [sys.executable, HERE / "real_server.py", json.dumps({"interval": 1.0, "trust_client_ids": True})]
    with hosts.on(hosts.server, *server_program, f"tcp:0:interface={hosts.SERVER}") as server:
        url = server.url()
        options = ["--json", "--interval", "1", "--beats", beats, "--attempts", "10"]
        with hosts.on(hosts.client, BIN / "heartbeat-client", url, *options) as client:
            client.event("pong", 20)
            server.event("open", 20)
            for chain in chains:
                hosts.drop(chain)
            cut = time.monotonic()
            for program in (client, server):
                for event in program.json_events(BOUND + SLACK):
                    # Where only one way is cut, the end that convicts first still gets its word to the other.
                    if event["event"] == "dead" or (event["event"] == "closed" and len(chains) == 1):
                        break
                assert time.monotonic() - cut <= BOUND + SLACK
            for chain in chains:
                hosts.drop(chain, undo=True)
            client.event("open", 60)
            client.event("pong", 20)


def test_an_interruption_that_ends_with_the_suspicion_convicts_nobody(hosts):
    """Everything is dropped until the client grows suspicious, then no more: acknowledged, on the same connection."""
    listen = f"tcp:0:interface={hosts.SERVER}"
    # TCP sends a lost ping again after 3.2 s, and then only after 6.4 s: the verdict is to be later than that.
    settings = json.dumps({"probe": 6.0})
    with hosts.on(hosts.server, sys.executable, HERE / "real_server.py", settings, listen) as server:
        url = server.url()
        with hosts.on(hosts.client, BIN / "heartbeat-client", url, "--json", "--interval", "0.5") as client:
            client.event("pong", 20)
            hosts.drop("INPUT")
            client.event("suspect", 10)
            hosts.drop("INPUT", undo=True)
            seen = []
            for event in client.json_events(30):
                seen.append(event["event"])
                if seen.count("pong") == 5:
                    break
        assert "acknowledged" in seen
        assert not {"dead", "closed", "reconnecting"} & set(seen), seen
