"""picows on uvloop, with the standard library's JSON or orjson.

picows_server.py PORT [json|orjson]
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

BACKLOG = 4096

library = importlib.import_module(sys.argv[2] if len(sys.argv) > 2 else "json")
loads: Callable[[bytes], Any] = library.loads
dumps: Callable[[Any], bytes] = library.dumps
if library.__name__ == "json":
    dumps = lambda message: library.dumps(message).encode()  # noqa: E731  # in place of the other, and as short


class Pong(WSListener):
    """Answers pings, and counts who is open."""

    open_now = 0

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Picows': the WebSocket is open."""
        Pong.open_now += 1

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Picows': it is gone."""
        Pong.open_now -= 1

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Picows': a frame arrived."""
        if frame.msg_type == WSMsgType.TEXT:
            message = loads(frame.get_payload_as_bytes())
            if message["type"] == "ping":
                message["status"] = "pong"
                message["clients"] = Pong.open_now
                transport.send(WSMsgType.TEXT, dumps(message))
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()


def listener(request: WSUpgradeRequest) -> Pong:
    """Whom a connection is given to."""
    return Pong()


async def main() -> None:
    """Serve until killed."""
    server = await ws_create_server(listener, "127.0.0.1", int(sys.argv[1]), backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
