"""The server and the client script as a person runs them: real processes on loopback."""

import signal
import subprocess
import urllib.request

import pytest
import trustme
from ports import free_port
from processes import BIN, LOOPBACK, REACTOR, REACTORS, Program, client, twistd


@pytest.fixture
def server(tmp_path, request):
    """On the reactor of this run, unless a test names another one."""
    with twistd(cwd=tmp_path, reactor=getattr(request, "param", REACTOR)) as program:
        program.ws = program.url()
        yield program


@pytest.mark.parametrize("server", REACTORS, indirect=True)
def test_ten_beats_are_answered(server):
    """Ten pong events with a round trip and a count of clients, then a summary, and status 0."""
    with client(server.ws, "--interval", "0.1", "--count", "10") as run:
        events = list(run.json_events(20))
        assert run.wait(5) == 0
    pongs = [event for event in events if event["event"] == "pong"]
    assert len(pongs) == 10
    assert all(pong["rtt_ms"] > 0 and pong["clients"] >= 1 for pong in pongs)
    assert events[-1]["event"] == "summary"
    assert (events[-1]["sent"], events[-1]["answered"], events[-1]["lost"]) == (10, 10, 0)


@pytest.mark.slow
@pytest.mark.parametrize("beats", ["server", "both", pytest.param("none", marks=pytest.mark.slow)])
def test_every_way_of_beating_works_between_real_ends(server, beats):
    """A client that wishes for it gets two beats of whichever end, and loses none."""
    interval = "2" if beats == "none" else "0.2"
    with client(server.ws, "--interval", interval, "--beats", beats, "--count", "2") as run:
        events = list(run.json_events(30))
        assert run.wait(5) == 0
    assert [event["event"] for event in events].count("dead") == 0
    assert sum(event["event"] in ("pong", "ping") for event in events) >= 2


@pytest.mark.slow
def test_rfc_6455_ping_frames_for_servers_that_know_no_json(server):
    """`--frames` needs nothing of the server but the protocol."""
    with client(server.ws, "--interval", "0.1", "--count", "3", "--frames") as run:
        events = list(run.json_events(20))
        assert run.wait(5) == 0
    assert events[-1]["answered"] == 3


def test_a_page_is_served_on_the_same_port(server):
    with urllib.request.urlopen(server.ws.replace("ws://", "http://").replace("/ws", "/"), timeout=10) as answer:
        assert "heartbeat-client ws://127.0.0.1" in answer.read().decode()


def test_interrupt_prints_the_summary_in_plain_text(server):
    """Ctrl-C: the statistics as ping(8) has them, no colour in a pipe, no traceback, status 0."""
    with Program([BIN / "heartbeat-client", server.ws, "--interval", "0.1"]) as run:
        run.line_with("pong 3", 15)
        run.signal(signal.SIGINT)
        assert run.line_with(" 0 lost", 10)
        assert run.line_with("rtt min/avg/max/mdev = ", 5)
        assert run.wait(5) == 0
    assert not any("\033" in line or "Traceback" in line for line in run.seen)


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_the_script_quietly(server):
    """`heartbeat-client … | head -n 2` ends by itself, without a traceback."""
    command = f"'{BIN}/heartbeat-client' {server.ws} --interval 0.1 | head -n 2"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30, check=False)  # noqa: S602
    assert len(run.stdout.splitlines()) == 2
    assert run.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("output", ["/dev/full", "&-"])
def test_output_that_cannot_be_written_hangs_nobody(output):
    """A full disk, or none at all: no traceback, and the status says what was found out."""
    command = f"'{BIN}/heartbeat-client' ws://127.0.0.1:{free_port()}/ws --attempts 0 >{output}"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30, check=False)  # noqa: S602
    assert run.returncode == 2
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_who_never_reached_the_server_is_not_told_that_all_was_answered():
    """Ctrl-C while still trying: nothing was sent, and the status is 2."""
    with client(f"ws://127.0.0.1:{free_port()}/ws") as run:
        run.event("reconnecting", 20)
        run.signal(signal.SIGINT)
        assert run.event("summary", 10)["sent"] == 0
        assert run.wait(5) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", REACTORS)
def test_a_server_that_is_stopped_tells_its_clients_to_come_back_later(tmp_path, kind):
    """SIGTERM: 1012 to everybody, who are to be back a second after they were told, and then it is gone."""
    with twistd(cwd=tmp_path, reactor=kind) as server, client(server.url(), "--interval", "0.2") as run:
        run.event("pong", 20)
        server.signal(signal.SIGTERM)
        assert run.event("closed", 10)["code"] == 1012
        assert 500 <= run.event("reconnecting", 10)["delay_ms"] <= 1002
        server.wait(10)


def test_the_server_says_at_start_where_it_listens_and_how_soon_it_finds_out(tmp_path):
    with twistd("--interval", "2", cwd=tmp_path) as server:
        url = server.url()
        assert url.startswith("ws://127.0.0.1:")
        line = server.line_with("a dead peer is found", 10)
        # max(2, 6) + 6 + 3 + 2 x 0.2 for a client that pings, a tick more for a server; 2 + 6 + 3 + 2 x 0.2 to watch.
        assert "within 15.4 s by a client that pings, within 15.6 s by a server that pings, within 11.4 s by" in line
        assert server.line_with("room for", 10)
        # Once it answers, the reactor runs, and handles signals.
        with client(url, "--count", "1") as run:
            run.event("summary", 20)
        server.signal(signal.SIGINT)
        # twistd ends as the signal would have ended it.
        assert server.wait(10) in (0, -signal.SIGINT)
        assert server.line_with("Server Shut Down", 5)
    assert not any("Traceback" in line for line in server.seen)


