"""What a model's server says, read from bytes that come in pieces of any size."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat.sse import MOST, Events, ModelError, Refusal, Stream, Whole, reader_of, well_formed


def event(delta=None, *, reason=None, **more):
    choice = {"index": 0, "delta": {} if delta is None else {"content": delta}, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def events(*pieces):
    reader = Events()
    return [data for piece in pieces for data in reader.feed(piece)]


def said(reader, *pieces, cleanly=True):
    """All the text, and the sentence of the error that ended it, if one did."""
    texts = []
    try:
        for piece in pieces:
            for text in reader.feed(piece):
                texts.append(text)  # noqa: PERF402  # what came before the error is to stay
        texts += reader.end(cleanly=cleanly)
    except ModelError as error:
        return "".join(texts), f"{error}: {error.words}" if error.words else str(error)
    return "".join(texts), None


STREAMS = {
    "line feeds": (b"data: a\n\ndata: b\n\n", ["a", "b"]),
    "carriage returns": (b"data: a\r\rdata: b\r\r", ["a", "b"]),
    "both": (b"data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"]),
    "all kinds": (b"data: a\r\n\ndata: b\r\r\ndata: c\n\r", ["a", "b", "c"]),
    "several lines of data": (b"data: a\ndata: b\ndata\ndata:c\n\n", ["a\nb\n\nc"]),
    "one space is no part of it": (b"data:  a \n\n", [" a "]),
    "comments": (b": ping\n\n:\n\ndata: a\n: pong\n\n", ["a"]),
    "other fields": (b"event: x\nid: 1\nretry: 10\ndata: a\nnonsense\n\n", ["a"]),
    "an event without data": (b"event: x\n\ndata: a\n\n", ["a"]),
    "a byte order mark": (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
    "not at its end": (b"data: a\n\ndata: b\n", ["a"]),
    "UTF-8": ("data: Grüße, 🌍\n\n".encode(), ["Grüße, 🌍"]),
    "no UTF-8": (b"data: \xff\xfe\n\n", ["\ufffd\ufffd"]),
    "form feeds are no line ends": (b"data: a\x0cb\x0bc\x85\n\n", ["a\x0cb\x0bc\ufffd"]),
}


@pytest.mark.parametrize(("stream", "expected"), STREAMS.values(), ids=STREAMS)
def test_events_are_read_as_the_standard_says_wherever_they_are_split(stream, expected):
    assert events(stream) == expected
    assert events(*(stream[at : at + 1] for at in range(len(stream)))) == expected
    for at in range(len(stream)):
        assert events(stream[:at], b"", stream[at:]) == expected


@given(st.data())
def test_any_stream_says_the_same_in_any_pieces(data):
    stream = data.draw(st.lists(st.sampled_from([b"data:", b"data: x", b":", b"\r", b"\n", b"\r\n", b"\xc3", b"e"])))
    stream = b"".join(stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert events(*pieces) == events(stream)


@pytest.mark.parametrize("endless", [b"x" * 4096, b"data: " + b"x" * 4096 + b"\n"])
def test_an_event_without_an_end_is_held_up_to_a_bound_only(endless):
    with pytest.raises(ModelError, match="an event of over 1048576 bytes"):
        events(*[endless] * (MOST // 4096 + 1))


ENDINGS = {
    "done": (DONE, None),
    "done, without the empty line": (b"data: [DONE]", None),
    "a reason to end": (event(reason="stop"), None),
    "cut short, and says so": (event(reason="length"), None),
    "the usage after the reason": (event(reason="stop") + b'data: {"choices":[],"usage":{}}\n\n' + DONE, None),
    "something after the end": (DONE + b"data: nonsense\n\n", None),
    "nothing": (b"", "the model's answer ended before it was complete"),
    "in the middle of an event": (b'data: {"choi', "the model's answer ended before it was complete"),
    "garbage": (b"data: nonsense\n\n", "the model's server sent what is not an object in JSON"),
    "a list": (b"data: []\n\n", "the model's server sent what is not an object in JSON"),
    "choices of another kind": (b'data: {"choices":{"a":1}}\n\n', "the model's server sent choices that are none"),
    "a choice of another kind": (b'data: {"choices":[7]}\n\n', "the model's server sent choices that are none"),
    "an error": (
        b'data: {"error":{"message":"out of memory","code":500}}\n\n',
        "the model's server reports an error: out of memory",
    ),
    "an error in a word": (b'data: {"error":"broken"}\n\n', "the model's server reports an error: broken"),
    "an error of a kind": (b'data: {"error":{"code":7}}\n\n', "the model's server reports an error"),
    "no error": (b'data: {"error":null,"choices":[]}\n\n' + DONE, None),
}


@pytest.mark.parametrize(("ending", "error"), ENDINGS.values(), ids=ENDINGS)
def test_a_stream_ends_well_or_in_one_sentence_and_what_came_before_is_there(ending, error):
    assert said(Stream(), event("Hello, ") + event("world") + ending) == ("Hello, world", error)


def test_a_stream_that_breaks_off_is_complete_only_if_it_had_said_so():
    assert said(Stream(), event("a"), cleanly=False) == ("a", "the model's answer broke off in the middle")
    assert said(Stream(), event("a", reason="stop"), cleanly=False) == ("a", None)


def test_deltas_without_text_are_none():
    rest = [b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n\n', b'data: {"type":"ping"}\n\n']

    assert said(Stream(), *rest, event(""), event("a"), DONE) == ("a", None)


def test_halves_of_a_surrogate_pair_are_joined_and_lone_ones_replaced():
    pieces = [
        b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % half for half in (b"\\ud83c", b"\\udf0d!\\ud800x")
    ]

    assert said(Stream(), *pieces, DONE) == ("🌍!\ufffdx", None)
    assert well_formed("\ud83c\udf0d") == "🌍"


def test_an_answer_in_one_piece_is_read_at_its_end():
    body = json.dumps({"choices": [{"message": {"role": "assistant", "content": "Grüße"}}]}).encode()

    assert said(Whole(), body[:20], body[20:]) == ("Grüße", None)
    assert said(Whole(), body, cleanly=False) == ("", "the model's answer broke off in the middle")
    assert said(Whole(), body[:20]) == ("", "the model's server sent what is not an object in JSON")
    assert said(Whole(), b"{}") == ("", "the model's server sent JSON without an answer in it")
    assert said(Whole(), b'{"error":{"message":"no"}}') == ("", "the model's server reports an error: no")
    assert said(Whole(), *[b" " * 65_536] * 17)[1].endswith("an answer of over 1048576 bytes in one piece")


REFUSALS = {
    "OpenAI's": (429, b'{"error":{"message":"slow down"}}', "429 Too Many Requests: slow down"),
    "a detail": (404, b'{"detail":"Not Found"}', "404 Not Found: Not Found"),
    "text": (500, b" out of order \n", "500 Internal Server Error: out of order"),
    "a page": (502, b"<html><h1>502</h1>", "502 Bad Gateway"),
    "nothing": (401, b"", "401 Unauthorized"),
    "a status of its own": (599, b"", "599"),
    "a redirect": (307, b"", "307 Temporary Redirect (redirects are not followed)"),
}


@pytest.mark.parametrize(("status", "body", "expected"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_says_the_status_and_the_servers_words(status, body, expected):
    for cleanly in (True, False):
        assert said(Refusal(status), body, cleanly=cleanly) == ("", f"the model's server answered {expected}")


def test_of_a_long_refusal_the_beginning_is_read():
    _, sentence = said(Refusal(500), *[b"x" * 4096] * 3)

    assert sentence == "the model's server answered 500 Internal Server Error: " + "x" * 4096


def test_who_reads_an_answer_is_told_by_its_status_and_type():
    assert isinstance(reader_of(200, "text/event-stream; charset=utf-8"), Stream)
    assert isinstance(reader_of(200, ""), Stream)
    assert isinstance(reader_of(200, "Application/JSON"), Whole)
    assert isinstance(reader_of(418, "text/html"), Refusal)
    with pytest.raises(ModelError, match="neither events nor JSON") as raised:
        reader_of(200, "text/html; charset=utf-8")
    assert raised.value.words == "Content-Type text/html"
