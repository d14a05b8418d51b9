"""What the documents say of the wire and of the defaults is what the code does."""

import inspect
import json
import re
import shutil
import subprocess
from dataclasses import fields
from itertools import chain, count
from pathlib import Path

import pytest
import txaio
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from autobahn.websocket.xormasker import create_xor_masker
from processes import Program, twistd

from heartbeat import HeartbeatServerFactory, Settings, admission
from heartbeat.ai import AI
from heartbeat.auth import Unauthorized
from heartbeat.chat import Chat, GroupChat
from heartbeat.core import messages
from heartbeat.core.errors import CloseCode, is_final_close
from heartbeat.store import MemoryStore
from heartbeat.testing import World

DOCS = Path(__file__).parents[2] / "docs"
PROTOCOL = (DOCS / "protocol.md").read_text()
CHOICES = (DOCS / "choices.md").read_text()

# What the documents call the clients and the store, and when in the first interval the first ping comes; the sessions
# are s-1, s-2 and so on.
CLIENT_IDS = ("c-5f3a90c1d2e4b678", "c-91b07de2f3a4c5d6", "c-0d4e8a17b29c63f5")
EPOCH = "e-1"
SPREAD = 0.5


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def words(text):
    return " ".join(text.split())


class Store(MemoryStore):
    """One whose contents are called as the documents do."""

    def start(self):
        return super().start()._replace(epoch=EPOCH)


class Doorman:
    """An Authenticator as the documents have it."""

    def authenticate(self, credentials):
        if credentials.token != "alice's token":
            raise Unauthorized("this token is not known")
        return "alice"


def fail(protocol, message):
    raise RuntimeError("the bug that the documents speak of")


#: What the server of an exchange has besides the defaults, as its first line says.
SERVERS = {
    "a server with --level0 refuse": (Settings(level0="refuse"), None),
    "a server with a model": (Settings(), None),
    "a server that keeps 4 messages": (Settings(kept_limit=4), None),
    "a server with an Authenticator": (Settings(), Doorman()),
}


