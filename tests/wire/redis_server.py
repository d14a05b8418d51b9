"""A Redis of the tests' own: on a UNIX socket in a folder of its own, and gone with it."""

import os
import shutil
import socket
import ssl
import subprocess
import time

import hiredis
import pytest
from ports import free_port
from twisted.internet.selectreactor import SelectReactor

REDIS = shutil.which("redis-server")

needs_redis = pytest.mark.skipif(
    REDIS is None and not os.environ.get("CI"), reason="redis-server is not installed (Debian: redis-server)"
)


class RedisServer:
    """`redis-server`, which writes nothing to the disk unless it is told to by `options`."""

    def __init__(self, folder, *options):
        self.path = folder / "redis"
        self.folder = folder
        self.options = options or ("--save", "", "--appendonly", "no")
        self.process = None

    @property
    def url(self):
        return f"redis+unix://{self.path}"

    def start(self):
        """Have it answer."""
        command = [REDIS, "--port", "0", "--unixsocket", str(self.path), "--dir", str(self.folder), *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        # That its socket is there is too little: it is before anybody listens, and Redis listens while it still loads.
        while not self._answers():
            assert self.process.poll() is None, "redis-server has ended"
            assert time.monotonic() < until, "redis-server does not start"
            time.sleep(0.01)
        return self

    def _answers(self):
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(20)
            if asked.connect_ex(str(self.path)) != 0:
                return False
            asked.sendall(b"PING\r\n")
            # That it wants a password first is an answer.
            return not asked.recv(100).startswith(b"-LOADING")

    def kill(self):
        """Have it end without a word."""
        self.process.kill()
        self.process.wait()
        self.path.unlink(missing_ok=True)

    def pause(self, signal):
        """Have it stand still (SIGSTOP), or go on (SIGCONT)."""
        self.process.send_signal(signal)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()


class Turns:
    """A reactor of one's own, turned until what is asked is there; it has pipes, so there is one."""

    reactor = SelectReactor()

    def turn(self):
        self.reactor.iterate(0.05)

    def until(self, condition, seconds=20):
        """Turn until this is so; returns it."""
        until = time.monotonic() + seconds
        while not (is_so := condition()):
            assert time.monotonic() < until, "it never is"
            self.turn()
        return is_so

    def result(self, asked, seconds=20):
        """What was asked for; raises what it failed with."""
        came = []
        asked.addBoth(came.append)
        self.until(lambda: came, seconds)
        if hasattr(came[0], "raiseException"):
            raise came[0].value
        return came[0]

    def rest(self):
        """Nobody has anything left to do; who was still connecting finds out in the next turn that he need not."""
        self.reactor.iterate(0)
        assert self.reactor.getDelayedCalls() == []


SENTINEL = shutil.which("redis-sentinel")

needs_sentinel = pytest.mark.skipif(
    SENTINEL is None and not os.environ.get("CI"), reason="redis-sentinel is not installed (Debian: redis-sentinel)"
)


def served(certificates, clients="no"):
    """Redis' settings for TLS by these: whether whoever asks has to show one, too."""
    return {
        "tls-cert-file": certificates.chain,
        "tls-key-file": certificates.key,
        "tls-ca-cert-file": certificates.authority,
        "tls-auth-clients": clients,
    }


def told(port, *words, seconds=20, trusting=None):
    """What whoever listens on a port of loopback answers to one command, once anybody does."""
    return all_told(port, words, seconds=seconds, trusting=trusting)[0]


def replicate(port, trusting=None):
    """Have all that a Redis has done until now be done by its replica too. WAIT waits for what the same line wrote."""
    done = all_told(port, ("INCR", "replicated"), ("WAIT", "1", "5000"), trusting=trusting)
    assert done[1] == 1, "its replica is not there"


def connected(port, trusting):
    """A line to a port of loopback; over TLS where there is somebody to be trusted (an SSLContext)."""
    line = socket.create_connection(("127.0.0.1", port), 5)
    return line if trusting is None else trusting.wrap_socket(line, server_hostname="127.0.0.1")


def all_told(port, *commands, seconds=20, trusting=None):
    """The answers to several commands on one line."""
    until = time.monotonic() + seconds
    while True:
        try:
            with connected(port, trusting) as line:
                line.sendall(b"".join(map(hiredis.pack_command, commands)))
                reader, replies = hiredis.Reader(), []
                while len(replies) < len(commands):
                    if (reply := reader.gets()) is not False:
                        replies.append(reply)
                    elif heard := line.recv(65536):
                        reader.feed(heard)
                    else:
                        raise ConnectionResetError
                return replies
        except OSError:
            assert time.monotonic() < until, "nobody answers"
            time.sleep(0.02)


class Replicated:
    """Redis twice, one the replica of the other, and sentinels who make it the master when that is gone.

    With `certificates` all of them speak over TLS, and nobody has to show one who only asks.
    """

    NAME = "pair"

    def __init__(self, folder, sentinels=1, down_after_ms=500, certificates=None):
        self.folder = folder
        self.certificates = certificates
        self.trusting = None
        if certificates is not None:
            self.trusting = ssl.create_default_context(cafile=certificates.authority)
        first, second, *self.sentinels = (free_port() for _ in range(2 + sentinels))
        self.ports = [first, second]
        self.down_after_ms = down_after_ms
        self.processes = {}

    @property
    def url(self):
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        if self.certificates is None:
            return f"redis+sentinel://{hosts}/{self.NAME}"
        return f"rediss+sentinel://{hosts}/{self.NAME}?ssl_ca_certs={self.certificates.authority}"

    def told(self, port, *words):
        """What one of them answers."""
        return told(port, *words, trusting=self.trusting)

    def listening(self, port):
        """How one of them is told where to listen."""
        if self.certificates is None:
            return {"port": port}
        return {"port": 0, "tls-port": port, "tls-replication": "yes", **served(self.certificates)}

    @property
    def master(self):
        """The port of the one that the sentinels name."""
        return int(self.told(self.sentinels[0], "SENTINEL", "get-master-addr-by-name", self.NAME)[1])

    def __enter__(self):
        first, second = self.ports
        self.start(first)
        self.start(second, "--replicaof", f"127.0.0.1 {first}")
        self.until(lambda: b"online" in self.told(first, "INFO", "replication"))
        for port in self.sentinels:
            self._watch(port)
        # A sentinel that does not know of the replica, or of the others, can do nothing when the master is gone.
        for port in self.sentinels:
            self.until(lambda port=port: len(self.told(port, "SENTINEL", "replicas", self.NAME)) == 1)
            others = len(self.sentinels) - 1
            self.until(
                lambda port=port, others=others: len(self.told(port, "SENTINEL", "sentinels", self.NAME)) == others
            )
        return self

    def start(self, port, *options):
        """Have one of the two answer. It writes nothing to the disk, so it has no snapshot to come back with."""
        quick = ("--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0", "--dir", self.folder)
        where = [word for name, value in self.listening(port).items() for word in (f"--{name}", value)]
        self._run(port, REDIS, *where, "--bind", "127.0.0.1", *quick, *options)
        assert self.told(port, "PING") == b"PONG"

    def _watch(self, port):
        settings = self.folder / f"sentinel-{port}.conf"
        where = "".join(f"{name} {value}\n" for name, value in self.listening(port).items())
        settings.write_text(
            f"{where}bind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor {self.NAME} 127.0.0.1 {self.ports[0]} {len(self.sentinels) // 2 + 1}\n"
            f"sentinel down-after-milliseconds {self.NAME} {self.down_after_ms}\n"
            f"sentinel failover-timeout {self.NAME} 3000\n"
        )
        self._run(port, SENTINEL, settings)
        assert self.told(port, "PING") == b"PONG"

    def _run(self, port, *command):
        words = list(map(str, command))
        self.processes[port] = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self, port):
        """Have one of them end without a word."""
        process = self.processes.pop(port)
        process.kill()
        process.wait()

    def pause(self, port, signal):
        """Have one of them stand still (SIGSTOP), or go on (SIGCONT)."""
        self.processes[port].send_signal(signal)

    def until(self, condition, seconds=30):
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, "it never is"
            time.sleep(0.02)

    def __exit__(self, *_):
        for port in list(self.processes):
            self.kill(port)
