"""What reaches a host, packet by packet: the truth that a conviction on a bad link is held against.

    arrivals.py DEVICE SERVER_PORT

Reads a copy of every packet that comes in by the device, follows the TCP connections of that port, and prints a line of
JSON whenever there are new bytes that TCP can give to the program: `{"event": "arrival", "at": …, "port": client's}`.
Bytes behind a hole do not count until the hole is filled, and repeated bytes do not count at all. Needs root.
"""

import json
import socket
import struct
import sys
import time
from typing import Any

ETH_P_ALL = 3
#: A packet of our own that leaves (packet(7)).
PACKET_OUTGOING = 4
#: Have the kernel say when a packet came, as a timespec (socket(7)); Python has no name for it.
SO_TIMESTAMPNS = 35
TIMESPEC = struct.Struct("@qq")
#: The flag that a connection begins with; its data begins one number later.
SYN = 2
#: The numbers of TCP's bytes go round.
WRAP = 1 << 32


def tell(event: str, **more: Any) -> None:
    """A line for the lab."""
    sys.stdout.write(json.dumps({"event": event, "at": time.monotonic(), **more}) + "\n")
    sys.stdout.flush()


class Stream:
    """The bytes of one direction of one connection, as far as they are without a hole."""

    def __init__(self, begin: int) -> None:
        self._begin = begin
        self._whole = 0
        self._ahead: list[tuple[int, int]] = []

    def arrived(self, seq: int, size: int) -> bool:
        """Note `size` bytes from `seq` on; whether TCP has new ones to give."""
        start = (seq - self._begin) % WRAP
        # What lies before the beginning is an old copy, far away on the circle of numbers.
        if start >= WRAP // 2:
            start -= WRAP
        self._ahead.append((start, start + size))
        before = self._whole
        for begin, end in sorted(self._ahead):
            if begin > self._whole:
                break
            self._whole = max(self._whole, end)
        self._ahead = [piece for piece in self._ahead if piece[1] > self._whole]
        return self._whole > before


def segment(packet: bytes) -> tuple[int, int, int, int, int] | None:
    """Of an IPv4 packet with TCP in it: its two ports, its number, its flags, and the size of its data."""
    if len(packet) < 40 or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
        return None
    head = (packet[0] & 15) * 4
    total = struct.unpack_from("!H", packet, 2)[0]
    source, target, seq = struct.unpack_from("!HHI", packet, head)
    offset, flags = packet[head + 12] >> 4, packet[head + 13]
    return source, target, seq, flags, total - head - offset * 4


def came(besides: list[tuple[int, int, bytes]]) -> float:
    """When a packet came, by the clock that all go by, whenever we get to read it; of what came beside it."""
    stamp = next(data for level, kind, data in besides if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS))
    seconds, nanoseconds = TIMESPEC.unpack(stamp)
    # Whoever is interrupted between the two clocks finds too little, so the most of three is right.
    ahead = max(time.monotonic() - time.time() for _ in range(3))
    return seconds + nanoseconds / 1e9 + ahead


def main() -> None:
    """Listen until the lab ends it."""
    device, server_port = sys.argv[1], int(sys.argv[2])
    streams: dict[int, Stream] = {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as packets:
        packets.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        packets.bind((device, ETH_P_ALL))
        tell("listens", device=device)
        while True:
            packet, besides, _, where = packets.recvmsg(65_536, socket.CMSG_SPACE(TIMESPEC.size))
            found = segment(packet) if where[2] != PACKET_OUTGOING else None
            if found is None or server_port not in found[:2]:
                continue
            source, target, seq, flags, size = found
            port = target if source == server_port else source
            if flags & SYN:
                streams[port] = Stream(seq + 1)
            elif size > 0 and port in streams and streams[port].arrived(seq, size):
                tell("arrival", port=port, at=came(besides))


if __name__ == "__main__":
    main()
