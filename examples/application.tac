"""The heartbeat server inside an application that has other services: one more child, on a listener of its own.

Plain, over TLS, and a client in another shell:

    twistd -ny application.tac
    LISTEN=ssl:9443:privateKey=key.pem:certKey=cert.pem twistd -ny application.tac
    heartbeat-client ws://127.0.0.1:9000/ws
"""

import os

from twisted.application.internet import TimerService
from twisted.application.service import Application
from twisted.logger import Logger

from heartbeat import Settings
from heartbeat.service import HeartbeatService

LISTEN = os.environ.get("LISTEN", "tcp:9000:interface=127.0.0.1")

log = Logger("example")
server = HeartbeatService([LISTEN], Settings(interval=5.0))


def count() -> None:
    """What the application did before: something every few seconds."""
    log.info("{clients} clients are alive", clients=server.factory.presence.active)


# twistd looks for this name.
application = Application("example")
server.setServiceParent(application)
TimerService(float(os.environ.get("EVERY", "10")), count).setServiceParent(application)
