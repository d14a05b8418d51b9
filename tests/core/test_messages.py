"""What stands on the wire: what is taken, what is refused with which words, and the bytes that answer a ping."""

import json
from bisect import bisect
from math import inf

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from heartbeat.core.errors import PeerError
from heartbeat.core.messages import (
    NOT_QUICKLY,
    OWNED,
    OWNED_IN_SESSION,
    VERSION,
    ack_frame,
    bad_json,
    check_type,
    decode,
    decode_object,
    drain_frame,
    encode,
    error_frame,
    is_id,
    number_of,
    numberless,
    ping_frame,
    pong_frame,
    quickly,
    re_of,
    unknown_type,
)

PONG = b'"status":"pong","clients":3'

#: In a session what was handled is told too, by the answerer.
PONG_IN_SESSION = b'"status":"pong","clients":3,"ack":17'


def refusal_of(payload):
    with pytest.raises(PeerError) as caught:
        decode(payload)
    return caught.value


def answer_to(payload, members=PONG):
    return pong_frame(payload, decode(payload), b"," + members + b"}")


def answer_in_session_to(payload):
    return pong_frame(payload, decode(payload), b"," + PONG_IN_SESSION + b"}", OWNED_IN_SESSION)


# Taken


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'{"type":"ping"}', {"type": "ping"}),
        (b'{"type":"ping","id":7}', {"type": "ping", "id": 7}),
        (b' \t\r\n{ \t\r\n"type" \t\r\n: \t\r\n"ping" \t\r\n} \t\r\n', {"type": "ping"}),
        (rb'{"\u0074ype":"\u0070ing"}', {"type": "ping"}),
        (b'{"type":"ping","n":1e5}', {"type": "ping", "n": 100000.0}),
        (b'{"type":"ping","n":12345678901234567890123}', {"type": "ping", "n": 12345678901234567890123}),
        (b'{"type":"ping","n":null,"l":[true,{}]}', {"type": "ping", "n": None, "l": [True, {}]}),
        ('{"type":"grüß","😀":"\x7f"}'.encode(), {"type": "grüß", "😀": "\x7f"}),
        (rb'{"type":"\ud83d\ude00\u0000\/"}', {"type": "😀\0/"}),
        (b'{"type":""}', {"type": ""}),
    ],
)
def test_an_object_with_a_type_is_a_message(payload, message):
    assert decode(payload) == message


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (rb'{"type":"ping","s":"\ud800"}', {"type": "ping", "s": "\ud800"}),
        (rb'{"type":"ping","s":"\uDFFF x"}', {"type": "ping", "s": "\udfff x"}),
        (rb'{"type":"ping","s":"\udc00\ud83d"}', {"type": "ping", "s": "\udc00\ud83d"}),
        (rb'{"type":"ping","\ud800":1e5}', {"type": "ping", "\ud800": 100000.0}),
        (rb' { "type" : "\ud800" } ', {"type": "\ud800"}),
    ],
)
def test_a_lone_surrogate_escape_is_valid_as_json_stringify_emits_it(payload, message):
    assert decode(payload) == message


@pytest.mark.parametrize("tail", [b"", rb',"s":"\ud800"'])
def test_of_a_member_that_appears_twice_the_last_counts(tail):
    assert decode(b'{"type":"onopen","type":1,"type":"ping"' + tail + b"}")["type"] == "ping"


@pytest.mark.parametrize("payload", [b"{}", b'{"seq":1}', b'{"type":7}', rb'{"s":"\ud800"}'])
def test_an_object_may_be_looked_at_before_it_is_known_to_be_a_message(payload):
    found = decode_object(payload)

    assert found == json.loads(payload)
    with pytest.raises(PeerError, match="a message has a type, and the type is text"):
        check_type(found)


def test_an_object_that_is_a_message_is_handed_on():
    message = {"type": "onchat"}

    assert check_type(message) is message


