"""A Redis of the tests' own: on a UNIX socket in a folder of its own, and gone with it."""

import os
import shutil
import socket
import subprocess
import time

import pytest
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
        # That its socket is there is too little: it has a name before anybody listens at it.
        while not self._answers():
            assert self.process.poll() is None, "redis-server has ended"
            assert time.monotonic() < until, "redis-server does not start"
            time.sleep(0.01)
        return self

    def _answers(self):
        with socket.socket(socket.AF_UNIX) as asked:
            return asked.connect_ex(str(self.path)) == 0

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

    def result(self, asked):
        """What was asked for; raises what it failed with."""
        came = []
        asked.addBoth(came.append)
        self.until(lambda: came)
        if hasattr(came[0], "raiseException"):
            raise came[0].value
        return came[0]
