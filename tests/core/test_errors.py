"""Whose fault it is, and what follows for who was closed."""

import pytest

from heartbeat.core.errors import (
    CloseCode,
    HeartbeatError,
    PeerError,
    SessionFull,
    SettingError,
    StateError,
    StoreError,
    Unauthorized,
    Unconfirmed,
    Unreachable,
    Violation,
    is_final_close,
    is_final_http,
)


@pytest.mark.parametrize(
    "kind",
    [
        SettingError,
        StateError,
        PeerError,
        Violation,
        StoreError,
        Unauthorized,
        SessionFull,
        Unconfirmed,
        Unreachable,
    ],
)
def test_everything_we_raise_is_a_heartbeat_error(kind):
    assert issubclass(kind, HeartbeatError)


def test_a_setting_error_names_the_setting_its_value_and_its_bound():
    error = SettingError("interval", -1, "a number from 0.1 to 3600 s")

    assert (error.name, error.value, error.bound) == ("interval", -1, "a number from 0.1 to 3600 s")
    assert str(error) == "interval must be a number from 0.1 to 3600 s, not -1"


def test_a_setting_error_is_a_value_error_to_whoever_does_not_know_us():
    with pytest.raises(ValueError, match="beats must be one of client, server, not 'all'"):
        raise SettingError("beats", "all", "one of client, server")


def test_a_peer_error_carries_what_the_error_frame_will_say():
    error = PeerError("bad-json", "not JSON: it ends too soon", "m1")

    assert (error.code, error.detail, error.re) == ("bad-json", "not JSON: it ends too soon", "m1")
    assert str(error) == "not JSON: it ends too soon"


def test_a_peer_error_may_be_about_nothing_that_has_a_name():
    assert PeerError("bad-json", "not JSON").re is None


def test_a_violation_carries_the_code_and_the_sentence_of_the_close():
    violation = Violation(CloseCode.GAP, "message 5 came after message 3")

    assert (violation.code, violation.detail) == (4010, "message 5 came after message 3")
    assert str(violation) == "message 5 came after message 3"


def test_unconfirmed_holds_the_messages_in_order_and_the_reason():
    first, second = {"type": "onchat", "id": 1}, {"type": "onchat", "id": 2}

    error = Unconfirmed((first, second), "expired")

    assert (error.messages, error.reason) == ((first, second), "expired")
    assert str(error) == "2 message(s) were never confirmed: expired"


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1007, 1008, 1009, 1010, 4400, 4401, 4403, 4499])
def test_a_client_closed_with_a_final_code_stays_away(code):
    assert is_final_close(code)


@pytest.mark.parametrize("code", [None, 1001, 1005, 1006, 1011, 1012, 1013, 4000, 4001, 4008, 4010, 4011, 4399, 4500])
def test_a_client_closed_with_any_other_code_comes_back(code):
    assert not is_final_close(code)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 426])
def test_a_client_refused_with_a_final_status_stays_away(status):
    assert is_final_http(status)


@pytest.mark.parametrize("status", [None, 101, 402, 429, 500, 502, 503, 504])
def test_a_client_refused_with_any_other_status_comes_back(status):
    assert not is_final_http(status)


def test_every_close_code_of_the_wire_has_one_name():
    """RFC 6455, section 7.4.1, as far as we send or judge them, and our own from 4000 on."""
    assert [code.value for code in CloseCode] == [
        *(1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013),
        *(4000, 4001, 4008, 4010, 4011, 4400, 4401, 4403),
    ]
