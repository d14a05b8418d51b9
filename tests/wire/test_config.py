"""The file of options: the same names as on the command line, judged as a whole, each mistake a sentence."""

import getopt
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import UsageError

from heartbeat.config import ELSEWHERE, places_of, read
from heartbeat.core.settings import Settings
from heartbeat.tap import Options, makeService

#: What says something about the program, and nothing about the server.
OF_TWISTED = {"help", "version"}


@pytest.fixture
def reactor(monkeypatch):
    """Have the process's reactor be one that opens nothing."""
    reactor = MemoryReactorClock()
    monkeypatch.setattr("twisted.internet.reactor", reactor)
    return reactor


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write a file, and take it as the options say."""
    monkeypatch.chdir(tmp_path)

    def config(text, *arguments):
        Path("heartbeat.toml").write_text(text, "utf-8")
        options = Options()
        options.parseOptions(["--config", "heartbeat.toml", *arguments])
        return options

    return config


def mistakes(config, text, *arguments):
    """The sentences that a file is refused with."""
    with pytest.raises(UsageError) as refusal:
        config(text, *arguments)
    said = str(refusal.value).split("\n")
    if len(said) > 1:
        assert said.pop(0) == f"{len(said)} mistakes"
    return said


def test_every_option_has_its_place_in_the_file_by_its_kind():
    """A new option needs nothing but itself; what decides about the file is on the command line alone."""
    options = Options()
    names = {name.rstrip("=") for name in options.longOpt}

    places = places_of(Options())

    assert set(places) == names - OF_TWISTED - set(ELSEWHERE)
    kinds = {name: place.kind for name, place in places.items()}
    assert (kinds["interval"], kinds["max-message"], kinds["beats"]) == (float, int, str)
    assert (kinds["no-fast-path"], kinds["listen"], kinds["messages"]) == (bool, list, list)
    # What takes nothing on the command line is a flag, and only that.
    flags = {name for name in options.longOpt if not name.endswith("=")} - OF_TWISTED - set(ELSEWHERE)
    assert {name for name, kind in kinds.items() if kind is bool} == flags


#: For each kind a value of the file, and the same on the command line.
SAMPLES = {
    float: ("2.5", ["2.5"]),
    int: ("3", ["3"]),
    bool: ("true", [None]),
    str: ('"text"', ["text"]),
    list: ('["chat", "group"]', ["chat", "group"]),
}


@pytest.mark.parametrize("name", sorted(places_of(Options())))
def test_what_the_file_says_is_what_the_command_line_would_say(name, monkeypatch, tmp_path):
    """For each option there is: the same value, of the same type, before it is judged."""
    places = places_of(Options())
    text, words = SAMPLES[places[name].kind]
    path = tmp_path / "heartbeat.toml"
    path.write_text(f"{name} = {text}\n")
    monkeypatch.setattr(Options, "_mistake", lambda self: None)
    if places[name].separated:
        words = [",".join(words)]

    from_file, typed = Options(), Options()
    from_file.parseOptions(["--config", str(path)])
    typed.parseOptions([f"--{name}" if word is None else f"--{name}={word}" for word in words])

    assert from_file[name] == typed[name]
    assert {**from_file, "config": None} == typed


def test_a_file_is_a_server(config, reactor):
    options = config(
        """
        interval = 2
        listen = ["tcp:9001:interface=127.0.0.1", "tcp:9002:interface=127.0.0.1"]
        origin = ["https://example.org", "null"]
        messages = ["chat", "group"]
        max-message = 4096
        no-fast-path = true
        level0 = "refuse"
        """
    )

    assert options.settings == Settings(
        interval=2.0,
        message_limit=4096,
        fast_path=False,
        level0="refuse",
        origins=("https://example.org", "null"),
    )
    service = makeService(options)
    service.privilegedStartService()
    assert [server[0] for server in reactor.tcpServers] == [9001, 9002]
    assert sorted(service.factory.heartbeat.handlers) == ["onchat", "ongroupchat"]


def test_the_command_line_wins_wherever_it_stands(tmp_path):
    """A list there takes the place of the file's, it is not added to it; what it does not say the file says."""
    path = tmp_path / "heartbeat.toml"
    path.write_text('interval = 2.0\nlisten = ["tcp:9001", "tcp:9002"]\norigin = ["null"]\nwindow = 60.0\n')

    for order in (
        ["--interval=3", "-l", "tcp:9003", "--config", str(path)],
        ["-c", str(path), "-l", "tcp:9003", "-i3"],
    ):
        options = Options()
        options.parseOptions(order)
        assert (options["interval"], options["listen"], options["origin"]) == (3.0, ["tcp:9003"], ["null"])
        assert options.settings == Settings(interval=3.0, window=60.0, origins=("null",), fast_path=True)