class Talker(WebSocketClientProtocol):
    """A client that says what a document has it say, and keeps what it hears."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def onMessage(self, payload, isBinary):
        self.said.append(payload.decode())

    def onPing(self, payload):
        self.said.append(f"PING {payload.decode()}")

    def onCloseFrame(self, code, reason):
        self.said.append(f"CLOSE {code} {(reason or b'').decode()}".rstrip())
        super().onCloseFrame(code, reason)


class Parrot:
    """A model that knows one answer."""

    def __init__(self, reactor):
        self.reactor = reactor

    def ask(self, text, hearer):
        if "6" in text:
            self.reactor.callLater(0, hearer.said, "It is ")
            self.reactor.callLater(0, hearer.said, "42.")
            self.reactor.callLater(0, hearer.finished)
        else:
            self.reactor.callLater(0, hearer.failed, "the model does not know")
        return self

    def pause(self):
        pass

    def resume(self):
        pass


class Conversation:
    """The lines of a document, said to a real server in memory; `said` is what each connection has heard of it.

    The server has the chat, a type `note` that it takes without a word, and a type `order` whose handler fails.
    """

    def __init__(self, server=""):
        settings, authenticator = SERVERS.get(server, (Settings(), None))
        self.world = World(latency=0.0)
        self.tick = settings.tick
        self.said = {}
        self._clients = {}
        factory = HeartbeatServerFactory(
            settings, store=Store(), authenticator=authenticator, reactor=self.world.server
        )
        self.factory = factory
        factory.heartbeat.new_client_id = chain(CLIENT_IDS, map("c-{:016x}".format, count())).__next__
        factory.heartbeat.spread = lambda: SPREAD
        factory.register("note", lambda protocol, message: None)
        factory.register("order", fail)
        Chat(factory)
        GroupChat(factory)
        if server == "a server with a model":
            AI(factory)._model = Parrot(self.world.server)
        self.world.listen(factory)

    def connect(self, name, protocol=None):
        """A new connection of this name, with a protocol of its own where it is to keep what it hears otherwise."""
        protocol = protocol or Talker([])
        self.said[name] = protocol.said
        factory = WebSocketClientFactory("ws://127.0.0.1:9000/ws", reactor=self.world.client)
        factory.setProtocolOptions(openHandshakeTimeout=0, closeHandshakeTimeout=0, serverConnectionDropTimeout=0)
        factory.buildProtocol = lambda _: _of(factory, protocol)
        self._clients[name] = self.world.endpoint().connect(factory)
        self.world.advance(0.0)

    def say(self, name, line):
        """Say a line, and hear what is answered at once."""
        if name not in self._clients:
            self.connect(name)
        client = self._clients[name].result
        if line.startswith("PONG "):
            client.sendPong(line.removeprefix("PONG ").encode())
        elif line.startswith("CLOSE "):
            client.sendClose(int(line.removeprefix("CLOSE ")))
        else:
            client.sendMessage(line.encode())
        self.world.advance(0.0)

    def lose(self, name):
        """The connection of this name breaks."""
        self._clients.pop(name).result.transport.abortConnection()
        self.world.advance(0.0)

    def pass_time(self, seconds):
        """Let time pass; what is said comes in the last moment of it, to the grain of the ticks."""
        early, late = (3 * self.tick, self.tick) if seconds > self.tick else (0.01, 0.01)
        self.world.advance(seconds - early)
        self.assert_all_is_heard()
        self.world.advance(early + late)

    def follow(self, line):
        """What this line of a document tells is so."""
        if spoken := re.fullmatch(r"(?:(\w+) )?(->|<-) (.*)", line):
            name, direction, text = spoken.groups()
            if direction == "<-":
                said = self.said[name].pop(0) if self.said[name] else ""
                # What a line leaves out was shown before.
                assert said == text or re.fullmatch(re.escape(text).replace("…", ".+"), said), (said, text)
            else:
                self.assert_all_is_heard()
                self.say(name, text)
        elif later := re.fullmatch(r"\(([\d.]+) s later\)", line):
            self.pass_time(float(later.group(1)))
        elif connection := re.fullmatch(r"\((?:(\w+): )?(the connection is lost|a new connection)\)", line):
            name, what = connection.groups()
            {"the connection is lost": self.lose, "a new connection": self.connect}[what](name)
        else:
            raise AssertionError(f"a line that tells nothing: {line}")

    def assert_all_is_heard(self):
        """Nothing was said that the document does not tell."""
        assert {name: said for name, said in self.said.items() if said} == {}

    def end(self):
        """Nothing is left of it."""
        self.assert_all_is_heard()
        self.world.close()
        assert self.world.delayed_calls == []


def _of(factory, protocol):
    protocol.factory = factory
    return protocol


@pytest.fixture
def converse(monkeypatch):
    """Conversations, whose sessions are called as the documents do."""
    txaio.use_twisted()

    def converse(server=""):
        monkeypatch.setattr(admission, "new_sid", map("s-{}".format, count(1)).__next__)
        return Conversation(server)

    return converse


@pytest.mark.parametrize("exchange", blocks(PROTOCOL, "wire"))
def test_each_exchange_of_the_protocol_goes_as_it_is_told(exchange, converse):
    """Byte for byte, to the moment, and with nothing said in between."""
    lines = exchange.splitlines()
    server = lines[0].strip("()")
    talk = converse(server)
    for line in lines[server in SERVERS :]:
        talk.follow(line)
    talk.end()


def test_the_protocol_quotes_the_prose_of_the_code():
    """The wire is written as prose once."""
    prose = inspect.getdoc(messages).partition("\n\n")[2]
    quoted = "\n".join(line.removeprefix(">") for line in PROTOCOL.splitlines() if line.startswith(">"))
    assert words(quoted) == words(prose)


def test_the_bytes_on_the_wire_are_those_frames(converse):
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
    talk = converse()
    talk.say(None, ping.decode())
    assert talk.said == {None: [pong.decode()]}
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
    assert told == [(field.name, repr(field.default)) for field in fields(Settings) if field.init]


class Carrier(Talker):
    """The connection of the client in the document, whose session outlives it."""

    def __init__(self, session):
        super().__init__([])
        self.session = session

    def onOpen(self):
        self.session.write = lambda message: self.sendMessage(json.dumps(message).encode())
        self.session.write(self.session.opening())

    def onMessage(self, payload, isBinary):
        self.session.received(payload.decode())


@pytest.mark.parametrize("breaks", [17, 60, 200])
def test_the_client_of_the_protocol_that_has_sessions_loses_nothing_on_a_link_that_breaks(converse, breaks):
    """Cut in the middle of whatever is under way, and again and again; told once of each message, in order."""
    (script,) = blocks(PROTOCOL, "python")
    namespace = {}
    exec(compile(script, "protocol.md", "exec"), namespace)  # noqa: S102  # what the document says
    talk = converse()
    got, heard, lost = [], [], []
    talk.factory.register("note", lambda protocol, message: got.append(message["n"]))
    session = namespace["Session"](None, heard.append, lambda *what: lost.append(what))

    talk.connect("it", Carrier(session))
    for n in range(30):
        session.send({"type": "note", "n": n})
        session.send({"type": "onchat", "id": n, "to": "nobody", "text": "hi"})
        talk.world.cut(after=breaks)
        talk.world.advance(0.1)
        talk.world.drop()
        talk.world.heal()
        talk.lose("it")
        talk.connect("it", Carrier(session))
    talk.world.advance(1.0)

    assert got == list(range(30))
    assert [message["id"] for message in heard] == list(range(30))
    assert (lost, session.kept, session.attempt) == ([], [], 30)
    talk.end()


def test_the_client_of_the_protocol_that_has_sessions_tells_what_was_lost_with_one(converse):
    (script,) = blocks(PROTOCOL, "python")
    namespace = {}
    exec(compile(script, "protocol.md", "exec"), namespace)  # noqa: S102  # what the document says
    talk = converse()
    got, lost = [], []
    talk.factory.register("note", lambda protocol, message: got.append(message["n"]))
    session = namespace["Session"](None, None, lambda *what: lost.append(what))
    session.send({"type": "note", "n": 0})
    talk.connect("it", Carrier(session))
    talk.world.advance(0.1)
    talk.world.cut()
    session.send({"type": "note", "n": 1})
    talk.world.advance(200.0)
    talk.world.heal()
    talk.lose("it")
    talk.connect("it", Carrier(session))
    session.send({"type": "note", "n": 2})
    talk.world.advance(1.0)

    assert got == [0, 2]
    assert lost == [("expired", [{"type": "note", "n": 1, "seq": 2}])]
    talk.end()


@pytest.mark.slow
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
