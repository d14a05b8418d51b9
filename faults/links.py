"""Links that the lab can break: two hosts and a router between them in network namespaces, and a proxy on loopback.

A row has its own namespaces, so rows run side by side; they are deleted with the row, and what a killed lab has left
behind is swept away by the next one. Only the router knows of the fault: neither end is told.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from faults.lab import NEEDS, PATIENCE, Failed, Lab, Told, now

__all__ = ["PORT", "Hosts", "Proxy", "arrivals", "hosts", "namespaces_missing", "proxy", "sweep"]

HERE = Path(__file__).resolve().parent

#: Where a server listens on its host, which is all its own.
PORT = 9000

_PREFIX = "faults"
_numbers = itertools.count()


def run(*words: object, timeout: float = PATIENCE) -> str:
    """Run a command to its end; its output. Raises Failed with what it said."""
    command = [str(word) for word in words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout)  # noqa: S603  # ours
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


@functools.cache
def namespaces_missing() -> str | None:
    """Why there can be no network namespaces with packet filters here; None if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool, package in (("ip", "iproute2"), ("iptables", "iptables")):
        if not shutil.which(tool):
            return f"{tool} is not installed (Debian's package {package})"
    try:
        with Hosts():
            pass
    except Failed as error:
        return f"network namespaces are not allowed: {error}"
    return None


NEEDS["namespaces"] = namespaces_missing


