"""The container file, as far as it can be seen without an engine: who it runs as, and that its words start a server."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from ports import free_port
from processes import BIN, Program, client

# Each starts programs, most of them several.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

#: What each step may take at most; it takes a fraction of a second.
SOON = 30.0


def instructions():
    """Those of the last stage, each a word and what follows it."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / "contrib" / "Containerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line]


def last_stage():
    """What holds when it runs: of what is said twice, the latter."""
    said = instructions()
    last = max(at for at, (word, _rest) in enumerate(said) if word == "FROM")
    return dict(said[last:])


def words(said):
    """The command that is said in exec form; fails on a shell's."""
    command = json.loads(said)
    assert command[0].startswith("/")
    return [word.replace("/opt/heartbeat/bin", str(BIN)) for word in command]


def test_it_does_not_run_as_root():
    """And by a number: of a name an orchestrator cannot tell."""
    user = last_stage()["USER"]

    assert int(user) > 0
    assert f"--uid {user} " in last_stage()["RUN"]


def test_what_it_copies_is_here_and_what_it_installs_is_there():
    said = instructions()

    for word, rest in said:
        if word == "COPY" and not rest.startswith("--from"):
            assert all((ROOT / name).exists() for name in rest.split()[:-1]), rest
    (extras,) = re.findall(r'"\.\[([a-z,]+)\]"', " ".join(rest for word, rest in said if word == "RUN"))
    settings = (ROOT / "setup.cfg").read_text("utf-8").partition("[options.extras_require]")[2]
    assert all(f"\n{extra} =" in settings for extra in extras.split(","))
    assert all(rest.startswith("python:3.1") for word, rest in said if word == "FROM")


def test_its_words_start_a_server_that_is_healthy_and_that_sigterm_drains(tmp_path):
    """Without a shell in between, which would keep the signal; and when the server is gone, it is not healthy."""
    said = last_stage()
    port = free_port()
    command = words(said["ENTRYPOINT"]) + json.loads(said["CMD"])
    command[command.index("tcp:9000")] = f"tcp:{port}:interface=127.0.0.1"
    health = words(said["HEALTHCHECK"].partition("CMD ")[2])
    health[1] = health[1].replace(":9000/", f":{port}/")
    assert said["EXPOSE"] == "9000"
    assert said["STOPSIGNAL"] == "SIGTERM"

    with Program(command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}) as server:
        assert json.loads(server.line_with("listening on", SOON))["where"].startswith(f"ws://127.0.0.1:{port}/ws")
        with Program(health) as check:
            assert check.wait(SOON) == 0
        with client(f"ws://127.0.0.1:{port}/ws", "--interval", "0.2") as run:
            run.event("pong", SOON)
            assert server.stop() == -signal.SIGTERM
            assert run.event("closed", SOON)["code"] == 1012
    with Program(health) as check:
        assert check.wait(SOON) != 0
    assert list(tmp_path.iterdir()) == []


def test_the_health_is_asked_for_within_its_time():
    """An attempt may take 10 s; an answer that takes longer is none."""
    (timeout,) = re.findall(r"--timeout=([0-9]+)s", last_stage()["HEALTHCHECK"])

    assert float(timeout) > 10
