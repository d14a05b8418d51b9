"""What the documents say of the wire and of the defaults is what the code does."""

import inspect
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
from autobahn.websocket.xormasker import create_xor_masker
from processes import Program, twistd

from heartbeat import Presence, Settings
from heartbeat.core import messages
from heartbeat.core.errors import CloseCode, is_final_close
from heartbeat.core.link import Abort, Deliver, PingFrame, Turn
from heartbeat.core.monitor import QUIET
from heartbeat.core.running import RunningTime
from heartbeat.core.server_link import ServerLink

DOCS = Path(__file__).parents[2] / "docs"
PROTOCOL = (DOCS / "protocol.md").read_text()
CHOICES = (DOCS / "choices.md").read_text()

# What the documents call the client, and the moment of its first ping that they show.
CLIENT_ID = "c-5f3a90c1d2e4b678"
SPREAD = 0.5


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def words(text):
    return " ".join(text.split())


class Conversation:
    """A server's link at default settings, fed with the lines of a document; keeps what it says."""

    def __init__(self):
        settings = Settings()
        running = RunningTime(settings.tick, 0.0)
        presence = Presence(settings.grace, settings.grace_away)
        self.now = 0.0
        self.link = ServerLink(
            settings, running, 0.0, presence=presence, client_id=CLIENT_ID, claims=True, spread=SPREAD
        )
        self.said = []

    def hear(self, line):
        self.link.heard(self.now)
        if line.startswith("PONG "):
            self._note(self.link.pong(line.removeprefix("PONG ").encode(), self.now))
        else:
            self._note(self.link.receive(line.encode(), binary=False, now=self.now))

    def pass_time(self, seconds):
        end = self.now + seconds
        while self.link.next_at <= end:
            self.now = self.link.next_at
            effects = self.link.check(self.now, QUIET)
            self._note(effects)
            if any(isinstance(effect, Turn) for effect in effects):
                self._note(self.link.confirm(self.now, QUIET))
        self.now = end

    def _note(self, effects):
        for effect in effects:
            if isinstance(effect, bytes):
                self.said.append(effect.decode())
            elif isinstance(effect, PingFrame):
                self.said.append(f"PING {effect.payload.decode()}")
            elif isinstance(effect, Deliver):
                # As the edge does it where the application takes nothing.
                self._note(self.link.unknown(effect.message))
            elif isinstance(effect, Abort):
                self.said.append(f"CLOSE {int(effect.code)} {effect.reason}")


@pytest.mark.parametrize("exchange", blocks(PROTOCOL, "wire"))
def test_each_exchange_of_the_protocol_goes_as_it_is_told(exchange):
    """Byte for byte, to the moment, and with nothing said in between."""
    talk = Conversation()
    for line in exchange.splitlines():
        if line.startswith("-> "):
            assert talk.said == []
            talk.hear(line.removeprefix("-> "))
        elif line.startswith("<- "):
            assert talk.said.pop(0) == line.removeprefix("<- ")
        else:
            talk.pass_time(float(re.fullmatch(r"\(([\d.]+) s later\)", line).group(1)))
    assert talk.said == []


def test_the_protocol_quotes_the_prose_of_the_code():
    """The wire is written as prose once."""
    prose = inspect.getdoc(messages).partition("\n\n")[2]
    quoted = "\n".join(line.removeprefix(">") for line in PROTOCOL.splitlines() if line.startswith(">"))
    assert words(quoted) == words(prose)


def test_the_bytes_on_the_wire_are_those_frames():
    """The masked ones unmask to what the text says, and the answer is the server's."""
    frames = [bytes.fromhex(part) for block in blocks(PROTOCOL, "hex") for part in block.split("\n\n")]
    opcodes = [frame[0] for frame in frames]
    assert opcodes == [0x81, 0x81, 0x89, 0x8A, 0x88]
    payloads = [
        create_xor_masker(frame[2:6], len(frame) - 6).process(frame[6:]) if frame[1] & 0x80 else frame[2:]
        for frame in frames
    ]
    assert [frame[1] & 0x7F for frame in frames] == [len(payload) for payload in payloads]
    ping, pong, probe, answer, close = payloads
    talk = Conversation()
    talk.hear(ping.decode())
    assert talk.said == [pong.decode()]
    assert probe == answer == b"heartbeat 1"
    assert close == (4000).to_bytes(2) + b"silent"


def test_the_protocol_tells_of_every_close_code_whether_a_client_comes_back():
    rows = re.findall(r"^\| ([\d, ]+) \|.*\| (yes|no)\b[^|]*\|$", PROTOCOL, re.MULTILINE)
    told = {int(code): answer == "no" for codes, answer in rows for code in codes.split(", ")}
    assert told == {int(code): is_final_close(code) for code in CloseCode}


def test_the_bounds_are_those_of_the_defaults():
    timing = Settings().timing()
    ends = re.findall(r"^\| (pings|watches) \|.*\| ([\d.]+) s \|$", PROTOCOL, re.MULTILINE)
    assert ends == [("pings", f"{timing.pinging_bound:.1f}"), ("watches", f"{timing.watching_bound:.1f}")]


def test_every_setting_stands_among_the_choices_with_its_default():
    """In the order of the class, none left out."""
    told = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", CHOICES, re.MULTILINE)
    assert told == [(field.name, repr(field.default)) for field in fields(Settings)]


def test_the_minimal_client_of_the_protocol_finds_out_that_the_server_is_gone_and_comes_back(tmp_path):
    """Beats, suspects a server that stands still, convicts it, and is answered again by the next connection."""
    node = shutil.which("node")
    if node is None or "function" not in _node_says(node, "console.log(typeof WebSocket)"):
        pytest.skip("NOT TESTED: no node with WebSocket on this machine, so the JavaScript of protocol.md has not run")
    (script,) = blocks(PROTOCOL, "js")
    with twistd(cwd=tmp_path) as server:
        tell = "heartbeat(process.argv[1], (what) => console.log(what), 50, 300, 1500)"
        command = [node, "--experimental-websocket", "--no-warnings", "-e", f"{script}\n{tell}", server.url()]
        with Program(command) as page:
            page.line_with("acknowledged", 15)
            server.pause()
            page.line_with("suspect", 15)
            server.resume()
            page.line_with("acknowledged", 15)
            server.pause()
            page.line_with("suspect", 15)
            page.line_with("dead", 15)
            server.resume()
            page.line_with("acknowledged", 15)


def _node_says(node, script):
    command = [node, "--experimental-websocket", "--no-warnings", "-e", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=15, check=False).stdout