@pytest.mark.parametrize("ack", [b"", b',"ack":3'])
def test_a_numbered_frame_without_its_numbers_is_the_message_as_it_was_sent(ack):
    assert numberless(b'{"type":"onchat","to":"bob","seq":1%b}' % ack) == {"type": "onchat", "to": "bob"}


def test_what_cannot_be_decoded_is_the_error_that_it_deserves():
    """The same frame may be too deep from one place and not from another."""
    assert numberless(b'{"seq":').code == "bad-json"


# Refused


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"   ",
        b"hello",
        b"{",
        b'{"type":"pi',
        b'{"type":"ping"',
        b'{"type":"ping",}',
        b'{"type":"ping"}}',
        b'{"type":"ping"} x',
        b"{type:'ping'}",
        b"{'type':'ping'}",
        b'{"type":"ping" "id":1}',
        b'{"type":"ping","n":01}',
        b'{"type":"ping","n":+1}',
        b'{"type":"ping","n":.5}',
        b'{"type":"ping","n":0x1}',
        b'{"type":"ping","n":NaN}',
        b'{"type":"ping","n":-Infinity}',
        b'{"type":"pi\nng"}',
        b'{"type":"pi\x00ng"}',
        rb'{"type":"\x70ing"}',
        rb'{"type":"\u00g0"}',
        b'\x0b{"type":"ping"}',
        b'{"type":"\xff"}',
        b'{"\xc0\xaf":1,"type":"ping"}',
        b'{"type":"\xed\xa0\x80"}',
        b'\xef\xbb\xbf{"type":"ping"}',
        '{"type":"ping"}'.encode("utf-16"),
    ],
)
def test_what_is_not_json_is_refused_and_the_refusal_says_why(payload):
    error = refusal_of(payload)

    assert (error.code, error.re) == ("bad-json", None)
    assert error.detail.startswith("not JSON: ")