def test_a_port_that_is_taken_is_one_sentence(server, tmp_path):
    port = server.ws.split(":")[2].split("/")[0]
    with twistd("--listen", f"tcp:{port}:interface=127.0.0.1", cwd=tmp_path) as second:
        assert second.line_with("Couldn't listen on 127.0.0.1", 20)
        assert second.wait(10) == 1
    assert not any("Traceback" in line for line in second.seen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--interval", "0"], "--interval must be a number from 0.1 to 3600 s, not 0.0"),
        (["--interval", "soon"], "--interval must be a number, not 'soon'"),
        (["--beats", "nobody"], "--beats must be one of client, server, both, none, not 'nobody'"),
        (["--max-connections", "100000000"], "--max-connections must be"),
        (["--listen", "nowhere:1"], "--listen must be an endpoint description"),
        (["--listen", "tcp:99999"], "heartbeat: "),
        (["--origin", "https://*.test"], "--origin must be scheme://host"),
        (["surplus"], "unexpected argument 'surplus'"),
        (["--grace", "1"], "--grace must be at least 31.5 s"),
    ],
)
def test_wrong_options_of_the_server_are_one_sentence(tmp_path, options, sentence):
    with Program([BIN / "twistd", "-n", "--pidfile=", "heartbeat", *options], cwd=tmp_path) as server:
        assert server.line_with(sentence, 20)
        assert server.wait(10) == 1
    assert not any("Traceback" in line for line in server.seen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: URL"),
        (["http://localhost/"], "protocol scheme 'http' is not for WebSocket"),
        (["ws://localhost/", "--interval", "0"], "--interval must be a number from 0.1 to 3600 s"),
        (["ws://localhost/", "--count", "0"], "--count must be a whole number from 1"),
        (["ws://localhost/", "--header", "nonsense"], "--header must be KEY:VALUE, not 'nonsense'"),
        (["wss://localhost/", "--cacert", "/nonexistent"], "--cacert must be a readable file of PEM certificates"),
        (["wss://localhost/", "--cacert", ""], "--cacert must be a readable file of PEM certificates"),
        (["wss://localhost/", "--cacert", "x", "--insecure"], "--cacert and --insecure contradict each other"),
    ],
)
def test_wrong_usage_of_the_client_is_one_sentence_and_status_2(arguments, sentence):
    with Program([BIN / "heartbeat-client", *arguments]) as run:
        assert run.line_with(sentence, 20)
        assert run.wait(10) == 2
    assert not any("Traceback" in line for line in run.seen)


@pytest.mark.slow
def test_a_certificate_is_verified_unless_told_otherwise(tmp_path):
    """`wss://` with the right `--cacert` works, without it the server is unreachable at once, status 2."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    leaf = authority.issue_cert("127.0.0.1", "localhost")
    leaf.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    listen = "ssl:0:interface=127.0.0.1:privateKey=server.pem:certKey=server.pem"
    with twistd("--listen", listen, cwd=tmp_path) as server:
        url = server.url()
        assert url.startswith("wss://127.0.0.1:")
        with client(url, "--interval", "0.1", "--count", "10", "--cacert", str(tmp_path / "ca.pem")) as run:
            summary = run.event("summary", 20)
            assert (summary["answered"], summary["lost"], run.wait(5)) == (10, 0, 0)
        with client(url, "--count", "1") as run:
            assert "certificate verify failed" in run.event("unreachable", 20)["detail"]
            assert run.wait(5) == 2
        with client(url, "--count", "1", "--insecure") as run:
            assert (run.event("summary", 20)["answered"], run.wait(5)) == (1, 0)
        with client(url.replace("127.0.0.1", "localhost"), "--count", "1", "--cacert", str(tmp_path / "ca.pem")) as run:
            assert (run.event("summary", 20)["answered"], run.wait(5)) == (1, 0)


@pytest.mark.slow
def test_nobody_there_is_unreachable_after_three_attempts():
    """Status 2 after the attempts that were asked for, each said."""
    with client(f"ws://127.0.0.1:{free_port()}/ws", "--attempts", "1") as run:
        events = list(run.json_events(20))
        assert run.wait(5) == 2
    assert [event["event"] for event in events] == ["reconnecting", "unreachable", "summary"]
    assert events[0]["attempt"] == 1
    assert 500 <= events[0]["delay_ms"] <= 1500


@pytest.mark.slow
def test_a_unix_socket_serves_too(tmp_path):
    """The endpoint is Twisted's; the listener says where it is."""
    with twistd("--listen", "unix:here.sock", "--listen", LOOPBACK, cwd=tmp_path) as server:
        assert server.line_with("listening on the UNIX socket here.sock", 20)
        with client(server.url(), "--count", "1") as run:
            assert run.event("summary", 20)["answered"] == 1
