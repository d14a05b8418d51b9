"""A pytest plugin: `-p tests.on_heartbeat_reactor` has the tests run on our own reactor.

pytest-twisted knows only Twisted's, and installs the default one when pytest is configured, unless one of its kind is
there already. Plugins named by `-p` are imported before that, in the processes of xdist too.
"""

import pytest

from heartbeat.reactor import HeartbeatReactor, install

install()


def pytest_sessionstart():
    """Another one would go unnoticed."""
    from twisted.internet import reactor

    if not isinstance(reactor, HeartbeatReactor):
        raise pytest.UsageError(f"the tests are to run on the reactor of txheartbeat, and this is {reactor}")
