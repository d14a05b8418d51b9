"""wstest as it is, but on this machine only: what listens does so on loopback, at a free port, and says which.

For CPython 2.7.
"""

import sys

# The first of all: it chooses the reactor.
from autobahntestsuite import wstest
from twisted.internet import reactor

_listen = reactor.listenTCP


def _listen_on_loopback(port, factory, backlog=50, interface=""):  # noqa: ANN001, ANN202  # Python 2.7 has none
    listening = _listen(0, factory, backlog, "127.0.0.1")
    print("listening on {}".format(listening.getHost().port))  # noqa: UP032  # the same
    sys.stdout.flush()
    return listening


reactor.listenTCP = _listen_on_loopback
wstest.run()
