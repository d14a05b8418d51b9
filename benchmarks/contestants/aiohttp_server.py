"""aiohttp on uvloop.

aiohttp_server.py PORT
"""

from __future__ import annotations

import json
import sys

import uvloop
from aiohttp import WSMsgType, web

BACKLOG = 4096
open_now = 0


async def pong(request: web.Request) -> web.WebSocketResponse:
    """Answer the pings of one connection."""
    global open_now  # noqa: PLW0603  # one number for all connections is what is served
    connection = web.WebSocketResponse()
    await connection.prepare(request)
    open_now += 1
    try:
        async for arrived in connection:
            if arrived.type == WSMsgType.TEXT:
                message = json.loads(arrived.data)
                if message["type"] == "ping":
                    message["status"] = "pong"
                    message["clients"] = open_now
                    await connection.send_str(json.dumps(message))
    finally:
        open_now -= 1
    return connection


if __name__ == "__main__":
    app = web.Application()
    app.router.add_get("/{path:.*}", pong)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        backlog=BACKLOG,
        loop=uvloop.new_event_loop(),
        access_log=None,
        print=None,
    )