@pytest.mark.parametrize(
    ("payload", "detail"),
    [
        (b'{"n":NaN,"s":"\\ud800"}', "not JSON: NaN is not JSON"),
        (b'{"n":Infinity,"s":"\\ud800"}', "not JSON: Infinity is not JSON"),
        (b'\xef\xbb\xbf{"s":"\\ud800"}', "not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b'{"s":"\\ud800"', "not JSON: Expecting ',' delimiter: line 1 column 14 (char 13)"),
        (b'{"s":"\\ud800\xff"}', "not JSON: 'utf-8' codec can't decode byte 0xff in position 12: invalid start byte"),
        (b'"\\ud800"' + b"[" * 10_000, "not JSON: Extra data: line 1 column 9 (char 8)"),
    ],
)
def test_a_lone_surrogate_does_not_make_json_of_what_is_none(payload, detail):
    error = refusal_of(payload)

    assert (error.code, error.detail, error.re) == ("bad-json", detail, None)


@pytest.mark.parametrize("tail", [b"", rb',"s":"\ud800"'])
@pytest.mark.parametrize(("start", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_what_is_nested_ten_thousand_deep_and_more_is_refused(start, end, tail):
    depth = 30_000

    error = refusal_of(b'{"type":"ping","d":' + start * depth + b"1" + end * depth + tail + b"}")

    assert error.code == "bad-json"
    assert "nested too deeply" in error.detail or "maximum recursion depth" in error.detail


#: Where a number may stand: alone, nested, and before another of the same name; read by the one library and the other.
PLACES = [
    b'{"type":"ping","n":%b}',
    b'{"type":"ping","n":[{"n":%b}],"m":1}',
    b'{"type":"ping","n":%b,"n":1}',
    rb'{"type":"ping","n":%b,"s":"\ud800"}',
    rb'{"type":"ping","n":[{"n":%b}],"s":"\ud800"}',
    rb'{"type":"ping","n":%b,"n":1,"s":"\ud800"}',
    rb'{"type":"ping","n":%b,"n":"\ud800"}',
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "number", ["9" * 5000, "1e400", "-1e400", "1e99999999999999999999", "1.7976931348623159e308", "9" * 400 + ".0"]
)
def test_a_number_beyond_all_range_is_refused_wherever_it_stands(place, number):
    """RFC 8259, section 6: "This specification allows implementations to set limits on the range and precision"."""
    error = refusal_of(place % number.encode())

    assert (error.code, error.re) == ("bad-json", None)
    assert error.detail.startswith("not JSON: ")
    assert len(error.detail) < 200


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", ["1.7976931348623158e308", "-1e-400", "0e400", "9" * 4300, "9" * 400 + "e-300"])
def test_a_number_at_the_end_of_the_range_is_taken_wherever_it_stands(place, number):
    payload = place % number.encode()

    assert decode(payload) == json.loads(payload)
    assert spelled(answer_to(payload)) == spelled(payload) | {"status": "pong", "clients": "3"}


@pytest.mark.parametrize("payload", [b"[]", b'["type"]', b'"type"', b"7", b"null", b"true", rb'"\ud800"'])
def test_what_is_no_object_is_no_message(payload):
    error = refusal_of(payload)

    assert (error.code, error.detail, error.re) == ("bad-message", "a message is a JSON object", None)


@pytest.mark.parametrize(
    "payload",
    [b"{}", b'{"Type":"ping"}', b'{"type":null}', b'{"type":1}', b'{"type":["ping"]}', rb'{"s":"\ud800"}'],
)
def test_an_object_without_a_type_of_text_is_no_message(payload):
    error = refusal_of(payload)

    assert (error.code, error.re) == ("bad-message", None)
    assert error.detail == "a message has a type, and the type is text"


def test_the_refusal_of_what_is_not_json_quotes_the_parser():
    error = bad_json("it ends too soon")

    assert (error.code, error.detail, error.re) == ("bad-json", "not JSON: it ends too soon", None)


# Pongs


@pytest.mark.parametrize(
    ("ping", "pong"),
    [
        (b'{"type":"ping"}', b'{"type":"ping",%b}'),
        (b'{"type":"ping","id":7}', b'{"type":"ping","id":7,%b}'),
        (b' { "type" : "ping" , "t" : 1e5 } \n', b' { "type" : "ping" , "t" : 1e5 ,%b}'),
        (b'{"type":"ping","n":12345678901234567890123}', b'{"type":"ping","n":12345678901234567890123,%b}'),
        (rb'{"\u0074ype":"\u0070ing"}', rb'{"\u0074ype":"\u0070ing",%b}'),
        (rb'{"type":"ping","s":"\ud800"}', rb'{"type":"ping","s":"\ud800",%b}'),
        (b'{"type":"ping","at":"12:30:00"}', b'{"type":"ping","at":"12:30:00",%b}'),
        (b'{"type":"ping","p":{"x":1,"y":[{"status":2}]}}', b'{"type":"ping","p":{"x":1,"y":[{"status":2}]},%b}'),
        (b'{"type":"ping","s":"}"}', b'{"type":"ping","s":"}",%b}'),
        (b'{"type":"ping","s":"\\"status\\":"}', b'{"type":"ping","s":"\\"status\\":",%b}'),
        (b'{"type":"ping","":0}', b'{"type":"ping","":0,%b}'),
        (b'{"type":"ping","ack":5}', b'{"type":"ping","ack":5,%b}'),
    ],
)
def test_the_answer_is_the_text_received_with_ours_before_the_last_brace(ping, pong):
    assert answer_to(ping) == pong.replace(b"%b", PONG)


@pytest.mark.parametrize(
    ("ping", "pong"),
    [
        (b'{"type":"ping","status":"pong"}', b'{"type":"ping",%b}'),
        (b'{"status":"online","type":"ping"}', b'{"type":"ping",%b}'),
        (b'{"type":"ping","clients":99,"id":1}', b'{"type":"ping","id":1,%b}'),
        (b'{"type":"ping","clients":5}', b'{"type":"ping",%b}'),
        (b'{"type":"ping","status":1,"clients":[{"a":":"}]}', b'{"type":"ping",%b}'),
        (rb'{"type":"ping","st\u0061tus":"online"}', b'{"type":"ping",%b}'),
        (b' { "type" : "ping" , "status" : 1 , "n" : 1e5 } ', b'{"type":"ping","n":1e5,%b}'),
        (b'{"n":12345678901234567890123,"type":"ping","status":0}', b'{"n":12345678901234567890123,"type":"ping",%b}'),
        (
            b'{"type":"ping","status":0,"p": [ 1 , { "status" : 2 } ]}',
            b'{"type":"ping","p":[ 1 , { "status" : 2 } ],%b}',
        ),
        (rb'{"type":"ping","status":0,"s":"\ud800"}', rb'{"type":"ping","s":"\ud800",%b}'),
        (rb'{"type":"ping","status":0,"\ud800":1}', rb'{"type":"ping","\ud800":1,%b}'),
        ('{"type":"ping","status":0,"ü":"ü"}'.encode(), '{"type":"ping","ü":"ü",%b}'.encode()),
    ],
)
def test_a_ping_that_holds_one_of_the_answerers_members_is_rebuilt_with_ours(ping, pong):
    assert answer_to(ping) == pong.replace(b"%b", PONG)


@pytest.mark.parametrize(
    ("ping", "pong"),
    [
        (b'{"type":"ping","a":1,"a":2}', b'{"type":"ping","a":2,%b}'),
        (b'{"type":"x","a":1e5,"type":"ping"}', b'{"type":"ping","a":1e5,%b}'),
        (rb'{"type":"ping","a":1,"\u0061":{"b":2}}', rb'{"type":"ping","a":{"b":2},%b}'),
        (b'{"type":"ping","status":1,"status":2}', b'{"type":"ping",%b}'),
    ],
)
def test_a_ping_that_holds_a_member_twice_is_rebuilt_with_the_last(ping, pong):
    assert answer_to(ping) == pong.replace(b"%b", PONG)


@pytest.mark.parametrize("length", [0, 1, 80, 98, 99, 100, 101, 1000])
def test_an_answer_is_as_long_as_the_ping_and_our_members_whatever_the_length(length):
    ping = b'{"type":"ping","pad":"%b"}' % (b"x" * length)

    assert answer_to(ping) == ping[:-1] + b"," + PONG + b"}"
    assert answer_in_session_to(ping) == ping[:-1] + b"," + PONG_IN_SESSION + b"}"


@pytest.mark.parametrize("tail", [b"\n", b" ", b"\r\n\t "])
def test_what_stands_after_the_last_brace_of_a_ping_does_not_come_back(tail):
    assert answer_to(b'{"type":"ping","id":7}' + tail) == b'{"type":"ping","id":7,' + PONG + b"}"
    assert answer_in_session_to(b'{"type":"ping","ack":5}' + tail) == b'{"type":"ping",' + PONG_IN_SESSION + b"}"


def test_the_members_are_the_answerers_whatever_they_are():
    assert answer_to(b'{"type":"ping","id":1}', b'"status":"pong"') == b'{"type":"ping","id":1,"status":"pong"}'


@pytest.mark.parametrize(
    ("ping", "pong"),
    [
        (b'{"type":"ping","id":7,"ack":5}', b'{"type":"ping","id":7,%b}'),
        (b'{"type":"ping","ack":0}', b'{"type":"ping",%b}'),
        (b'{"type":"ping","id":7,"ack":12345678901234567890123}', b'{"type":"ping","id":7,%b}'),
        (b' { "type" : "ping" , "t" : 1e5 ,"ack":5}', b' { "type" : "ping" , "t" : 1e5 ,%b}'),
        (rb'{"\u0074ype":"\u0070ing","ack":5}', rb'{"\u0074ype":"\u0070ing",%b}'),
        (b'{"type":"ping","p":{"x":1,"ack":6},"t":0}', b'{"type":"ping","p":{"x":1,"ack":6},"t":0,%b}'),
        (b'{"type":"ping","s":",\\"ack\\":6}"}', b'{"type":"ping","s":",\\"ack\\":6}",%b}'),
        (b'{"type":"ping","at":"12:30:00","ack":5}', b'{"type":"ping","at":"12:30:00",%b}'),
        (b'{"type":"ping","acks":[1,2]}', b'{"type":"ping","acks":[1,2],%b}'),
        (rb'{"type":"ping","s":"\ud800","ack":5}', rb'{"type":"ping","s":"\ud800",%b}'),
    ],
)
def test_in_a_session_an_ack_at_the_end_is_cut_off_and_the_rest_comes_back_as_it_was(ping, pong):
    assert answer_in_session_to(ping) == pong.replace(b"%b", PONG_IN_SESSION)


@pytest.mark.parametrize(
    ("ping", "pong"),
    [
        (b'{"ack":5,"type":"ping"}', b'{"type":"ping",%b}'),
        (b'{"type":"ping","ack":5,"id":1e5}', b'{"type":"ping","id":1e5,%b}'),
        (b'{"type":"ping","ack": 5}', b'{"type":"ping",%b}'),
        (b'{"type":"ping", "ack":5}', b'{"type":"ping",%b}'),
        (b'{"type":"ping","ack":5 }', b'{"type":"ping",%b}'),
        (b'{"type":"ping","ack":-5}', b'{"type":"ping",%b}'),
        (b'{"type":"ping","ack":5.0}', b'{"type":"ping",%b}'),
        (b'{"type":"ping","ack":null}', b'{"type":"ping",%b}'),
        (b'{"type":"ping","ack":{"ack":5}}', b'{"type":"ping",%b}'),
        (rb'{"type":"ping","\u0061ck":5}', b'{"type":"ping",%b}'),
        (b'{"type":"ping","ack":4,"ack":5}', b'{"type":"ping",%b}'),
        (rb'{"type":"ping","\u0061ck":4,"ack":5}', b'{"type":"ping",%b}'),
        (rb'{"type":"ping","ack":4,"\u0061ck":5}', b'{"type":"ping",%b}'),
        (b'{"type":"ping","status":0,"ack":5}', b'{"type":"ping",%b}'),
        (b'{"clients":1,"type":"ping","id":1,"ack":5}', b'{"type":"ping","id":1,%b}'),
        (b'{"type":"ping","a":1,"a":2,"ack":5}', b'{"type":"ping","a":2,%b}'),
        (b'{"type":"ping","p":{"ack":6},"ack":5}', b'{"type":"ping","p":{"ack":6},%b}'),
        (b'{"type":"ping","s":"\\"ack\\"","ack":5}', b'{"type":"ping","s":"\\"ack\\"",%b}'),
    ],
)
def test_in_a_session_an_ack_in_any_other_place_or_spelling_is_replaced_by_ours(ping, pong):
    assert answer_in_session_to(ping) == pong.replace(b"%b", PONG_IN_SESSION)


def test_the_members_that_are_the_answerers_are_one_more_in_a_session():
    assert {"status", "clients"} == OWNED
    assert OWNED | {"ack"} == OWNED_IN_SESSION


def nested(depth):
    return b"[" * depth + b"]" * depth


def test_a_ping_nested_as_deep_as_can_be_read_is_answered_or_refused():
    """Two libraries read it, one some levels deeper than the other: that is no fault of ours."""

    def is_read(depth):
        try:
            return bool(decode(b'{"type":"ping","status":0,"d":' + nested(depth) + b"}"))
        except PeerError:
            return False

    deepest = bisect(range(30_000), 0, key=lambda depth: not is_read(depth)) - 1
    for depth in range(deepest - 20, deepest + 20):
        try:
            said = answer_to(b'{"type":"ping","status":0,"d":' + nested(depth) + b"}")
        except PeerError as error:
            said = (error.code, error.detail)
        answer = b'{"type":"ping","d":' + nested(depth) + b"," + PONG + b"}"
        assert said in (answer, ("bad-json", "nested too deeply"))


def test_a_ping_nested_too_deeply_to_be_rebuilt_is_refused():
    with pytest.raises(PeerError) as caught:
        pong_frame(b'{"status":0,"d":' + nested(30_000) + b"}", {"type": "ping", "status": 0}, PONG)

    assert (caught.value.code, caught.value.detail) == ("bad-json", "nested too deeply")


# Any ping whatever

SPACE = st.text(" \t\r\n", max_size=2)

NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["-0", "1e5", "1E+2", "0.10", "12345678901234567890123"]),
)

#: Any text, lone surrogates too, which only an escape can spell.
TEXT = st.one_of(
    st.text(st.characters()).map(json.dumps),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10).map(
        lambda text: json.dumps(text, ensure_ascii=False)
    ),
    st.sampled_from(['"a:b"', '"}"', '"\\"status\\":"', '"\\ud83d"', '"\\u003a"']),
)