def sweep() -> None:
    """Delete the namespaces of labs that were killed."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        return
    for line in run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        prefix, _, rest = name.partition("-")
        pid = rest.partition("-")[0]
        if prefix == _PREFIX and pid.isdigit() and not Path("/proc", pid).exists():
            run("ip", "netns", "delete", name)


class Hosts:
    """A server's host and a client's, and a router between them through which every packet goes.

    What is done to the link is done by the router's packet filter, on `FORWARD`, or by its queues.
    """

    SERVER = "10.213.1.2"
    CLIENT = "10.213.2.2"
    #: The devices: each host's own, and the router's towards each.
    OWN = "eth0"
    TO = {"server": "to-server", "client": "to-client"}  # noqa: RUF012  # a constant

    def __init__(self) -> None:
        number = next(_numbers)
        self._name = {end: f"{_PREFIX}-{os.getpid()}-{number}-{end}" for end in ("server", "client", "router")}

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        made = {line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.strip()}
        for name in self._name.values():
            if name in made:
                run("ip", "netns", "delete", name)

    def on(self, end: str) -> tuple[str, ...]:
        """The words before a command that is to run on the `server`'s host, the `client`'s, or the `router`."""
        return ("ip", "netns", "exec", self._name[end])

    @property
    def listen(self) -> str:
        """The endpoint of a server on its host."""
        return f"tcp:{PORT}:interface={self.SERVER}"

    # What a link may suffer. Each returns the moment of it.

    def drop(self, towards: Iterable[str] = ("server", "client")) -> float:
        """Every packet in these directions is gone without a word."""
        for end in towards:
            self._filter("-A", "FORWARD", "-o", self.TO[end], "-j", "DROP")
        # What is counted from then on begins with the last that came, which may have been after the first rule.
        return now()

    def lose(self, share: float) -> float:
        """Of the packets, each way, this share is gone, by lot."""
        began = now()
        self._filter("-A", "FORWARD", "-m", "statistic", "--mode", "random", "--probability", share, "-j", "DROP")
        return began

    def reset(self) -> float:
        """Whoever sends a segment gets an RST for it, in the name of the other end."""
        began = now()
        self._filter("-A", "FORWARD", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")
        return began

    def limit(self, kbit: int) -> tuple[float, str]:
        """So many kbit/s each way, with a queue of 2 s; the moment, and by what means."""
        began = now()
        if shutil.which("tc"):
            for device in self.TO.values():
                queue = ("rate", f"{kbit}kbit", "burst", "4kb", "latency", "2s")
                run(*self.on("router"), "tc", "qdisc", "add", "dev", device, "root", "tbf", *queue)
            return began, "tc tbf"
        for end, device in self.TO.items():
            bucket = ("--hashlimit-above", f"{max(1, kbit // 8)}kb/s", "--hashlimit-name", f"to-{end}")
            self._filter("-A", "FORWARD", "-o", device, "-m", "hashlimit", *bucket, "-j", "DROP")
        return began, "iptables hashlimit"

    def translate(self) -> None:
        """The router puts its own address in place of the client's, and drops what is of no connection it knows."""
        run(*self.on("router"), "sh", "-c", "echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose")
        self._filter("-t", "nat", "-A", "POSTROUTING", "-o", self.TO["server"], "-j", "MASQUERADE")
        for chain in ("FORWARD", "INPUT"):
            self._filter("-A", chain, "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")

    def forget(self) -> float:
        """The router that translates starts again: it knows no connection any more, and takes new ones."""
        began = now()
        # What was translated for a device is forgotten when that goes down.
        device = self.TO["server"]
        run(*self.on("router"), "ip", "link", "set", device, "down")
        run(*self.on("router"), "ip", "link", "set", device, "up")
        return began

    def mend(self) -> float:
        """Nothing is done to the packets any more; the moment when that was done."""
        self._filter("-F", "FORWARD")
        return now()

    def dropped(self) -> int:
        """How many packets the rules have taken so far."""
        rows = run(*self.on("router"), "iptables", "-w", "10", "-nvxL", "FORWARD").splitlines()[2:]
        return sum(int(row.split()[0]) for row in rows)

    def _filter(self, *words: object) -> None:
        run(*self.on("router"), "iptables", "-w", "10", *words)

    def _make(self) -> None:
        for name in self._name.values():
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        router = self._name["router"]
        for end, address in (("server", self.SERVER), ("client", self.CLIENT)):
            name, device, gateway = self._name[end], self.TO[end], address.rpartition(".")[0] + ".1"
            link = ("type", "veth", "peer", device, "netns", router)
            run("ip", "link", "add", self.OWN, "netns", name, *link)
            for host, of, its in ((name, self.OWN, address), (router, device, gateway)):
                run("ip", "-n", host, "address", "add", f"{its}/24", "dev", of)
                run("ip", "-n", host, "link", "set", of, "up")
            run("ip", "-n", name, "route", "add", "default", "via", gateway)
        run(*self.on("router"), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")


def hosts(lab: Lab) -> Hosts:
    """Two hosts and their router, for this row."""
    return lab.enter_context(Hosts())


def arrivals(lab: Lab, on: Hosts, end: str) -> Told:
    """What reaches this end, from now on: events `arrival`, with the client's `port`."""
    command = (sys.executable, "-P", HERE / "arrivals.py", on.OWN, PORT)
    watching = lab.program(command, prefix=on.on(end))
    watching.first("listens")
    return watching


class Proxy(Told):
    """A proxy on loopback, and the line by which it takes orders (see `proxy.py`)."""

    def url(self, timeout: float = PATIENCE) -> str:
        """The WebSocket URL by which its server is reached."""
        return f"ws://127.0.0.1:{self.first('listens', timeout=timeout).detail['port']}/ws"

    def order(self, **order: Any) -> float:
        """Have it carry this out; the moment just before it did."""
        port = self.first("listens").detail["orders"]
        began = now()
        with socket.create_connection(("127.0.0.1", port), timeout=10.0) as line:
            line.sendall(json.dumps(order).encode() + b"\n")
            with line.makefile() as answers:
                answer = answers.readline()
        if not answer:
            raise Failed(f"the proxy did not carry out {order}; {self.latest()}")
        return began


def proxy(lab: Lab, url: str, **configured: Any) -> Proxy:
    """A proxy to the server at this URL, on loopback. `configured`: `delay`, `jitter` (seconds), `hole`."""
    host, _, port = url.partition("://")[2].partition("/")[0].partition(":")
    command = (sys.executable, "-P", HERE / "proxy.py", host, port, json.dumps(configured))
    return lab.enter_context(Proxy(command, cwd=lab.folder))
