"""`twistd heartbeat`: every option reaches its setting, every wrong one is one sentence that names it."""

import resource

import pytest
from twisted.application.service import IServiceMaker
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock
from twisted.plugin import getPlugins
from twisted.python.usage import UsageError

from heartbeat.core.settings import Settings
from heartbeat.service import DEFAULT_LISTEN
from heartbeat.store import MemoryStore
from heartbeat.tap import Options, makeService


def parsed(*arguments):
    """The options of these arguments."""
    options = Options()
    options.parseOptions(list(arguments))
    return options


@pytest.fixture
def reactor(monkeypatch):
    """Have the process's reactor be one that opens nothing."""
    reactor = MemoryReactorClock()
    monkeypatch.setattr("twisted.internet.reactor", reactor)
    return reactor


def test_without_options_the_defaults_hold():
    options = parsed()

    assert options.settings == Settings(interval=6.0, fast_path=True)
    assert options["listen"] == []


GIVEN = {
    "--interval=2.5": {"interval": 2.5},
    "-i 2": {"interval": 2.0},
    "--beats=server": {"beats": "server"},
    "-b none": {"beats": "none"},
    "--max-connections=10": {"max_connections": 10},
    "--max-message=4096": {"message_limit": 4096},
    "--handshake-timeout=1.5": {"handshake_timeout": 1.5},
    "--grace=60": {"grace": 60.0},
    "--window=600": {"window": 600.0},
    "--level0=refuse": {"level0": "refuse"},
    "--trust-forwarded=2": {"trust_forwarded": 2},
    "--trust-client-ids": {"trust_client_ids": True},
    "--no-fast-path": {"fast_path": False},
    "--origin=https://example.org -o null": {"origins": ("https://example.org", "null")},
}


@pytest.mark.parametrize(("arguments", "settings"), GIVEN.items())
def test_every_option_reaches_its_setting(arguments, settings):
    assert parsed(*arguments.split()).settings == Settings(**({"interval": 6.0, "fast_path": True} | settings))


def test_sessions_are_kept_in_memory_unless_a_file_is_named(tmp_path, reactor, monkeypatch):
    """The file is that of the folder in which the server was started, wherever it goes after."""
    assert isinstance(makeService(parsed()).factory.heartbeat.sessions.store, MemoryStore)
    assert isinstance(makeService(parsed("--store", "memory")).factory.heartbeat.sessions.store, MemoryStore)

    monkeypatch.chdir(tmp_path)
    service = makeService(parsed("--store", "sqlite:sessions.db"))
    monkeypatch.chdir("/")

    assert service.factory.heartbeat.sessions.store.path == tmp_path / "sessions.db"
    assert list(tmp_path.iterdir()) == []


def test_no_application_message_is_served_unless_it_is_named(reactor):
    def served(*arguments):
        return sorted(makeService(parsed(*arguments)).factory.heartbeat.handlers)

    assert served() == []
    assert served("--messages", "chat") == ["onchat"]
    assert served("-m", "group,ai") == ["onaichat", "ongroupchat"]


def test_a_store_that_cannot_be_used_ends_the_start_in_a_sentence(tmp_path, reactor):
    path = tmp_path / "no.db"
    path.write_text("this is no database, and long enough to be none: " * 100)

    with pytest.raises(SystemExit) as ended:
        makeService(parsed("--store", f"sqlite:{path}")).startService()

    assert str(ended.value).startswith(f"heartbeat: the store {path} ")
    assert "\n" not in str(ended.value)


def test_endpoints_may_be_several():
    assert parsed("--listen", "tcp:9001", "-l", "tcp6:9002")["listen"] == ["tcp:9001", "tcp6:9002"]


