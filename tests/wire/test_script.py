"""`heartbeat-client`, without a process: what it refuses, counts, prints, and how it ends, in virtual time."""

import io
import json
import os
from argparse import Namespace

import pytest
import trustme
from peers import Refusing
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock

from heartbeat import HeartbeatServerProtocol
from heartbeat.__main__ import _event_of, _message, _parser, _Script, _Tally, _text_of, main
from heartbeat._version import __version__
from heartbeat.core.link import LinkStatus
from heartbeat.core.monitor import State

URL = "ws://test/ws"

# Arguments.

WRONG = {
    "": "the following arguments are required: URL",
    f"{URL} --interval often": "argument --interval: invalid float value: 'often'",
    f"{URL} --interval 0": "--interval must be a number from 0.1 to 3600 s",
    f"{URL} --interval nan": "--interval must be a number from 0.1 to 3600 s",
    f"{URL} --count 0": "--count must be a whole number from 1",
    f"{URL} --count x": "argument --count: invalid int value: 'x'",
    f"{URL} --attempts -1": "--attempts must be a whole number from 0 to 1000000",
    f"{URL} --beats me": "argument --beats: invalid choice: 'me'",
    f"{URL} --header nonsense": "--header must be KEY:VALUE, not 'nonsense'",
    f"{URL} --header :value": "--header must be a name and a value without line ends",
    f"{URL} --cacert /nowhere.pem": "--cacert must be a readable file of PEM certificates (",
    f"{URL} --cacert {os.devnull}": "--cacert must be a file with at least one PEM certificate",
    f"{URL} --cacert x --insecure": "--cacert and --insecure contradict each other",
    f"{URL} --client-id {'x' * 65}": "--client-id must be 1 to 64 visible ASCII characters",
    f"{URL} --send onchat": "argument --send: expected 2 arguments",
    f"{URL} --send onchat {{": "--send onchat: not JSON: Expecting property name",
    f"{URL} --send onchat []": "--send onchat: the second argument must be a JSON object, without a type of its own",
    f'{URL} --send onchat {{"type":"x"}}': "--send onchat: the second argument must be a JSON object, without a type",
    f"{URL} --send ping {{}}": "--send ping: messages of type ping are the heartbeat's own",
    f'{URL} --send onchat {{"seq":1}}': "--send onchat: seq and ack in a message are the session's own",
    f"{URL} --session {os.devnull}/no": f"--session: the store {os.devnull}/no cannot be",
    f"{URL} --colour": "unrecognized arguments: --colour",
    "http://test/": "protocol scheme 'http' is not for WebSocket",
    "ws://": "missing hostname",
    "ws://test:x/": "Port could not be cast",
    "ws://[::1/": "Invalid IPv6 URL",
}


@pytest.mark.parametrize(("arguments", "sentence"), WRONG.items())
def test_wrong_usage_is_one_sentence_and_status_2(capsys, monkeypatch, arguments, sentence):
    monkeypatch.setattr("twisted.internet.reactor", MemoryReactorClock())

    with pytest.raises(SystemExit) as ended:
        main(arguments.split())

    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    *usage, error = said.err.strip().splitlines()
    assert usage[0].startswith("usage: heartbeat-client ")
    assert error.startswith("heartbeat-client: error: ")
    assert sentence in error


def test_an_empty_url_is_wrong_usage_too(capsys, monkeypatch):
    monkeypatch.setattr("twisted.internet.reactor", MemoryReactorClock())
    with pytest.raises(SystemExit):
        main([""])

    assert "a WebSocket's URL is needed" in capsys.readouterr().err


def test_the_version_and_the_help_are_told(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"heartbeat-client {__version__}\n")

    with pytest.raises(SystemExit):
        main(["--help"])
    assert "exit status: 0 every ping was answered" in capsys.readouterr().out


