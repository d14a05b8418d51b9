"""The client in an asyncio program: Twisted runs on asyncio's loop, and a Deferred becomes a Future.

Run it beside any of the servers here:

    python asyncio_client.py ws://127.0.0.1:9000/ws
"""

import asyncio
import sys

from twisted.internet import asyncioreactor

# Before anything else of Twisted's, which would choose a reactor of its own.
loop = asyncio.new_event_loop()
asyncioreactor.install(loop)

from twisted.internet import task  # noqa: E402  # the reactor comes first
from twisted.internet.defer import Deferred  # noqa: E402  # the reactor comes first

from heartbeat import HeartbeatClient, LinkStatus, Unreachable  # noqa: E402  # the reactor comes first


async def watch(url: str) -> None:
    """Tell of every change of the link, until the server cannot be reached any more."""
    changes: asyncio.Queue[LinkStatus] = asyncio.Queue()
    client = HeartbeatClient(url)
    client.linkChanged = changes.put_nowait
    client.startService()
    try:
        await client.whenOpen().asFuture(loop)
        print(f"there we are {client.status.client_id}")
        event = ""
        while event != "unreachable":
            change = await changes.get()
            event = change.event
            print(f"{event}: {change.detail}")
    except Unreachable as error:
        print(f"no server: {error}")
    finally:
        await client.stopService().asFuture(loop)


def main(reactor: object) -> Deferred[None]:
    """Have the coroutine run on the loop that Twisted runs on."""
    url = sys.argv[1] if sys.argv[1:] else "ws://127.0.0.1:9000/ws"
    return Deferred.fromFuture(loop.create_task(watch(url)))


if __name__ == "__main__":
    task.react(main)