WRONG = {
    "--interval=0": "--interval must be a number from 0.1 to 3600 s, not 0.0",
    "--interval=-1": "--interval must be a number from 0.1 to 3600 s, not -1.0",
    "--interval=nan": "--interval must be a number from 0.1 to 3600 s, not nan",
    "--interval=often": "--interval must be a number, not 'often'",
    "--interval=": "--interval must be a number, not ''",
    "--beats=me": "--beats must be one of client, server, both, none, not 'me'",
    "--max-connections=0": "--max-connections must be a whole number from 1 to 10000000, not 0",
    "--max-connections=1.5": "--max-connections must be a whole number, not '1.5'",
    "--max-message=5": "--max-message must be a whole number from 1024 to ",
    "--max-message=big": "--max-message must be a whole number, not 'big'",
    "--handshake-timeout=0": "--handshake-timeout must be a number from 0.1 to 600 s, not 0.0",
    "--grace=1": "--grace must be at least 31.5 s, 1.5 x the sum of delays over 3 attempts, not 1.0",
    "--grace=-1": "--grace must be a number from 0 to ",
    "--trust-forwarded=17": "--trust-forwarded must be a whole number from 0 to 16, not 17",
    "--trust-forwarded=all": "--trust-forwarded must be a whole number, not 'all'",
    "--listen=9000": "--listen must be an endpoint description such as tcp:9000:interface=127.0.0.1 (",
    "--listen=tcp:http:x": "--listen must be an endpoint description such as tcp:9000:interface=127.0.0.1 (",
    "--listen=ssl:9443:privateKey=/nowhere.pem": "--listen must be an endpoint description such as ",
    "--window=0": "--window must be a number from 1 to ",
    "--level0=maybe": "--level0 must be one of allow, refuse, not 'maybe'",
    "--store=redis": "--store must be memory, sqlite:PATH or redis://HOST, not 'redis'",
    "--store=sqlite:": "--store must be memory, sqlite:PATH or redis://HOST, not 'sqlite:'",
    "--messages=chat,mail": "--messages must be some of chat, group, ai, not 'mail'",
    "tcp:9000": "unexpected argument 'tcp:9000'; endpoints are given by --listen",
    "--colour=red": "option --colour not recognized",
    "--trust-client-ids=yes": "option --trust-client-ids must not have an argument",
    "--interval": "option --interval requires argument",
}


@pytest.mark.parametrize(("argument", "sentence"), WRONG.items())
def test_a_wrong_option_is_one_sentence_that_names_it(argument, sentence):
    with pytest.raises(UsageError) as refusal:
        parsed(argument)

    said = str(refusal.value)
    assert sentence in said
    assert "\n" not in said
    assert "Traceback" not in said


def test_more_connections_than_there_may_be_files_is_one_too(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 1024))

    with pytest.raises(UsageError, match=r"^--max-connections must be at most 896 under the open-file limit of 1024"):
        parsed("--max-connections=1000")


def test_the_help_tells_how_to_try_it(capsys):
    with pytest.raises(SystemExit) as ended:
        parsed("--help")

    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "heartbeat-client ws://127.0.0.1:9000/ws" in " ".join(said.split())
    for option in GIVEN:
        assert option.split("=")[0].split()[0] in said


# The service.


def test_the_service_listens_where_it_is_told_under_a_clock_that_nobody_sets(reactor):
    service = makeService(parsed("--listen=tcp:9001:interface=10.0.0.1", "--interval=2"))
    assert reactor.tcpServers == []
    assert service.settings.interval == 2.0
    assert service.factory.reactor is reactor
    assert reactor.seconds.__name__ == "monotonic"

    service.privilegedStartService()
    assert [(server[0], server[3]) for server in reactor.tcpServers] == [(9001, "10.0.0.1")]
    service.startService()
    service.stopService()


def test_without_an_endpoint_it_is_the_default(reactor):
    service = makeService(parsed())
    service.privilegedStartService()

    assert [f"tcp:{server[0]}:interface={server[3]}" for server in reactor.tcpServers] == [DEFAULT_LISTEN]


def test_a_port_that_is_taken_is_said_in_a_sentence(reactor, monkeypatch):
    def taken(*arguments, **keywords):
        raise CannotListenError("127.0.0.1", 9000, "Address already in use")

    monkeypatch.setattr(reactor, "listenTCP", taken)
    service = makeService(parsed())

    with pytest.raises(SystemExit) as ended:
        service.privilegedStartService()
    assert str(ended.value) == "heartbeat: Couldn't listen on 127.0.0.1:9000: Address already in use."


def test_twistd_finds_it():
    (maker,) = [maker for maker in getPlugins(IServiceMaker) if maker.tapname == "heartbeat"]

    assert maker.module == "heartbeat.tap"
    assert maker.options is Options
    assert maker.makeService is makeService
