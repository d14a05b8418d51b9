"""The frames that are written past Autobahn are Autobahn's, and what is read past it is what a client masked."""

import struct

import pytest
from autobahn.websocket.protocol import WebSocketServerProtocol
from hypothesis import given
from hypothesis import strategies as st

from heartbeat.frames import KEPT, LONGEST, REPEATED, TEXT_HEADS, text_frame

BOUNDARIES = [0, 1, 2, 124, 125, 126, 127, 128, 255, 256, 65_534, 65_535]


class Sends(WebSocketServerProtocol):
    """Writes frames as a server of Autobahn's, to nobody."""

    logFrames = maskServerFrames = False

    def __init__(self):
        self.factory = type("Factory", (), {"isServer": True})
        self.trafficStats = type("Stats", (), {"outgoingWebSocketFrames": 0})
        self.sent = []

    def sendData(self, data, sync=False, chopsize=None):  # noqa: FBT002  # Autobahn's signature
        self.sent.append(data)


def autobahns(payload):
    sends = Sends()
    sends.sendFrame(1, payload)
    return sends.sent


def unmasked(mask, masked):
    """The payload, in the arithmetic that the tables are for."""
    length = len(masked)
    key = int.from_bytes(mask, "little") * REPEATED[length] & KEPT[length]
    return (int.from_bytes(masked, "little") ^ key).to_bytes(length, "little")


@pytest.mark.parametrize("length", [*range(130), *BOUNDARIES])
def test_a_text_frame_is_the_one_that_autobahn_would_write(length):
    payload = b"x" * length

    assert [text_frame(payload)] == autobahns(payload)


def test_a_text_frame_says_text_final_not_masked_and_its_length():
    """RFC 6455, section 5.7: "A single-frame unmasked text message"."""
    assert text_frame(b"Hello") == b"\x81\x05Hello"
    assert text_frame(b"x" * 126)[:4] == b"\x81\x7e\x00\x7e"


def test_what_is_too_long_for_two_bytes_of_length_is_an_error_and_no_other_frame():
    with pytest.raises(OverflowError):
        text_frame(b"x" * 65_536)


def test_the_two_bytes_before_a_short_text_are_ready_for_every_length():
    assert LONGEST == 125
    assert tuple(struct.pack("BB", 0x81, length) for length in range(126)) == TEXT_HEADS


@pytest.mark.parametrize("length", range(LONGEST + 1))
def test_a_payload_of_every_length_is_unmasked_as_the_rfc_has_it(length):
    """RFC 6455, section 5.3: "transformed-octet-i = original-octet-i XOR masking-key-octet-j", j = i MOD 4."""
    payload = bytes(range(255, 255 - length, -1))
    for mask in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\x80\x7f\xfe", b"\0\0\0\x01", b"\x81\x8f\0\0"):
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))

        assert unmasked(mask, masked) == payload


@given(st.binary(min_size=4, max_size=4), st.binary(max_size=LONGEST))
def test_any_payload_under_any_key_comes_out_as_it_went_in(mask, payload):
    assert unmasked(mask, unmasked(mask, payload)) == payload
    assert unmasked(mask, payload) == bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