def test_right_arguments_reach_the_client(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(_Script, "run", lambda self: ran.append(self) or 7)
    monkeypatch.setattr("twisted.internet.reactor", MemoryReactorClock())
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    common = ["--interval", "0.5", "--attempts", "5", "--beats", "client", "--frames", "--header", "Cookie: a=b"]

    assert main(["wss://test/", "--cacert", str(tmp_path / "ca.pem"), *common]) == 7
    assert main(["wss://test/", "--insecure"]) == 7
    assert main([URL]) == 7
    session = tmp_path / "session.db"
    assert (
        main([URL, "--client-id", "alice", "--session", str(session), "--send", "a", '{"n":1}', "--send", "b", "{}"])
        == 7
    )

    assert ran[3]._client.settings.client_id == "alice"
    assert ran[3]._client._store.path == session
    assert ran[3]._messages == [{"type": "a", "n": 1}, {"type": "b"}]
    settings = ran[0]._client.settings
    assert (settings.interval, settings.attempts, settings.beats, settings.frames) == (0.5, 5, "client", True)
    assert ran[0]._client._factory.headers == {"Cookie": "a=b"}
    assert ran[2]._client.settings.interval is None


# The tally.


def test_without_a_sample_there_is_no_summary():
    tally = _Tally()
    assert tally.summary() is None
    tally.sample(None)
    assert tally.summary() is None
    assert tally.answered == 1


def test_the_summary_is_least_mean_greatest_and_mean_deviation():
    tally = _Tally()
    for sample in (2.0, 4.0, None, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0):
        tally.sample(sample)

    assert tally.summary() == {"min": 2.0, "avg": 5.0, "max": 9.0, "mdev": 2.0}
    assert tally.answered == 9


def test_equal_samples_deviate_by_nothing():
    tally = _Tally()
    for _ in range(1000):
        tally.sample(0.1)

    assert tally.summary() == {"min": 0.1, "avg": 0.1, "max": 0.1, "mdev": 0.0}


# What an event looks like.

STATUSES = {
    "open": (
        LinkStatus(event="open", state=State.WAITING, detail="open as x", level=1, client_id="x", clients=3),
        {"detail": "open as x", "level": 1, "client_id": "x", "clients": 3},
        f"HEARTBEAT {URL}: open as x",
    ),
    "suspect": (
        LinkStatus(event="suspect", state=State.SUSPECT, detail="fluctuation", silent_for=9, unanswered_for=3.25),
        {"detail": "fluctuation", "silent_ms": 9000, "unanswered_ms": 3250},
        "fluctuation",
    ),
    "waiting": (
        LinkStatus(event="waiting", state=State.WAITING, detail="bytes arrive again"),
        {"detail": "bytes arrive again", "silent_ms": 0, "unanswered_ms": 0},
        "waiting: bytes arrive again",
    ),
    "acknowledged": (
        LinkStatus(event="acknowledged", state=State.ACKNOWLEDGED, detail="answered again"),
        {"detail": "answered again"},
        "acknowledged: answered again",
    ),
    "dead": (
        LinkStatus(event="dead", state=State.DEAD, detail="silence", silent_for=12.5, reason="silent"),
        {"detail": "silence", "silent_ms": 12_500, "unanswered_ms": 0, "reason": "silent", "code": None},
        "dead: silence",
    ),
    "closed": (
        LinkStatus(event="closed", state=None, detail="by the server", code=1001),
        {"detail": "by the server", "silent_ms": 0, "unanswered_ms": 0, "reason": "", "code": 1001},
        "closed: by the server",
    ),
    "reconnecting": (
        LinkStatus(event="reconnecting", state=None, detail="lost", attempt=2, delay=4.25),
        {"detail": "lost", "attempt": 2, "delay_ms": 4250},
        "reconnecting in 4.2 s (attempt 2): lost",
    ),
    "reconnecting, as told": (
        LinkStatus(event="reconnecting", state=None, detail="restart", attempt=0, delay=1.0),
        {"detail": "restart", "attempt": 0, "delay_ms": 1000},
        "reconnecting in 1.0 s (as the server asked): restart",
    ),
    "unreachable": (
        LinkStatus(event="unreachable", state=None, detail="refused", attempt=3),
        {"detail": "refused"},
        "unreachable: refused",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("status", "event", "text"), STATUSES.values(), ids=STATUSES)
def test_every_event_has_a_line_of_json_and_one_of_text(status, event, text):
    assert _event_of(status) == {"event": status.event} | event
    assert json.loads(json.dumps(_event_of(status))) == _event_of(status)
    assert _text_of(status, URL) == text


# Whole runs, in virtual time.


class Terminal(io.StringIO):
    """Output that is read as it is written by somebody at a terminal."""

    def isatty(self):
        return True


class Loop:
    """The reactor of a script on a machine of the world: runs until it is stopped, for an hour at most."""

    running = False

    def __init__(self, world):
        self._world = world
        self._shutdown = lambda: None
        self.callLater = world.client.callLater

    def addSystemEventTrigger(self, phase, event, step):
        assert (phase, event) == ("before", "shutdown")
        self._shutdown = step

    def callWhenRunning(self, step):
        self._begin = step

    def run(self):
        self.running = True
        self._begin()
        while self.running and self._world.now < 3600:
            self._world.advance(0.05)
        if self.running:
            self.stop()
        self._world.advance(2)

    def stop(self):
        assert self.running
        self.running = False
        self._shutdown()


@pytest.fixture
def run(world, make_client):
    """Run the script; returns its status and what it printed, decoded where that is JSON."""

    def run(*arguments, out=None, **settings):
        parsed = _parser().parse_args([URL, *arguments])
        out = out or io.StringIO()
        settings |= {"client_id": parsed.client_id}
        client = make_client(interval=parsed.interval, attempts=parsed.attempts, beats=parsed.beats, **settings)
        messages = [_message(_parser(), kind, text) for kind, text in parsed.send]
        status = _Script(parsed, client, Loop(world), out, messages).run()
        said = out.getvalue()
        return status, [json.loads(line) for line in said.splitlines()] if parsed.json else said

    return run


def test_every_answered_ping_is_a_line_and_the_end_a_summary(serve, run):
    serve()

    status, said = run("--count", "3", "--interval", "1")

    assert status == 0
    head, one, two, three, *summary = said.splitlines()
    assert head.startswith(f"HEARTBEAT {URL}: open as c-")
    assert head.endswith("beats: client every 1 s")
    assert [one, two, three] == [f"pong {n}: time=20.00 ms clients=1" for n in (1, 2, 3)]
    assert summary == [
        "",
        f"--- {URL} ---",
        "3 sent, 3 answered, 0 lost, 0 reconnects",
        "rtt min/avg/max/mdev = 20.0/20.0/20.0/0.0 ms",
    ]


def test_with_json_every_line_is_an_object(serve, run):
    serve()

    status, said = run("--count", "2", "--interval", "1", "--json")

    assert status == 0
    assert [line["event"] for line in said] == ["open", "pong", "pong", "summary"]
    assert said[1] == {"event": "pong", "n": 1, "rtt_ms": 20.0, "clients": 1}
    assert said[-1] == {
        "event": "summary",
        "sent": 2,
        "answered": 2,
        "lost": 0,
        "rtt_ms": {"min": 20.0, "avg": 20.0, "max": 20.0, "mdev": 0.0},
        "reconnects": 0,
    }


def test_pings_of_the_servers_count_too(serve, run):
    serve(beats="server")

    status, said = run("--count", "3", "--interval", "1")

    assert status == 0
    assert "ping 1 of the server's, answered\nping 2 of the server's, answered\n" in said
    assert "1 sent, 1 answered, 0 lost, 0 reconnects; 2 pings of the server's answered" in said


def test_lost_pings_are_counted_and_the_status_is_1(serve, run, world):
    serve()
    world.client.callLater(3, world.cut)
    world.client.callLater(20, world.heal)

    status, said = run("--count", "5", "--interval", "1", "--json")

    assert status == 1
    summary = said[-1]
    assert summary["lost"] >= 1
    assert summary["sent"] == summary["answered"] + summary["lost"]
    assert summary["reconnects"] == [line["event"] for line in said].count("open") - 1
    assert {"suspect", "dead", "reconnecting"} <= {line["event"] for line in said}


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_ping_whose_answer_is_on_its_way_at_ctrl_c_is_not_lost(serve, make_client, world, is_cut):
    """Whether it comes while the connection closes, or would have come."""
    serve()
    loop, out, client = Loop(world), io.StringIO(), make_client(interval=1.0)

    def interrupted():
        if client.pings_sent == 4 and client.pings_in_flight:
            if is_cut:
                world.cut()
            loop.stop()
        else:
            world.client.callLater(0.001, interrupted)

    interrupted()
    status = _Script(_parser().parse_args([URL]), client, loop, out).run()

    assert "3 sent, 3 answered, 0 lost, 0 reconnects" in out.getvalue()
    assert status == 0


def test_an_unreachable_server_is_status_2(run, world):
    world.refuses = True

    status, said = run("--attempts", "2", "--json")

    assert status == 2
    assert [line["event"] for line in said] == ["reconnecting", "reconnecting", "unreachable", "summary"]
    assert said[-1] == {"event": "summary", "sent": 0, "answered": 0, "lost": 0, "rtt_ms": None, "reconnects": 0}


def test_a_final_refusal_is_status_2_at_once(run, world):
    world.listen(Factory.forProtocol(lambda: Refusing(b"HTTP/1.1 403 No\r\n\r\n")))

    status, said = run()

    assert status == 2
    assert said.splitlines()[0] == "unreachable: the server refused the handshake with HTTP 403"


def test_a_message_of_the_servers_is_a_line(serve, run):
    class Greets(HeartbeatServerProtocol):
        def onOpen(self):
            self.send({"type": "chat", "text": "h\xe9\x1b[2J"})

    serve(protocol=Greets)

    _, said = run("--count", "1")
    assert 'message: {"type": "chat", "text": "h\\u00e9\\u001b[2J"}\n' in said
    _, lines = run("--count", "1", "--json")
    assert {"event": "message", "message": {"type": "chat", "text": "h\xe9\x1b[2J"}} in lines


def test_what_a_server_says_cannot_steer_the_terminal(serve, run):
    class Sneaks(HeartbeatServerProtocol):
        def onOpen(self):
            self.sendCloseFrame(1008, b"\x1b[2J\x07\r\nclosed: by an angel")

    serve(protocol=Sneaks)

    _, said = run()

    assert all(char.isprintable() or char == "\n" for char in said)
    assert "closed: closed by the server (1008: " in said
    assert "\nclosed: by an angel" not in said


def test_a_time_that_cannot_be_told_is_said(serve, run, world):
    serve()
    # We stand still while the first answer is under way.
    world.client.callLater(0.05, world.stall, 3, world.client)

    _, said = run("--count", "1")

    assert "pong 1: time unknown, we were late clients=1\n" in said


COLOURS = {
    "a terminal": (Terminal, {}, [], True),
    "a terminal, without colour": (Terminal, {"NO_COLOR": "1"}, [], False),
    "a terminal, JSON": (Terminal, {}, ["--json"], False),
    "a file": (io.StringIO, {}, [], False),
}


@pytest.mark.parametrize(("out", "environment", "arguments", "coloured"), COLOURS.values(), ids=COLOURS)
def test_colours_are_for_terminals_alone(serve, run, monkeypatch, out, environment, arguments, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    serve()
    terminal = out()
    run("--count", "1", *arguments, out=terminal)

    assert ("\033[32mHEARTBEAT " in terminal.getvalue()) is coloured
    assert ("\033[" in terminal.getvalue()) is coloured


def test_a_reader_that_has_gone_ends_the_script(serve, run, tmp_path):
    """As `heartbeat-client … | head -1` does."""

    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return file.fileno()

    serve()
    with (tmp_path / "out").open("w") as file:
        status, said = run(out=Gone())

    assert (status, said) == (0, "")


def test_what_is_told_after_the_end_is_not_printed(serve, make_client, world):
    client, out = make_client(), io.StringIO()
    _Script(_parser().parse_args([URL]), client, Loop(world), out)
    client.linkChanged(LinkStatus(event="closed", state=None, detail="late"))
    client.pongReceived(0.1, 1)
    client.pingReceived()

    assert out.getvalue() == ""


def test_stopping_twice_stops_once(make_client, world):
    loop = Loop(world)
    client = make_client()
    script = _Script(Namespace(json=False, count=None, url=URL), client, loop, io.StringIO())
    loop.running = True
    client.startService()
    script._stop()
    script._stop()
    assert len([call for call in world.client.calls if call.func == script._stop_reactor]) == 1

    world.advance(0.1)
    assert not loop.running


def test_a_stop_that_comes_after_ctrl_c_stops_nothing_more(make_client, world):
    loop = Loop(world)
    client = make_client()
    script = _Script(Namespace(json=False, count=None, url=URL), client, loop, io.StringIO())
    script._stop()
    loop.running = "as it was"
    world.advance(0.1)

    assert loop.running == "as it was"


# Messages of one's own.


def test_messages_are_sent_in_order_and_the_run_ends_when_they_are_handled(serve, run):
    taken = []

    def take(protocol, message):
        taken.append((protocol._heartbeat.link.client_id, message["n"]))
        protocol.handling.reply({"type": "note", "n": -message["n"]})

    serve().register("note", take)

    status, said = run("--client-id", "alice", "--send", "note", '{"n": 1}', "--send", "note", '{"n": 2}', "--json")

    assert (status, taken) == (0, [("alice", 1), ("alice", 2)])
    told = [line for line in said if line["event"] in ("handled", "message")]
    assert told == [
        {"event": "handled", "n": 1, "type": "note"},
        {"event": "message", "message": {"type": "note", "n": -1}},
        {"event": "handled", "n": 2, "type": "note"},
        {"event": "message", "message": {"type": "note", "n": -2}},
    ]
    assert said[-1]["event"] == "summary"


def test_with_a_count_too_the_run_ends_when_both_are_reached(serve, run):
    serve().register("note", lambda protocol, message: None)

    status, said = run("--send", "note", "{}", "--count", "3", "--interval", "1")

    assert status == 0
    assert "message 1 (note): handled by the server\n" in said
    assert "\n3 sent, 3 answered, 0 lost" in said


def test_a_message_that_is_never_confirmed_is_a_line_and_status_1(serve, run, world):
    def leave(protocol, message):
        next(iter(protocol.factory.heartbeat.sessions.channels.values())).end("gap")
        protocol.transport.abortConnection()

    serve().register("note", leave)

    status, said = run("--send", "note", "{}", "--json")

    assert status == 1
    assert {"event": "unconfirmed", "n": 1, "type": "note", "reason": "gap"} in said


def test_a_message_to_a_server_that_is_unreachable_is_not_sent_and_the_status_is_2(run, world):
    world.refuses = True

    status, said = run("--attempts", "1", "--send", "note", "{}")

    assert status == 2
    assert "message 1 (note): never confirmed (unreachable)" in said


def test_what_has_been_received_is_acknowledged_before_the_end(serve, run, log):
    """Else the server would have to take it for lost."""
    lost = []
    factory = serve()
    factory.sessionLost = lambda client_id, error: lost.append(error.messages)
    factory.register("note", lambda protocol, message: protocol.handling.reply({"type": "note"}))

    assert run("--send", "note", "{}")[0] == 0

    assert lost == []