NAMES = st.one_of(
    TEXT,
    st.sampled_from(['"a"', '"\\u0061"', '"id"', '"type"', '"status"', '"st\\u0061tus"', '"clients"', '"ack"', '""']),
)


@st.composite
def objects(draw, values, *, first=()):
    members = [*first, *draw(st.lists(st.tuples(NAMES, values), max_size=6))]
    return braced(draw, "{}", [f"{name}{draw(SPACE)}:{draw(SPACE)}{value}" for name, value in members])


@st.composite
def lists(draw, values):
    return braced(draw, "[]", draw(st.lists(values, max_size=4)))


def braced(draw, brackets, items):
    spaced = ",".join(f"{draw(SPACE)}{item}{draw(SPACE)}" for item in items)
    return brackets[0] + draw(SPACE) + spaced + brackets[1]


VALUES = st.recursive(
    st.one_of(NUMBERS, TEXT, st.sampled_from(["true", "false", "null"])),
    lambda values: st.one_of(lists(values), objects(values)),
    max_leaves=8,
)


@st.composite
def pings(draw):
    """The text of any object with a type, in any spelling, members of any name in any number."""
    text = draw(SPACE) + draw(objects(VALUES, first=[('"type"', draw(TEXT))])) + draw(SPACE)
    assume(type(json.loads(text)["type"]) is str)
    return text.encode()


