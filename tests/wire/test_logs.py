"""The log as JSON: an object a line, whatever an event holds, in the place where the text would have been."""

import io
import json
import signal
import sys
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import Application
from twisted.application.twist._options import TwistOptions
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LegacyLogObserverWrapper, Logger, LogLevel, LogPublisher
from twisted.python import log as legacy
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile
from twisted.python.usage import UsageError
from twisted.scripts.twistd import ServerOptions

from heartbeat.core.errors import SettingError
from heartbeat.logs import MEMBERS, begin, json_line, json_observer, judge
from heartbeat.refusals import Refusals
from heartbeat.tap import makeService


def lines_of(tell, *observers):
    """What the file of a JSON observer holds after `tell(logger)`, line by line; `observers` see the events first."""
    file = io.StringIO()
    publisher = LogPublisher(*observers, json_observer(file))
    tell(Logger(namespace="shop", observer=publisher))
    written = file.getvalue()
    assert written.isascii()
    assert written.endswith("\n") or not written
    return [json.loads(line) for line in written.splitlines()]


def test_an_event_is_one_object_with_its_time_level_namespace_message_and_fields():
    fields = {"peer": "192.0.2.1", "why": "too fast", "reason": "message_rate"}

    (line,) = lines_of(lambda log: log.emit(LogLevel.warn, "{peer}: {why}", **fields))

    assert list(line)[:4] == ["time", "level", "namespace", "message"]
    assert (line["level"], line["namespace"], line["message"]) == ("warn", "shop", "192.0.2.1: too fast")
    assert fields.items() <= line.items()
    assert not [name for name in line if name.startswith("log_")]


@pytest.mark.parametrize(
    ("seconds", "time"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_764_385_199.9996, "2025-11-29T02:59:59.999Z"),
        (1_764_385_200.25, "2025-11-29T03:00:00.250Z"),
        (None, None),
        ("soon", None),
        (1e300, None),
        (float("nan"), None),
    ],
)
def test_a_time_is_after_rfc_3339_in_utc_to_the_millisecond(seconds, time):
    """And an event that has none, or one that is none, is written all the same."""
    line = json.loads(json_line({"log_format": "x", "log_time": seconds}))

    assert line["time"] == time


def test_a_failure_is_a_field_with_the_traceback():
    def tell(log):
        try:
            raise ValueError("no\nsuch thing")
        except ValueError:
            log.failure("it failed for {client_id}", client_id="alice")

    (line,) = lines_of(tell)

    assert (line["level"], line["message"], line["client_id"]) == ("critical", "it failed for alice", "alice")
    assert line["failure"].startswith("Traceback (most recent call last):")
    assert "ValueError: no\nsuch thing" in line["failure"]


def test_a_failure_that_cannot_even_say_so_is_written():
    class Mute(Failure):
        def getTraceback(self, *_how, **_ever):
            raise RuntimeError

    (line,) = lines_of(lambda log: log.failure("it failed", Mute(ValueError())))

    assert line["failure"] == "(no traceback: RuntimeError)"


class Colour(StrEnum):
    RED = "red"


ABSENT = "it is not there"

