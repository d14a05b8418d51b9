"""Spans of time in which this process was ready and others had its processor: late because of that is not slow.

What it computed itself in a span is none of it: who computes for too long is slow.
"""

import time

from twisted.internet.task import LoopingCall

#: Seconds between two looks, and how much less than it should have this process must have had to be told of.
EVERY, MUCH = 0.01, 0.02


def tell_of_stolen_time(tell):
    """Look all the time, until the LoopingCall that is returned is stopped.

    `tell` is called with the begin and the end of each span (`time.monotonic`).
    """
    last = [time.monotonic(), time.process_time()]

    def look():
        now, used = time.monotonic(), time.process_time()
        if now - last[0] - EVERY - (used - last[1]) > MUCH:
            tell(last[0], now)
        last[:] = now, used

    looking = LoopingCall(look)
    looking.start(EVERY, now=False)
    return looking
