"""The frames of RFC 6455 that a server sees all day, as bytes: a short text of a client's, a text of its own, a pong.

Tables and arithmetic; every other frame is Autobahn's.
"""

from __future__ import annotations

__all__ = ["KEPT", "LONGEST", "PONG_HEADS", "REPEATED", "TEXT_HEADS", "text_frame"]

#: The longest payload whose length stands in the second byte (section 5.2).
LONGEST = 125

#: By the length of its payload, the two bytes before a text that is final and not masked.
TEXT_HEADS = tuple(bytes((0x81, length)) for length in range(LONGEST + 1))

#: The same before a pong (section 5.5.3).
PONG_HEADS = tuple(bytes((0x8A, length)) for length in range(LONGEST + 1))

#: By the length of a payload: what to multiply a masking key with, as a little-endian number, so that it is repeated
#: over it; and what of the product to keep. To XOR two long numbers takes 0.4 us, Autobahn's masker 2.4 (2026).
REPEATED = tuple(int.from_bytes(b"\1\0\0\0" * ((length + 3) // 4), "little") for length in range(LONGEST + 1))
KEPT = tuple((1 << 8 * length) - 1 for length in range(LONGEST + 1))


def text_frame(payload: bytes) -> bytes:
    """A text frame, final and not masked, with this payload of UTF-8, of at most 65535 bytes."""
    length = len(payload)
    return (TEXT_HEADS[length] if length <= LONGEST else b"\x81\x7e" + length.to_bytes(2)) + payload
