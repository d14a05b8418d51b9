"""A link that becomes a black hole: packets vanish, nobody is told; the page is back long before Chromium notices.

The server is on a host of its own, a network namespace, at the other end of a cable that the test makes.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from certificates import Certificates
from chromium import Page, Server, either_scheme, options_that_trust
from processes import Program
from twisted.internet.endpoints import quoteStringArgument

HERE = Path(__file__).parent

# At the defaults, in milliseconds: the bound, the longest first delay, and some for a busy machine.
BOUND, BACKOFF, SLACK = 15_400, 1_500, 2_000

pytestmark = [
    pytest.mark.browser,
    pytest.mark.faults,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("iptables"),
        reason="not run: the tests of black holes need root, and Debian's packages iproute2 and iptables",
    ),
]


def run(*words):
    subprocess.run(words, check=True, capture_output=True, timeout=30)


class Host:
    """A host at the other end of a cable, which can lose all that belongs to one connection."""

    def __init__(self):
        # Tests that run beside this one have other process ids.
        self.name, net = f"hb-hole-{os.getpid()}", f"10.214.{os.getpid() % 256}"
        self.cable = f"hbh{os.getpid()}"
        self.address, self.here = f"{net}.1", f"{net}.2"

    def make(self):
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self.cable, "type", "veth", "peer", "eth0", "netns", self.name)
        run("ip", "address", "add", f"{self.here}/24", "dev", self.cable)
        run("ip", "link", "set", self.cable, "up")
        run("ip", "-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        run("ip", "-n", self.name, "link", "set", "eth0", "up")
        run("ip", "-n", self.name, "link", "set", "lo", "up")

    def remove(self):
        # The cable would go with the host, but not before the next test makes one of the same name.
        for words in (["link", "delete", self.cable], ["netns", "delete", self.name]):
            subprocess.run(["ip", *words], check=False, capture_output=True, timeout=30)

    def program(self, *command):
        return Program(["ip", "netns", "exec", self.name, *command])

    def swallow(self, port):
        """From now on every packet between this port of ours and the host is lost."""
        for chain, which in (("INPUT", "--sport"), ("OUTPUT", "--dport")):
            rule = ("-A", chain, "-p", "tcp", which, str(port), "-j", "DROP")
            run("ip", "netns", "exec", self.name, "iptables", "-w", "10", *rule)


@pytest.fixture
def host():
    one = Host()
    try:
        one.make()
        yield one
    finally:
        one.remove()


@either_scheme
def test_a_black_hole_is_left_within_the_bound_and_the_backoff(browser, host, tmp_path, tls):
    """No FIN, no RST: the new connection is up while the old socket still waits to be closed, and nothing is lost."""
    listen, trust = f"tcp:0:interface={host.address}", ()
    if tls:
        certificates = Certificates.issued_in(tmp_path, host.address)
        key, chain = (quoteStringArgument(str(path)) for path in (certificates.key, certificates.chain))
        listen = f"ssl:0:interface={host.address}:privateKey={key}:certKey={chain}"
        trust = options_that_trust(certificates.chain)
    with host.program(sys.executable, HERE / "page_server.py", json.dumps({}), listen) as program:
        server = Server(program, trust)
        page = Page(browser(*server.trust), server)
        page.until_open()
        page.ask("page.listen(200)")
        page.ask("page.talk(200)")
        page.until("page.handled.length >= 10 && page.words.length >= 10", 15)

        (link,) = server.events("open")
        cut = page.now
        host.swallow(link["peer"])
        page.until_event("dead", 20, cut)
        back = page.until_event("open", 20, cut)["at"]
        assert back - cut <= BOUND + BACKOFF + SLACK
        # Chromium waits a minute for the old one.
        assert page.ask("page.sockets.map(({readyState}) => readyState)") == [2, 1]
        assert page.ask("navigator.onLine") is True

        page.until_event("pong", 10, back)
        page.ask("page.enough()")
        count = page.until_event("enough", 10)["count"]
        sent = page.ask("page.hush()")
        page.until_all_is_handled()
        assert page.ask("page.words") == list(range(1, count + 1))
        assert server.has_handled(sent)
        assert page.events() == ["open", "suspect", "dead", "reconnecting", "open"]
        page.has_no_complaint()