def spelled(payload):
    """What the standard library reads, numbers as they are spelled."""
    return json.loads(payload, parse_int=str, parse_float=str)


def names_in(payload):
    """The names of an object's members, those of members that appear twice twice."""
    found = []
    json.loads(payload, object_pairs_hook=lambda pairs: found.append([name for name, _ in pairs]))
    return found[-1]


@given(pings())
def test_any_ping_comes_back_as_it_was_but_for_what_is_the_answerers(payload):
    answer = answer_to(payload)

    kept = {name: value for name, value in spelled(payload).items() if name not in ("status", "clients")}
    assert spelled(answer) == kept | {"status": "pong", "clients": "3"}
    assert len(names_in(answer)) == len(kept) + 2


@given(
    pings(), st.sampled_from([b"", b',"ack":7', b',"ack":7 ', b', "ack":null', rb',"\u0061ck":7', b',"ack":8,"ack":7'])
)
def test_in_a_session_any_ping_comes_back_as_it_was_but_for_what_is_the_answerers(ping, ack):
    payload = ping[: ping.rindex(b"}")] + ack + b"}"

    answer = answer_in_session_to(payload)

    kept = {name: value for name, value in spelled(payload).items() if name not in OWNED_IN_SESSION}
    assert spelled(answer) == kept | {"status": "pong", "clients": "3", "ack": "17"}
    assert len(names_in(answer)) == len(kept) + 3


