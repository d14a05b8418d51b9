"""Who takes part in the benchmark of speed, and how each is started: fresh, alone on a core, and killed in the end.

Servers that this project's environment runs (ours, and Autobahn) run in that one. All others have one of their own,
which is also that of `speed.py`: among what they bring is click, and with that installed Autobahn colours log
strings that nobody reads, which costs it an eighth of its speed. Linux only.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: What is made here and may be thrown away.
BUILD = HERE / "build"
CERTIFICATE = BUILD / "certificate.pem"
_LOG = BUILD / "server.log"

#: The programs of this project's environment.
PROJECT = next((path for path in (HERE.parent / ".venv" / "bin",) if path.exists()), Path(sys.executable).parent)

#: Seconds that a server may take to start.
_PATIENCE = 20


class Failed(Exception):
    """A run that measured nothing; a sentence."""


@dataclass(frozen=True)
class Contestant:
    """A server: how it is started, how it is spoken to, and what it cannot be without.

    `{port}` in the command is the port. `missing` says in a sentence what is not there, or nothing.
    """

    name: str
    label: str
    command: tuple[str, ...]
    load: tuple[str, ...] = ()
    missing: Callable[[], str] = str


@dataclass(frozen=True)
class Server:
    """A contestant that listens."""

    port: int
    pid: int


# What some cannot be without.


@cache
def compiled(source: str, *options: str) -> Path:
    """The program of a C source in this folder. Raises Failed where there is no compiler, or it refuses."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise Failed(f"{source} needs a C compiler, and there is no gcc")
    BUILD.mkdir(exist_ok=True)
    program = BUILD / Path(source).stem
    told = subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-o", program, HERE / source, *options],
        check=False,
        capture_output=True,
        text=True,
    )
    if told.returncode:
        raise Failed(f"{source} could not be compiled: {told.stderr.strip().splitlines()[-1]}")
    return program


def _needs_compiler() -> str:
    try:
        compiled("contestants/floor.c")
    except Failed as failed:
        return str(failed)
    return ""


def _needs_node() -> str:
    if shutil.which("node") is None:
        return "there is no node"
    return "" if (HERE / "node_modules" / "ws").exists() else "ws is not installed (npm install, in benchmarks)"


def _needs(module: str) -> Callable[[], str]:
    return lambda: "" if find_spec(module) else f"{module} is not installed (the extra `bench`)"


@cache
def _said_by_twistd(*arguments: str) -> str:
    return subprocess.run([PROJECT / "twistd", *arguments], check=False, capture_output=True, text=True).stdout


def _needs_own_reactor() -> str:
    lines = _said_by_twistd("--help-reactors").splitlines()
    return "" if any(line.split()[:1] == ["heartbeat"] for line in lines) else "twistd has no reactor `heartbeat`"


def _needs_plain_path() -> str:
    return (
        "" if "--no-fast-path" in _said_by_twistd("heartbeat", "--help") else "twistd heartbeat has no --no-fast-path"
    )


def _both(*needs: Callable[[], str]) -> Callable[[], str]:
    return lambda: next((said for need in needs if (said := need())), "")


@cache
def _needs_tls() -> str:
    """Make the certificate, and the load generator's other half."""
    try:
        compiled("load/hbload.c", "-DTLS", "-lssl", "-lcrypto")
    except Failed:
        return "the load generator could not be built with OpenSSL (Debian's libssl-dev)"
    if find_spec("trustme") is None:
        return "trustme, which makes the certificate, is not installed (the extra `bench`)"
    import trustme

    trustme.CA().issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(CERTIFICATE))
    return ""


@cache
def load_generator() -> Path:
    """The load generator, with TLS if that can be had. Raises Failed."""
    return BUILD / "hbload" if not _needs_tls() else compiled("load/hbload.c")


# The table.


def _script(name: str, *arguments: str, python: Path | str = sys.executable) -> tuple[str, ...]:
    return (str(python), str(HERE / "contestants" / name), "{port}", *arguments)


