"""`twistd`, whose heartbeat server tells what becomes of its links: a line of JSON for each change.

    server.py '{"settings": {"timeout_max": 1.0}, "stall": 10.0}' -n --pidfile= heartbeat …

`settings` are other defaults than ours, for what twistd has no option for. SIGUSR2 stalls the reactor for `stall`
seconds. All else is the real program: only its hooks are given something to do.
"""

import json
import signal
import sys
import time
from typing import Any

from twisted.scripts.twistd import run

from heartbeat import HeartbeatServerFactory, HeartbeatServerProtocol, Settings


def tell(**event: Any) -> None:
    """Past twistd, which would make a line of its log of it."""
    print(json.dumps(event), file=sys.__stdout__, flush=True)


def link_changed(protocol: Any, status: Any) -> None:
    """A hook of every connection."""
    tell(
        event=status.event,
        at=time.monotonic(),
        client=status.client_id,
        port=getattr(protocol.transport.getPeer(), "port", None),
        detail=status.detail,
        reason=status.reason,
        code=status.code or protocol.localCloseCode,
    )


def stall(seconds: float) -> None:
    """Stand still, from the reactor and not from within whatever the signal interrupted."""
    tell(event="stalls", at=time.monotonic())
    time.sleep(seconds)


def stall_soon(seconds: float) -> None:
    """Called by the signal."""
    from twisted.internet import reactor  # noqa: PLC0415  # twistd installs the one that was asked for

    reactor.callFromThread(stall, seconds)  # type: ignore[attr-defined]  # every reactor has it


def main() -> None:
    """Give the hooks something to do, and be twistd."""
    ours = json.loads(sys.argv.pop(1))
    Settings.__init__.__kwdefaults__.update(ours["settings"])
    HeartbeatServerProtocol.linkChanged = link_changed
    factory = HeartbeatServerFactory
    factory.clientJoined = lambda _, name: tell(event="joined", at=time.monotonic(), client=name)
    factory.clientLeft = lambda _, name: tell(event="left", at=time.monotonic(), client=name)
    factory.sessionLost = lambda _, name, error: tell(
        event="lost-session", at=time.monotonic(), client=name, reason=error.reason
    )
    signal.signal(signal.SIGUSR2, lambda *_: stall_soon(ours["stall"]))
    sys.argv[0] = "twistd"
    run()


if __name__ == "__main__":
    main()