@given(pings())
def test_any_ping_without_the_answerers_members_and_duplicates_comes_back_byte_by_byte(payload):
    names = names_in(payload)
    assume(len(set(names)) == len(names) and not {"status", "clients"} & set(names))

    answer = answer_to(payload)

    assert answer == payload[: payload.rindex(b"}")] + b"," + PONG + b"}"


@given(pings())
def test_any_message_means_to_us_what_it_means_to_the_standard_library(payload):
    assert decode(payload) == json.loads(payload)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(payload):
    try:
        outcome = type(decode(payload)["type"])
    except PeerError as error:
        outcome = error.code
    assert outcome in (str, "bad-json", "bad-message")


# Quickly


def read_quickly(payload):
    """What the fast library alone makes of a payload, or that it makes nothing of it."""
    try:
        return quickly(payload)
    except NOT_QUICKLY:
        return NOT_QUICKLY


@pytest.mark.parametrize("payload", [b'{"type":"ping","n":1e5}', b"{}", b"[1]", b'"ping"', b"7", b" null\n"])
def test_what_is_read_quickly_may_be_any_json_and_means_the_same(payload):
    assert read_quickly(payload) == json.loads(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b'{"type":"ping"',
        b'{"type":"ping"}}',
        rb'{"type":"ping","s":"\ud800"}',
        b'{"type":"ping","s":"\xff"}',
        b'{"\xff":"","type":"ping"}',
        b'{"type":"ping","n":1e400}',
        b'{"type":"ping","n":NaN}',
        b'{"type":"ping","d":' + nested(30_000) + b"}",
    ],
)
def test_what_is_not_read_quickly_is_told_by_an_error_that_is_expected(payload):
    assert read_quickly(payload) is NOT_QUICKLY


