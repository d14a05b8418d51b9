"""What the README tells people to type and to write does what it says."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from ports import free_port
from processes import BIN, LOOPBACK, Program, client, twistd

from heartbeat import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

SOON = 15.0


def block(language, about):
    """The one code block in this language that holds this text."""
    (found,) = [
        text for text in re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if about in text
    ]
    return found


def written(about, folder, *changes):
    """A Python block of the README as the file that its first line names, with a port for the test."""
    text = block("python", about)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / text.splitlines()[0].removeprefix("# ")
    path.write_text(text)
    return path


def shape(line):
    """A line of output without what differs from run to run."""
    line = re.sub(r"ws://[^\s:]+:\d+", "URL", line)
    line = re.sub(r"c-[0-9a-f]{16}", "ID", line)
    return re.sub(r"\d+\.\d+", "N", line)


def test_the_two_commands_that_set_up_are_there():
    commands = [line.removeprefix("$ ") for line in block("console", "make run").splitlines()]
    makefile = (ROOT / "Makefile").read_text()
    assert commands == ["make run", "make test"]
    assert all(f"\n{command.split()[1]}:" in makefile for command in commands)


def test_a_server_and_a_client_are_run_as_it_says_and_say_what_it_shows(tmp_path):
    start, call, *shown = block("console", "--count 3").splitlines()
    start = shlex.split(start.removeprefix("$ ").replace("tcp:9000:interface=127.0.0.1", LOOPBACK))
    with Program([BIN / start[0], *start[1:]], cwd=tmp_path) as server:
        url = server.url()
        call = shlex.split(call.removeprefix("$ ").replace("ws://127.0.0.1:9000/ws", url))
        with Program([BIN / call[0], *call[1:]]) as run:
            assert run.wait(SOON) == 0
            assert [shape(line) for line in run.rest()] == [shape(line) for line in shown]


def test_messages_and_sessions_are_had_as_it_says(tmp_path):
    """In the order in which it shows them; the letter waits for bob while he is away."""
    start, *calls = block("console", "--store").removeprefix("$ ").split("\n$ ")
    start = [*shlex.split(start), "--listen", LOOPBACK]
    with Program([BIN / start[0], *start[1:]], cwd=tmp_path) as server:
        url = server.url()
        for call in calls:
            command, *shown = call.splitlines()
            command = shlex.split(command.replace("ws://127.0.0.1:9000/ws", url))
            with Program([BIN / command[0], *command[1:]], cwd=tmp_path) as run:
                assert run.wait(SOON) == 0
                assert [line for line in run.rest() if line.startswith("message")] == shown
    assert (tmp_path / "sessions.db").exists()


def test_the_application_runs_under_twistd_and_tells_who_is_here(tmp_path):
    application = written("application.tac", tmp_path, ("tcp:9000:interface=127.0.0.1", LOOPBACK))
    with Program([BIN / "twistd", "--pidfile=", "-ny", application], cwd=tmp_path) as server:
        with client(server.url(), "--count", "1") as run:
            name = run.event("open", SOON)["client_id"]
            server.line_with(f"{name} is here", SOON)
            assert run.wait(SOON) == 0
        server.line_with(f"{name} has gone", SOON)


def test_the_mixin_gives_the_echo_a_heartbeat(tmp_path):
    port = free_port()
    echo = written("echo.py", tmp_path, ("9000", str(port)))
    with Program([sys.executable, echo]), client(f"ws://127.0.0.1:{port}", "--count", "1", "--attempts", "10") as run:
        # It says nothing when it listens: the client comes back until it does.
        assert run.event("summary", 4 * SOON)["answered"] == 1


def test_the_client_tells_of_the_link_and_of_each_answer(tmp_path):
    with twistd(cwd=tmp_path) as server:
        watch = written("watch.py", tmp_path, ("ws://127.0.0.1:9000/ws", server.url()))
        with Program([sys.executable, watch]) as run:
            run.line_with("open open as c-", SOON)
            run.line_with("pong 0.", SOON)
            server.kill()
            run.line_with("closed lost: ", SOON)
            run.line_with("reconnecting ", SOON)


def test_a_message_of_ones_own_is_handled_and_answered_for_whoever_may_come_in(tmp_path):
    """And who comes without the word is told so."""
    shop = written("shop.tac", tmp_path, ("tcp:9000:interface=127.0.0.1", LOOPBACK))
    with Program([BIN / "twistd", "--pidfile=", "-ny", shop], cwd=tmp_path) as server:
        url = server.url()
        order = written("order.py", tmp_path, ("ws://127.0.0.1:9000/ws", url))
        with Program([sys.executable, order], cwd=tmp_path) as run:
            assert {run.line(SOON), run.line(SOON)} == {"accepted 7", "handled"}
        with client(url) as run:
            assert "4401: this token is not known" in run.event("closed", SOON)["detail"]
            assert run.wait(SOON) == 2


def test_the_promise_is_told_in_the_words_of_the_settings():
    """The numbers in what is not promised are the defaults."""
    (told,) = re.findall(r"`window` \((\d+) s\) and the bounds \((\d+) messages, (\d+) MiB\)", README)
    settings = Settings()
    assert [float(number) for number in told] == [settings.window, settings.kept_limit, settings.kept_bytes / 2**20]


def test_the_bounds_in_the_table_are_those_of_the_defaults():
    timing = Settings().timing()
    bounds = dict(re.findall(r"^\| (.*?) \|.*\| ([\d.]+) s(?: more)? \|$", README, re.MULTILINE))
    assert bounds == {
        "cable cut, machine off, process frozen": f"{timing.pinging_bound:.1f}",
        "the same, seen from the other side": f"{timing.watching_bound:.1f}",
        'a first sign of it ("the network is fluctuating")': f"{timing.watch + timing.tick:.1f}",
        "data of ours still queued before the ping": f"{timing.patience:.0f}",
        "the server never answers the opening": f"{Settings().open_timeout:.0f}",
    }


@pytest.mark.parametrize("link", re.findall(r"\]\(([^):]+)\)", README))
def test_what_the_readme_links_to_is_there(link):
    assert (ROOT / link).exists()
