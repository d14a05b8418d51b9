"""docs/running.md: its files are right, its commands say what it shows, and its log is what it says."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import trustme
from ports import free_port
from processes import BIN, LOOPBACK, Program, client, twistd

from heartbeat.core.errors import CloseCode
from heartbeat.logs import MEMBERS
from heartbeat.tap import Options

# Each starts programs, most of them several.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "running.md").read_text("utf-8")

#: What each step may take at most; it takes a fraction of a second.
SOON = 30.0

TOML = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
CONSOLE = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)


def checked(folder):
    """What `--check-config` says of a file in this folder."""
    command = [BIN / "twistd", "heartbeat", "--config", "heartbeat.toml", "--check-config"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SOON, check=False)


@pytest.mark.parametrize("text", TOML)
def test_each_file_that_it_shows_is_right(text, tmp_path):
    authority = trustme.CA()
    leaf = authority.issue_cert("example.org")
    leaf.private_key_pem.write_to_path(tmp_path / "privkey.pem")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "fullchain.pem")
    # For TLS to Redis.
    authority.cert_pem.write_to_path(tmp_path / "redis-ca.pem")
    leaf.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    (tmp_path / "heartbeat.toml").write_text(text)

    run = checked(tmp_path)

    assert (run.returncode, run.stdout, run.stderr) == (0, "heartbeat.toml: no mistakes\n", "")
    assert len(list(tmp_path.iterdir())) == 5


def test_the_mistakes_that_it_shows_are_those_that_are_said(tmp_path):
    (shown,) = [block for block in CONSOLE if "wrong.toml --check-config" in block]
    (tmp_path / "wrong.toml").write_text('intervall = 2\nmax-message = "64k"\nwindow = 0\n')
    command, _, said = shown.removeprefix("$ ").partition("\n")

    run = subprocess.run(
        [str(BIN / "twistd"), *command.split()[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )

    assert (run.returncode, run.stderr) == (1, said)


def test_the_example_of_a_file_is_right_but_for_the_socket_of_the_manager(tmp_path):
    text = (ROOT / "contrib" / "heartbeat.toml").read_text("utf-8")
    assert text.count('"systemd:domain=INET:name=heartbeat"') == 1
    (tmp_path / "heartbeat.toml").write_text(text.replace('"systemd:domain=INET:name=heartbeat"', '"tcp:9000"'))

    assert checked(tmp_path).returncode == 0


@pytest.mark.parametrize(
    "path",
    [
        "docs/running.md",
        *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "contrib").rglob("*")) if path.is_file()),
    ],
)
def test_every_option_that_is_named_is_one(path):
    """Ours after the word `heartbeat`, and a few of twistd's and of other programs."""
    ours = {name.rstrip("=") for name in Options().longOpt}
    others = {
        # twistd's.
        "pidfile", "logfile", "reactor", "syslog", "logger",
        # The client's.
        "count", "attempts", "interval",
        # Of podman, pip, certbot, systemctl, and of a container file.
        "stop-timeout", "no-cache-dir", "disable-pip-version-check", "deploy-hook", "now", "from", "timeout",
        "start-period", "system", "uid", "home-dir", "create-home",
    }  # fmt: skip
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+[a-z])", (ROOT / path).read_text("utf-8")))

    assert named <= ours | others


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", TEXT)

    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    copied = re.findall(r"contrib/[\w./]+", "".join(CONSOLE))
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_log_is_json_from_the_first_line_to_the_last(tmp_path):
    """Whatever happens in between: clients, pages, a refusal, and the end."""
    with twistd("--log-format", "json", "--origin", "https://example.org", cwd=tmp_path) as server:
        url = json.loads(server.line_with("listening on", SOON))["where"].split()[0]
        with client(url, "--count", "1", "--header", "Origin: https://example.com") as run:
            assert run.event("closed", SOON)["code"] == CloseCode.FORBIDDEN_ORIGIN
        with client(url, "--count", "1") as run:
            run.event("summary", SOON)
        server.stop()
    server.rest()
    events = [json.loads(line) for line in server.seen]

    assert events[0]["message"].startswith("twistd ")
    assert events[-1]["message"] == "Server Shut Down."
    assert all(re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.[0-9]{3}Z", event["time"]) for event in events)
    (refusal,) = [event for event in events if event.get("reason") == "origins"]
    assert refusal["level"] == "info"
    assert refusal["peer"] in refusal["message"]
    for name in MEMBERS:
        assert f"| `{name}` |" in TEXT
    (shown,) = re.findall(r"```json\n(.*)\n```", TEXT)
    assert set(json.loads(shown)) == set(refusal)


def test_an_application_has_the_parts_one_by_one(tmp_path):
    """Its own certificate, and its own log as JSON; on another port than the one that is shown."""
    (text,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    authority, port = trustme.CA(), free_port()
    leaf = authority.issue_cert("localhost")
    leaf.private_key_pem.write_to_path(tmp_path / "privkey.pem")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "fullchain.pem")
    authority.cert_pem.write_to_path(tmp_path / "root.pem")
    (tmp_path / "shop.tac").write_text(text.replace("9443", str(port)))
    with Program([BIN / "twistd", "-n", "--pidfile=", "-y", "shop.tac"], cwd=tmp_path) as server:
        url, trusting = f"wss://localhost:{port}/ws", ("--cacert", str(tmp_path / "root.pem"))
        with client(url, *trusting, "--count", "1", "--attempts", "5") as run:
            assert run.event("summary", SOON)["answered"] == 1
        server.stop()
    server.rest()
    assert server.seen == []
    events = [json.loads(line) for line in (tmp_path / "shop.log").read_text().splitlines()]
    assert events[-1]["message"] == "Server Shut Down."


def test_a_port_that_is_taken_is_said_in_json_too(tmp_path):
    with twistd(cwd=tmp_path) as first:
        port = first.url().split(":")[2].split("/")[0]
        taken = ["--listen", f"tcp:{port}:interface=127.0.0.1", "--log-format", "json"]
        with twistd(*taken, cwd=tmp_path) as second:
            said = json.loads(second.line_with("Couldn't listen on 127.0.0.1", SOON))
            assert said["level"] == "error"
            assert second.wait(SOON) == 1


def test_a_daemon_writes_json_to_its_file_alone(tmp_path):
    """Without `-n`: it forks, goes on by itself, and ends by its process id."""
    command = [BIN / "twistd", "--pidfile=here.pid", "heartbeat", "--listen", LOOPBACK, "--log-format", "json"]
    with Program(command, cwd=tmp_path) as parent:
        assert parent.wait(SOON) == 0
        assert parent.seen + parent.rest() == []
    pid = int((tmp_path / "here.pid").read_text())
    try:
        events = [json.loads(line) for line in (tmp_path / "twistd.log").read_text().splitlines()]
        (where,) = [event["where"].split()[0] for event in events if "listening on" in event["message"]]
        with client(where, "--count", "1") as run:
            assert run.event("summary", SOON)["answered"] == 1
    finally:
        subprocess.run(["kill", str(pid)], check=True, timeout=SOON)
    with Program(["tail", f"--pid={pid}", "-f", "/dev/null"]) as gone:
        assert gone.wait(SOON) == 0
    last = (tmp_path / "twistd.log").read_text().splitlines()[-1]
    assert json.loads(last)["message"] == "Server Shut Down."
