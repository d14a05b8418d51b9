"""A proxy on loopback that lets so many bytes a second pass, each way, and reads no faster than it writes.

    narrow.py PORT RATE      to this port of loopback

Prints where it listens.
"""

import asyncio
import sys

#: What it holds itself is little, so that what does not pass waits at the ends.
PIECE = 16_384
LATENESS = 0.1


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float) -> None:
    """One direction."""
    due = asyncio.get_running_loop().time()
    try:
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()
            now = asyncio.get_running_loop().time()
            # What one sleep takes too long the next ones make up for; a pause in between is no credit.
            due = max(now - LATENESS, due) + len(data) / rate
            await asyncio.sleep(max(0.0, due - now))
    except OSError:
        # One side is gone; so is the other, then.
        pass
    finally:
        writer.close()


async def main() -> None:
    """Pass bytes until the lab ends it."""
    port, rate = int(sys.argv[1]), float(sys.argv[2])

    async def accepted(near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port, limit=PIECE)
        await asyncio.gather(pump(near_reader, far_writer, rate), pump(far_reader, near_writer, rate))

    server = await asyncio.start_server(accepted, "127.0.0.1", 0, limit=PIECE)
    sys.stdout.write(f"listening on {server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