FIELDS = {
    "text": ("hello", "hello"),
    "a number": (1.5, 1.5),
    "a constant": (LogLevel.info, ABSENT),
    "an int": (4008, 4008),
    "truth": (True, True),
    "nothing": (None, None),
    "a word of an enum": (Colour.RED, "red"),
    "a path": (Path("/srv/keys"), "/srv/keys"),
    "a list": ([1, ("a", object()), {"b": 2, 3: 4}], [1, ["a"], {"b": 2}]),
    "no number": (float("nan"), "nan"),
    "no number either": (float("-inf"), "-inf"),
    "a number that others read as another": (2**64, ABSENT),
    "bytes": (b"abc", ABSENT),
    "an object": (object(), ABSENT),
    "half a pair": ("a\ud800b", "a\ufffdb"),
    "a pair in halves": ("\ud83d\ude00", "\U0001f600"),
    "a line end": ("a\nb\u2028c", "a\nb\u2028c"),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_a_field_is_there_as_json_can_say_it_or_not_at_all(kind):
    value, shown = FIELDS[kind]

    (line,) = lines_of(lambda log: log.info("x", field=value))

    assert line.get("field", ABSENT) == shown


def test_what_holds_itself_ends_somewhere():
    endless = []
    endless.append(endless)

    (line,) = lines_of(lambda log: log.info("x", field=endless))

    assert line["field"] == [[[[]]]]


def test_an_events_own_field_never_takes_the_place_of_ours():
    line = json.loads(json_line({"log_format": "x", "log_level": LogLevel.info} | dict.fromkeys(MEMBERS, "theirs")))

    assert line["message"] == "x"
    assert [line[name + "_"] for name in MEMBERS] == ["theirs"] * len(MEMBERS)
    assert line["level"] == "info"
    assert "failure" not in line


def test_the_old_log_of_twisted_is_written_as_the_new():
    """Without the plumbing that it adds to its events; nor is that left in a new event that an old observer saw."""
    publisher = LogPublisher()
    old = legacy.LogPublisher(publishPublisher=publisher, observerPublisher=publisher)
    file = io.StringIO()
    publisher.addObserver(json_observer(file))
    old.msg("hello", 7, shop="ours")
    (line,) = map(json.loads, file.getvalue().splitlines())

    assert (line["message"], line["shop"], line["level"]) == ("hello 7", "ours", "info")
    assert set(line) == {"time", "level", "namespace", "message", "shop"}

    seen = []
    (line,) = lines_of(lambda log: log.info("{who} came", who="bob"), LegacyLogObserverWrapper(seen.append))
    assert len(seen) == 1
    assert set(line) == {"time", "level", "namespace", "message", "who"}


def test_an_event_that_says_nothing_is_no_line():
    assert json_line({"log_level": LogLevel.info, "log_format": ""}) is None
    assert json_line({}) is None


def test_an_event_that_cannot_be_formatted_is_a_line_that_says_so():
    (line,) = lines_of(lambda log: log.info("{missing}"))

    assert "Unable to format event" in line["message"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters()), anything), st.text(st.characters()))
def test_whatever_an_event_holds_it_is_one_line_of_ascii_that_any_reader_takes(fields, text):
    """No field and no message makes a second line, or one that is no JSON."""
    event = fields | {"log_format": "{log_text}", "log_text": text, "log_level": LogLevel.info, "log_time": 1.0}

    line = json_line(event)

    if text:
        assert line.isascii()
        assert line.count("\n") == 1
        json.dumps(json.loads(line), allow_nan=False).encode()
        assert json.loads(line)["level"] == "info"


def test_a_peer_cannot_write_a_line_of_his_own():
    """As a refusal of ours is told, with a name that would be a line of JSON by itself."""
    forged = '"}\n{"time": "2026-01-01T00:00:00.000Z", "level": "critical", "message": "all is lost"}'

    (line,) = lines_of(lambda log: log.info("{peer}: {why}", peer=forged, why="no room"))

    assert (line["level"], line["peer"]) == ("info", forged)
    assert Refusals().counts == {}


# Where it is written.


def options_of(*arguments):
    """The options of twistd, with ours below them."""
    options = ServerOptions()
    options.parseOptions([*arguments])
    return options


@pytest.fixture
def reactor(monkeypatch):
    """Have the process's reactor be one that opens nothing."""
    reactor = MemoryReactorClock()
    reactor.callFromThread = lambda function, *arguments: reactor.callLater(0, function, *arguments)
    monkeypatch.setattr("twisted.internet.reactor", reactor)
    return reactor