@given(pings() | st.binary(max_size=100) | st.builds(lambda head, ping: head + ping, st.binary(max_size=2), pings()))
def test_whatever_is_read_quickly_is_what_is_read_at_all(payload):
    """An object, or what is refused for being none; never what the slower way would not take for JSON."""
    found = read_quickly(payload)

    if type(found) is dict:
        assert decode_object(payload) == found
    elif found is not NOT_QUICKLY:
        with pytest.raises(PeerError, match=r"^a message is a JSON object$"):
            decode_object(payload)


@pytest.mark.parametrize("at", range(26))
def test_bytes_that_are_no_utf_8_are_read_quickly_in_no_place(at):
    ping = b'{"type":"ping","id":"x" }\n'

    for wrong in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"):
        assert read_quickly(ping[:at] + wrong + ping[at:]) is NOT_QUICKLY


# Frames of our own


def test_the_version_we_speak_is_1():
    assert VERSION == 1


@pytest.mark.parametrize(("ping_id", "frame"), [(1, b'{"type":"ping","id":1}'), (64, b'{"type":"ping","id":64}')])
def test_a_ping_of_our_own_holds_its_type_and_its_id(ping_id, frame):
    assert ping_frame(ping_id) == frame


@pytest.mark.parametrize("ack", [0, 41])
def test_in_a_session_a_ping_of_our_own_ends_with_what_we_have_handled(ack):
    """So that it can be cut off without decoding."""
    ping = ping_frame(7, ack)

    assert ping == b'{"type":"ping","id":7,"ack":%d}' % ack
    assert answer_in_session_to(ping) == ping_frame(7)[:-1] + b"," + PONG_IN_SESSION + b"}"


@pytest.mark.parametrize("ack", [0, 41])
def test_what_we_have_handled_may_stand_alone(ack):
    assert ack_frame(ack) == b'{"type":"ack","ack":%d}' % ack


def test_a_drain_says_from_when_and_until_when():
    assert drain_frame(0, 5000) == b'{"type":"drain","min_ms":0,"max_ms":5000}'


@pytest.mark.parametrize(
    ("message", "least", "number"),
    [
        ({}, 0, None),
        ({"n": None}, 0, None),
        ({"n": 0}, 0, 0),
        ({"n": 1}, 1, 1),
        ({"n": 10**400}, 1, 10**400),
    ],
)
def test_the_number_in_a_member_is_whole_and_at_least_the_least(message, least, number):
    assert number_of(message, "n", least) == number


@pytest.mark.parametrize("value", [-1, 0, 1.0, "1", True, [], {}])
def test_what_is_no_such_number_is_refused(value):
    with pytest.raises(PeerError) as caught:
        number_of({"type": "onchat", "n": value}, "n", 1)

    error = caught.value
    assert (error.code, error.detail, error.re) == ("bad-message", "n must be a whole number from 1", "onchat")