def _ours() -> Iterator[Contestant]:
    """Ours, each on Twisted's reactor and on our own."""
    python, at = PROJECT / "python", "tcp:{port}:interface=127.0.0.1"
    secure_at = f"ssl:{{port}}:interface=127.0.0.1:privateKey={CERTIFICATE}:certKey={CERTIFICATE}"
    for own in (False, True):
        name, label = ("ours-own", "txheartbeat, own reactor") if own else ("ours", "txheartbeat")
        chosen, asked = (("--reactor=heartbeat",), ("--reactor", "heartbeat")) if own else ((), ())
        need = _needs_own_reactor if own else str
        twistd = (str(PROJECT / "twistd"), "-n", "--pidfile=", *chosen, "heartbeat", "--listen")
        embedded = _script("ours.py", *asked, python=python)
        yield Contestant(name, label, (*twistd, at), ("-u", "/ws"), need)
        yield Contestant(
            f"{name}-plain",
            f"{label}, plain path",
            (*twistd, at, "--no-fast-path"),
            ("-u", "/ws"),
            _both(need, _needs_plain_path),
        )
        yield Contestant(
            f"{name}-tls", f"{label}, TLS", (*twistd, secure_at), ("-u", "/ws", "-T"), _both(need, _needs_tls)
        )
        yield Contestant(f"{name}-level1", f"{label}, with a session", (*twistd, at), ("-u", "/ws", "-1"), need)
        yield Contestant(f"{name}-acked", f"{label}, a numbered message before each ping", embedded, ("-A",), need)
        yield Contestant(f"{name}-deflate", f"{label}, permessage-deflate", (*embedded, "--deflate"), ("-D",), need)


def _autobahn() -> Iterator[Contestant]:
    python = PROJECT / "python"
    plain = _script("autobahn_default.py", python=python)
    secure = (*plain, "--certificate", str(CERTIFICATE))
    yield Contestant("autobahn", "Autobahn", plain)
    yield Contestant("autobahn-autoping", "Autobahn, autoPing", _script("autobahn_autoping.py", python=python))
    yield Contestant("autobahn-tls", "Autobahn, TLS", secure, ("-T",), _needs_tls)
    yield Contestant("autobahn-deflate", "Autobahn, permessage-deflate", (*plain, "--deflate"), ("-D",))


def _others() -> Iterator[Contestant]:
    yield Contestant("websockets", "websockets", _script("websockets_server.py"), (), _needs("websockets"))
    yield Contestant("picows", "picows, stdlib json", _script("picows_server.py"), (), _needs("picows"))
    orjson = _both(_needs("picows"), _needs("orjson"))
    yield Contestant("picows-orjson", "picows, orjson", _script("picows_server.py", "orjson"), (), orjson)
    yield Contestant("aiohttp", "aiohttp", _script("aiohttp_server.py"), (), _needs("aiohttp"))
    yield Contestant("uvicorn", "uvicorn", _script("uvicorn_server.py"), (), _needs("uvicorn"))
    yield Contestant("engineio", "python-engineio", _script("engineio_server.py"), ("-e",), _needs("engineio"))
    yield Contestant("node-ws", "Node ws", ("node", str(HERE / "contestants/node_ws.js"), "{port}"), (), _needs_node)
    yield Contestant("floor", "floor: C, epoll", (str(BUILD / "floor"), "{port}"), (), _needs_compiler)


CONTESTANTS = {contestant.name: contestant for contestant in (*_autobahn(), *_others(), *_ours())}


# Started and killed.


def cores() -> tuple[int, int]:
    """The core of the server, and that of the load."""
    server, load, *_ = sorted(os.sched_getaffinity(0))
    return server, load


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started meanwhile runs on this core, from its first instruction on."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def serving(contestant: Contestant) -> Iterator[Server]:
    """A fresh server that accepts connections. Raises Failed."""
    port = _free_port()
    command = [part.format(port=port) for part in contestant.command]
    with _LOG.open("wb") as log:
        with pinned(cores()[0]):
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=BUILD)
        try:
            _wait_for(process, port)
            yield Server(port, process.pid)
        finally:
            # What it does at its end is nobody's concern, and takes time with 10,000 connections.
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    patience = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < patience:
        with socket.socket() as caller:
            if caller.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    else:
        last = _LOG.read_text(errors="replace").strip().splitlines()[-1:]
        raise Failed("it does not listen: " + "".join(last))
    # Whatever else it does at its start is not to be measured.
    time.sleep(0.3)
