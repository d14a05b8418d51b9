"""websockets on uvloop, with its defaults: it pings by itself every 20 s.

websockets_server.py PORT
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

BACKLOG = 4096
open_now = 0


async def pong(connection: ServerConnection) -> None:
    """Answer the pings of one connection."""
    global open_now  # noqa: PLW0603  # one number for all connections is what is served
    open_now += 1
    try:
        async for text in connection:
            message = json.loads(text)
            if message["type"] == "ping":
                message["status"] = "pong"
                message["clients"] = open_now
                await connection.send(json.dumps(message))
    except ConnectionClosed:
        pass
    finally:
        open_now -= 1


async def main() -> None:
    """Serve until killed."""
    async with serve(pong, "127.0.0.1", int(sys.argv[1]), backlog=BACKLOG):
        await asyncio.Future()


if __name__ == "__main__":
    uvloop.run(main())
