"""`twistd`, whose heartbeat server says whom it convicts, and every so often how it is itself.

    python -m faults.soak_server '{"every": 10.0, "log": "…/twistd.log", "leak": false}' -n --pidfile= heartbeat …

All else is the real program: only its hooks are given something to do. `leak`: for every link that opens a delayed
call is kept that never comes, so that the soak can be seen to notice. `log` is what twistd's log is called.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.scripts.twistd import run

from faults.soak_figures import Lateness, own_figures, tell
from heartbeat import HeartbeatServerFactory, HeartbeatServerProtocol
from heartbeat.core.presence import Standing

#: What the leak keeps for every link, besides the delayed call itself.
_LEAKED = 16_384
_NEVER = 86_400.0


class Watched:
    """The server, and what is told of it."""

    def __init__(self, factory: Any, log: Path) -> None:
        self.factory = factory
        self.log = log
        self.lateness = Lateness(factory.reactor)

    def start(self, every: float) -> None:
        """The first port listens."""
        self.lateness.start()
        looking = LoopingCall(self.look)
        looking.clock = self.factory.reactor
        looking.start(every)

    def look(self) -> None:
        """Say how it is."""
        heartbeat, presence = self.factory.heartbeat, self.factory.presence
        tell(
            "figures",
            **own_figures(),
            delayed=len(self.factory.reactor.getDelayedCalls()),
            connections=self.factory.countConnections,
            edges=len(heartbeat.edges),
            sessions=len(heartbeat.sessions.channels),
            detached=heartbeat.sessions.detached,
            presence={standing.name.lower(): presence.count(standing) for standing in Standing},
            known=len(presence.client_ids()),
            addresses=heartbeat.arrivals.addresses,
            refused=dict(self.factory.refused),
            log=sum(part.stat().st_size for part in self.log.parent.glob(self.log.name + "*")),
            late=self.lateness.take(),
        )


def main() -> None:
    """Give the hooks something to do, and be twistd."""
    ours = json.loads(sys.argv.pop(1))
    leaked: list[Any] = []

    def link_changed(protocol: Any, status: Any) -> None:
        if status.event == "dead":
            peer = protocol.transport.getPeer()
            tell("dead", client=status.client_id, address=peer.host, port=peer.port, said=status.detail)
        if ours["leak"] and status.event == "open":
            leaked.append(protocol.factory.reactor.callLater(_NEVER, bytearray(_LEAKED).clear))

    def started(factory: Any) -> None:
        starting(factory)
        Watched(factory, Path(ours["log"])).start(ours["every"])

    starting = HeartbeatServerFactory.startFactory
    HeartbeatServerFactory.startFactory = started
    HeartbeatServerProtocol.linkChanged = link_changed
    sys.argv[0] = "twistd"
    run()


if __name__ == "__main__":
    main()