@pytest.mark.parametrize(
    ("message", "about"),
    [
        ({}, None),
        ({"type": 7, "id": "m1"}, None),
        ({"type": [[]]}, None),
        ({"type": "onchat", "id": "m1"}, "m1"),
        ({"type": "y" * 65}, "y" * 64),
    ],
)
def test_the_refusal_of_a_number_is_about_its_message_as_far_as_that_has_a_name(message, about):
    with pytest.raises(PeerError) as caught:
        number_of({**message, "n": 0}, "n", 1)

    assert caught.value.re == about


def test_a_type_that_nobody_takes_is_refused_by_its_name_or_the_beginning_of_it():
    error = unknown_type({"type": "y" * 65, "id": "m1"})

    assert (error.code, error.re) == ("unknown-type", "m1")
    assert error.detail == "nobody here takes messages of type " + "y" * 64


def test_messages_are_written_without_spaces_and_in_utf_8():
    assert encode({"type": "onchat", "text": "grüß", "n": 1.5}) == '{"type":"onchat","text":"grüß","n":1.5}'.encode()


@pytest.mark.parametrize(
    ("error", "frame"),
    [
        (PeerError("bad-json", "not JSON"), b'{"type":"error","code":"bad-json","detail":"not JSON"}'),
        (PeerError("too-big", "no", "m1"), b'{"type":"error","code":"too-big","detail":"no","re":"m1"}'),
        (PeerError("too-big", "no", 0), b'{"type":"error","code":"too-big","detail":"no","re":0}'),
        (PeerError("x", "ü"), '{"type":"error","code":"x","detail":"ü"}'.encode()),
        (PeerError("x", "ü", "\ud800"), rb'{"type": "error", "code": "x", "detail": "\u00fc", "re": "\ud800"}'),
    ],
)
def test_an_error_frame_says_the_code_the_sentence_and_what_it_is_about(error, frame):
    assert error_frame(error) == frame


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ({"type": "onchat"}, "onchat"),
        ({"type": "onchat", "id": "m1"}, "m1"),
        ({"type": "onchat", "id": ""}, ""),
        ({"type": "onchat", "id": 7}, 7),
        ({"type": "onchat", "id": -(2**63) + 1}, -(2**63) + 1),
        ({"type": "onchat", "id": 2**63}, "onchat"),
        ({"type": "onchat", "id": 10**400}, "onchat"),
        ({"type": "onchat", "id": "x" * 64}, "x" * 64),
        ({"type": "onchat", "id": "x" * 65}, "onchat"),
        ({"type": "onchat", "id": 7.0}, "onchat"),
        ({"type": "onchat", "id": inf}, "onchat"),
        ({"type": "onchat", "id": True}, "onchat"),
        ({"type": "onchat", "id": None}, "onchat"),
        ({"type": "onchat", "id": ["m1"]}, "onchat"),
        ({"type": "y" * 65}, "y" * 64),
    ],
)
def test_an_error_names_the_id_where_that_is_short_and_else_the_type(message, name):
    assert re_of(message) == name
    assert type(re_of(message)) is type(name)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        *((value, True) for value in ("m", "x" * 64, 0, -(2**63) + 1)),
        *((value, False) for value in ("", "x" * 65, 2**63, True, 1.0, None, [])),
    ],
)
def test_a_message_is_named_by_short_text_or_a_whole_number(value, named):
    assert is_id(value) is named


def test_a_message_that_the_application_does_not_take_is_an_unknown_type():
    assert error_frame(unknown_type({"type": "onchat", "id": "m1"})) == (
        b'{"type":"error","code":"unknown-type","detail":"nobody here takes messages of type onchat","re":"m1"}'
    )


def test_an_unknown_type_is_quoted_in_part_if_it_is_long():
    kind, shown = "x" * 1000, b"x" * 64

    assert error_frame(unknown_type({"type": kind})) == (
        b'{"type":"error","code":"unknown-type","detail":"nobody here takes messages of type %b","re":"%b"}'
        % (shown, shown)
    )