def test_a_false_flag_and_an_empty_file_change_nothing(config):
    assert config("").settings == config("no-fast-path = false\n").settings == Settings(interval=6.0, fast_path=True)


def test_a_single_text_stands_for_a_list_of_one(config):
    options = config('listen = "tcp:9001"\nmessages = "chat,group"\n')

    assert (options["listen"], options["messages"]) == (["tcp:9001"], "chat,group")


WRONG = {
    "hue = 1": "there is no option 'hue'; twistd heartbeat --help names them all",
    "intervall = 1": "there is no option 'intervall'; the nearest is interval",
    "drain_timeout = 1": "there is no option 'drain_timeout'; the nearest is drain-timeout",
    "Listen = 1": "there is no option 'Listen'; the nearest is listen",
    "[server]\ninterval = 1": "there is no option 'server'; twistd heartbeat --help names them all",
    "[window]\nseconds = 1": "window must be a number, not {'seconds': 1}",
    'config = "other.toml"': "config belongs on the command line (--config)",
    "check-config = true": "check-config belongs on the command line (--check-config)",
    'ai-key = "s"': "ai-key is a secret, which belongs into the environment (HEARTBEAT_AI_KEY) and into no file",
    'HEARTBEAT_AI_KEY = "s"': (
        "HEARTBEAT_AI_KEY is a secret, which belongs into the environment (HEARTBEAT_AI_KEY) and into no file"
    ),
    'interval = "often"': "interval must be a number, not 'often'",
    "interval = true": "interval must be a number, not true",
    "interval = 1979-05-27": "interval must be a number, not datetime.date(1979, 5, 27)",
    "interval = 0": "interval must be a number from 0.1 to 3600 s, not 0",
    "interval = nan": "interval must be a number from 0.1 to 3600 s, not nan",
    "max-message = 1.5": "max-message must be a whole number, not 1.5",
    "max-message = 5": "max-message must be a whole number from 1024 to 1099511627776 bytes, not 5",
    "no-fast-path = 1": "no-fast-path must be true or false, not 1",
    "beats = 1": "beats must be text, not 1",
    'beats = "me"': "beats must be one of client, server, both, none, not 'me'",
    "listen = 9000": "listen must be text, or an array of texts, not 9000",
    'listen = ["tcp:9000", 9001]': "listen must be text, or an array of texts, not ['tcp:9000', 9001]",
    'messages = ["chat", "mail"]': "messages must be some of chat, group, ai, not 'mail'",
    'store = "redis"': "store must be memory, sqlite:PATH or redis://HOST, not 'redis'",
    "grace = 1.0": "grace must be at least 31.5 s, 1.5 x the sum of delays over 3 attempts, not 1.0",
    'origin = ["example.org"]': (
        "origin must be scheme://host or scheme://host:port, null, or * for all, not 'example.org'"
    ),
    'auth-jwt = "nowhere"': (
        "auth-jwt must be a file of keys for tokens (No such file or directory), not 'nowhere'"
    ),
    "interval =": "it is no TOML (Invalid value (at end of document))",
    "interval = 1\ninterval = 2": "it is no TOML (Cannot overwrite a value (at end of document))",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_one_sentence_with_the_file_and_the_name(config, text):
    assert mistakes(config, text) == [f"heartbeat.toml: {WRONG[text]}"]


def test_all_mistakes_are_said_at_once(config):
    """Names, kinds and values, in the file and on the command line; of a list each that is wrong."""
    said = mistakes(
        config,
        """
        colour = "red"
        interval = "often"
        window = 0
        max-message = 5
        listen = ["tcp:9000", "9001", "udp:9002"]
        messages = ["chat", "mail", "fax"]
        auth-jwt = "nowhere"
        auth-audience = "shop"
        """,
        "--handshake-timeout=0",
        "--beats=me",
    )

    assert sorted(line.partition(" must ")[0].partition(";")[0] for line in said) == [
        "--beats",
        "--handshake-timeout",
        "heartbeat.toml: auth-jwt",
        "heartbeat.toml: interval",
        "heartbeat.toml: listen",
        "heartbeat.toml: listen",
        "heartbeat.toml: max-message",
        "heartbeat.toml: messages",
        "heartbeat.toml: messages",
        "heartbeat.toml: there is no option 'colour'",
        "heartbeat.toml: window",
    ]
    assert [
        word for word in ("'9001'", "'udp:9002'", "'mail'", "'fax'") if sum(word in line for line in said) == 1
    ] == [
        "'9001'",
        "'udp:9002'",
        "'mail'",
        "'fax'",
    ]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nowhere.toml", "nowhere.toml: it cannot be read (No such file or directory)"),
        (".", ".: it cannot be read (Is a directory)"),
        ("binary.toml", "binary.toml: it is no TOML ('utf-8' codec can't decode byte 0xff"),
        ("deep.toml", "deep.toml: it is no TOML ("),
        ("long.toml", "long.toml: it is no TOML (Exceeds the limit"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, path, sentence):
    monkeypatch.chdir(tmp_path)
    Path("binary.toml").write_bytes(b"\xff\xfe")
    Path("deep.toml").write_text("interval = " + "[" * 100_000)
    Path("long.toml").write_text("interval = " + "9" * 5000)

    with pytest.raises(UsageError) as refusal:
        Options().parseOptions(["--config", path])

    assert str(refusal.value).startswith(sentence)
    assert "\n" not in str(refusal.value)


@given(st.text(min_size=1), st.text())
def test_no_name_and_no_value_makes_a_second_line(tmp_path_factory, name, value):
    """Whatever stands in a file, what is said of it is a sentence a name."""
    import json

    path = tmp_path_factory.mktemp("config") / "c.toml"
    quoted = [json.dumps(text).replace("\x7f", "\\u007f") for text in (name, value)]
    path.write_text(f"{quoted[0]} = {quoted[1]}\n", "utf-8")

    _taken, said = read(str(path), places_of(Options()))

    assert len(said) == (name not in places_of(Options()) or places_of(Options())[name].kind not in (str, list))
    assert all(line.isprintable() for line in said)


# `--check-config`


def test_a_check_says_that_all_is_right_and_starts_nothing(config, reactor, capsys):
    with pytest.raises(SystemExit) as ended:
        config('interval = 2.0\nstore = "sqlite:here.db"\n', "--check-config")

    assert ended.value.code == 0
    assert capsys.readouterr().out == "heartbeat.toml: no mistakes\n"
    assert sorted(path.name for path in Path().iterdir()) == ["heartbeat.toml"]
    assert reactor.tcpServers == []


def test_a_check_says_all_that_is_wrong_with_status_1(config):
    """As `SystemExit` does: the text is written to standard error, and the status is 1."""
    with pytest.raises(SystemExit) as ended:
        config("interval = 0\nwindow = 0\n", "--check-config")

    assert str(ended.value.code).split("\n") == [
        "2 mistakes",
        "heartbeat.toml: interval must be a number from 0.1 to 3600 s, not 0",
        "heartbeat.toml: window must be a number from 1 to 86400 s, not 0",
    ]


def test_a_check_needs_no_file(capsys):
    with pytest.raises(SystemExit) as ended:
        Options().parseOptions(["--check-config", "--interval=2"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == "the command line: no mistakes\n"


def test_the_short_names_of_options_are_no_two_things():
    """A `-c` more, and getopt would take the one for the other."""
    options = Options()

    assert len(set(options.shortOpt.replace(":", ""))) == len(options.shortOpt.replace(":", ""))
    assert getopt.getopt(["-c", "x"], options.shortOpt) == ([("-c", "x")], [])
