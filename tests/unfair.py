"""A pytest plugin: `-p tests.unfair` has the tests' reactors serve those who are ready in no order.

On one machine whoever asks is nearly always told before his neighbours hear of it, and a test that takes that for
granted fails once in a thousand runs. Here most of those who can read, write or be accepted are left for a later turn,
at random: the reactors find them again, since they ask for what is ready and not for what has become so.
"""

import random

from twisted.internet.posixbase import _PollLikeMixin
from twisted.internet.selectreactor import SelectReactor

#: How many of those who are ready are left for later.
LATER = 0.75


def _put_off(reactor_class):
    serve = reactor_class._doReadOrWrite

    def perhaps(self, selectable, *how):
        # Whoever wakes the reactor from another thread has nobody who would do it again.
        if random.random() >= LATER or selectable is self.waker:
            serve(self, selectable, *how)

    reactor_class._doReadOrWrite = perhaps


_put_off(_PollLikeMixin)
_put_off(SelectReactor)


def pytest_report_header():
    return f"heartbeat: its reactors leave {LATER:.0%} of those who are ready for later"
