"""An ASGI application on uvicorn, with uvloop and websockets, as uvicorn chooses them where they are installed.

uvicorn_server.py PORT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

BACKLOG = 4096
open_now = 0


async def pong(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer the pings of one connection."""
    global open_now  # noqa: PLW0603  # one number for all connections is what is served
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    open_now += 1
    try:
        while (event := await receive())["type"] == "websocket.receive":
            message = json.loads(event["text"])
            if message["type"] == "ping":
                message["status"] = "pong"
                message["clients"] = open_now
                await send({"type": "websocket.send", "text": json.dumps(message)})
    finally:
        open_now -= 1


if __name__ == "__main__":
    uvicorn.run(
        pong,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        backlog=BACKLOG,
        lifespan="off",
        access_log=False,
        log_level="critical",
    )
