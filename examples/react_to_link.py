"""A program that works only while the other end is there, and tells its user how the link is.

Run it, stop the server, start it again:

    python react_to_link.py ws://127.0.0.1:9000/ws
"""

import sys

from twisted.internet import reactor, task

from heartbeat import HeartbeatClient, LinkStatus

#: What the user sees for each change of the link, and whether to go on working.
SHOWN = {
    "open": ("online", True),
    "suspect": ("the network is fluctuating", False),
    "waiting": ("the network is fluctuating", False),
    "acknowledged": ("online again", True),
    "dead": ("offline", False),
    "closed": ("offline", False),
    "reconnecting": ("offline, trying again", False),
    "unreachable": ("offline, trying again in a minute", False),
}


class Worker:
    """Does one piece of work a second while the link is good."""

    def __init__(self, client: HeartbeatClient) -> None:
        self.client = client
        self.work = task.LoopingCall(print, "working")
        client.linkChanged = self.link_changed

    def link_changed(self, status: LinkStatus) -> None:
        """Show the change, and start or stop working."""
        words, good = SHOWN[status.event]
        print(f"{words} ({status.detail})")
        if good and not self.work.running:
            self.work.start(1.0)
        elif not good and self.work.running:
            self.work.stop()
        if status.event == "unreachable":
            # The client gives up after a few attempts; a program that never does says so.
            reactor.callLater(60.0, self.client.retry)


def main() -> None:
    """Work until Ctrl-C, and say goodbye to the server then."""
    client = HeartbeatClient(sys.argv[1] if sys.argv[1:] else "ws://127.0.0.1:9000/ws")
    Worker(client)
    reactor.callWhenRunning(client.startService)
    reactor.addSystemEventTrigger("before", "shutdown", client.stopService)
    reactor.run()


if __name__ == "__main__":
    main()
