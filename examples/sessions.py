"""A bakery: orders that reach the kitchen once, whoever crashes meanwhile, from customers who show a token.

    python sessions.py serve 9002
    python sessions.py kitchen ws://127.0.0.1:9002/ws
    python sessions.py order ws://127.0.0.1:9002/ws "two loaves"

Kill any of them, and start it again: the server keeps its sessions in `server.db`, each client its own in a file
of its name, for as long as the server's window lasts.
"""

import sys
from typing import Any

from twisted.internet import reactor
from twisted.python import log

from heartbeat import (
    Credentials,
    HeartbeatClient,
    HeartbeatService,
    PeerError,
    SessionFull,
    Settings,
    SqliteStore,
    Unauthorized,
)

#: Who shows what. A program would look into its database: `authenticate` may be a coroutine.
TOKENS = {"the cook's": "kitchen", "alice's": "alice"}


class Doorman:
    """The Authenticator: says who somebody is, whatever he claims."""

    def authenticate(self, credentials: Credentials) -> str:
        """The client id of whoever shows this."""
        name = TOKENS.get(credentials.token or "")
        if name is None:
            raise Unauthorized("this token is not known")
        return name


def ordered(protocol: Any, message: dict[str, Any]) -> None:
    """Handle an order: it goes to the kitchen, and the customer gets an answer.

    Both are committed together with the note that the order was handled, or none of it is. An effect outside the
    store would come at least once; `handling.sid` and `handling.seq` tell one that comes again.
    """
    handling = protocol.handling
    if not isinstance(message.get("dish"), str):
        raise PeerError("bad-message", "an order has a dish", message["type"])
    kitchens = protocol.factory.heartbeat.sessions.of("kitchen")
    if not kitchens:
        raise PeerError("closed", "the kitchen is closed", message["type"])
    try:
        for kitchen in kitchens:
            handling.append(kitchen, {"type": "cook", "dish": message["dish"], "for": handling.client_id})
    except SessionFull:
        raise PeerError("busy", "the kitchen has more to do than it can", message["type"]) from None
    handling.reply({"type": "accepted", "dish": message["dish"]})


def serve(port: str) -> None:
    """Run the server."""
    log.startLogging(sys.stdout)
    service = HeartbeatService(
        f"tcp:{port}:interface=127.0.0.1", store=SqliteStore("server.db"), authenticator=Doorman()
    )
    service.factory.register("order", ordered)
    start(service)


def cook(url: str) -> None:
    """Cook what is ordered, also what was while we were away."""
    client = HeartbeatClient(url, settings=Settings(token="the cook's"), session="kitchen.db")  # noqa: S106  # an example
    client.register("cook", lambda client, message: print(f"cooking {message['dish']} for {message['for']}"))
    client.linkChanged = lambda status: print(status.event)
    start(client)


def order(url: str, dish: str) -> None:
    """Order one dish, and go when it is accepted."""
    client = HeartbeatClient(url, settings=Settings(token="alice's"), session="alice.db")  # noqa: S106  # an example
    client.register("accepted", lambda client, message: print(f"accepted: {message['dish']}"))
    client.register("error", lambda client, message: print(f"refused: {message['detail']}"))
    start(client)
    # Fires when the server has handled it; its answer comes with that.
    client.send({"type": "order", "dish": dish}).addBoth(lambda _: reactor.callLater(0.2, reactor.stop))


def start(service: Any) -> None:
    """Have a service run for as long as the reactor does."""
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)


def main() -> None:
    """Be what the first argument says."""
    {"serve": serve, "kitchen": cook, "order": order}[sys.argv[1]](*sys.argv[2:])
    reactor.run()


if __name__ == "__main__":
    main()
