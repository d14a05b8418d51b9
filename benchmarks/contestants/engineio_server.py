"""python-engineio on aiohttp and uvloop: what Socket.IO's servers for Python speak.

engineio_server.py PORT
"""

from __future__ import annotations

import sys
from typing import Any

import engineio
import uvloop
from aiohttp import web

BACKLOG = 4096
open_now = 0
server = engineio.AsyncServer(async_mode="aiohttp", cors_allowed_origins="*")


@server.on("connect")
async def connected(sid: str, environ: dict[str, Any]) -> None:
    """One more is open."""
    global open_now  # noqa: PLW0603  # one number for all connections is what is served
    open_now += 1


@server.on("disconnect")
async def disconnected(sid: str, reason: str) -> None:
    """One less."""
    global open_now  # noqa: PLW0603  # as above
    open_now -= 1


@server.on("message")
async def arrived(sid: str, message: dict[str, Any]) -> None:
    """Answer a ping; its text was parsed by Engine.IO, which serializes the answer too."""
    if message["type"] == "ping":
        message["status"] = "pong"
        message["clients"] = open_now
        await server.send(sid, message)


if __name__ == "__main__":
    app = web.Application()
    server.attach(app)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        backlog=BACKLOG,
        loop=uvloop.new_event_loop(),
        access_log=None,
        print=None,
    )