@pytest.fixture(autouse=True)
def files(monkeypatch):
    """Close the files of the log in the end, which twistd leaves to the end of the process."""
    opened, open_file = [], LogFile.fromFullPath
    monkeypatch.setattr(LogFile, "fromFullPath", lambda path: opened.append(open_file(path)) or opened[-1])
    yield
    for file in opened:
        file.close()


@pytest.fixture
def usr1():
    """Nobody waits for SIGUSR1, and afterwards whoever did before."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    yield signal.SIGUSR1
    signal.signal(signal.SIGUSR1, before or signal.SIG_DFL)


def observer_of(options):
    """What the application of these options logs by, as twistd asks for it."""
    application = Application("heartbeat")
    makeService(options.subOptions).setServiceParent(application)
    return application.getComponent(ILogObserver, None)


def test_the_log_is_text_unless_json_is_asked_for(reactor):
    assert observer_of(options_of("-n", "heartbeat")) is None
    assert observer_of(options_of("-n", "heartbeat", "--log-format=text")) is None


def test_in_the_foreground_it_is_standard_output(reactor, monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    for logfile in ([], ["--logfile=-"]):
        observer_of(options_of("-n", *logfile, "heartbeat", "--log-format=json"))({"log_format": "here"})

    assert [json.loads(line)["message"] for line in file.getvalue().splitlines()] == ["here", "here"]


@pytest.mark.parametrize(
    ("options", "name"),
    [(["-n", "--logfile=a.log"], "a.log"), (["--logfile=a.log"], "a.log"), ([], "twistd.log")],
)
def test_a_file_is_that_of_the_folder_where_it_was_started_and_is_rotated_as_twistds_is(
    tmp_path, reactor, monkeypatch, usr1, options, name
):
    monkeypatch.chdir(tmp_path)
    observer = observer_of(options_of(*options, "heartbeat", "--log-format=json"))
    monkeypatch.chdir("/")
    observer({"log_format": "before"})

    signal.raise_signal(usr1)
    reactor.advance(0)
    observer({"log_format": "after"})

    texts = {path.name: json.loads(path.read_text())["message"] for path in tmp_path.iterdir()}
    assert texts == {name: "after", f"{name}.1": "before"}


def test_a_signal_that_somebody_else_waits_for_is_left_to_him(tmp_path, reactor, monkeypatch, usr1):
    def his(_signal, _frame):
        pass

    monkeypatch.chdir(tmp_path)
    signal.signal(usr1, his)

    observer_of(options_of("-n", "--logfile=a.log", "heartbeat", "--log-format=json"))

    assert signal.getsignal(usr1) is his


def test_under_twist_it_takes_the_place_of_twists_own():
    launcher = TwistOptions()
    launcher.selectDefaultLogObserver()

    begin(launcher, Application("heartbeat"))

    assert launcher["fileLogObserverFactory"] is json_observer


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--log-format=xml"], "--log-format must be one of text, json, not 'xml'"),
        (["--syslog"], "--log-format must be text where twistd has --syslog, which decides by itself, not 'json'"),
        (
            ["--logger=heartbeat.logs.json_observer"],
            "--log-format must be text where twistd has --logger, which decides by itself, not 'json'",
        ),
        (
            ["--logfile=-"],
            "--log-format must be text where twistd has --logfile - and no -n: a daemon has no output, not 'json'",
        ),
    ],
)
def test_where_it_cannot_be_is_one_sentence(options, sentence):
    of_twistd = [word for word in options if not word.startswith("--log-format")]
    ours = [word for word in options if word.startswith("--log-format")] or ["--log-format=json"]

    with pytest.raises(UsageError) as refusal:
        options_of(*of_twistd, "heartbeat", *ours)

    assert str(refusal.value) == sentence


def test_text_may_go_wherever_twistd_says():
    for launcher in ({}, {"syslog": True}, {"logfile": "-", "nodaemon": False}):
        judge("text", launcher)
    with pytest.raises(SettingError):
        judge("json", {"syslog": True})
