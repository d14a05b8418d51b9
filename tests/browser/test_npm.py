"""The npm package: packed, installed by a stranger, imported, type checked, weighed."""

import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from processes import Program, twistd

from heartbeat._version import __version__

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGE = ROOT / "heartbeat" / "web" / "static"
NODE_MODULES = HERE / "node_modules"

#: What the whole client may weigh, minified and gzipped.
LIMIT = 6144

SOON = 60.0

# A program under Node, against a real server. It ends by itself, or something of the client's lives on.
PROGRAM = """
import WebSocket from "ws";
import { HeartbeatClient } from "txheartbeat";

const tell = (event, more) => console.log(JSON.stringify({ event, ...more }));
const client = new HeartbeatClient(process.argv[2], { WebSocket, client_id: "node", interval_ms: 100 });
client.linkChanged = (status) => tell(status.event, { level: status.level, client_id: status.client_id });
let pongs = 0;
const answered = new Promise((then) => {
    client.pongReceived = (rtt_ms, clients) => {
        tell("pong", { rtt_ms, clients });
        if (++pongs === 3) then();
    };
});
const arrived = new Promise((then) => {
    client.messageReceived = (message, handling) => {
        tell("message", { message, ...handling });
        if (message.text) then();
    };
});
client.send({ type: "nonsense" });
client.send({ type: "onchat", id: "m1", to: "node", text: "to myself" }).then(() => tell("handled"));
await Promise.all([answered, arrived]);
client.close();
"""

# What there is of each name in heartbeat.d.ts, and what kind of thing it is.
SURFACE = """
import * as module from "txheartbeat";

class Mute {
    bufferedAmount = 0;
    send() {}
    close() {}
}

const timing = {
    interval_ms: 6000, timeout_ms: [3000, 6000], probe_ms: 3000, watch_ms: 12000, tick_ms: 200, patience_ms: 60000,
};
const at = { now: 0, stalls: 0, given: 0, written: 0 };
const monitor = new module.Monitor(timing, false, at);
monitor.open();
at.now = 20;
monitor.heard();
monitor.answered(1);
const client = new module.HeartbeatClient("ws://127.0.0.1:9/ws", { WebSocket: Mute });
const made = {
    HeartbeatClient: client,
    Monitor: monitor,
    Unconfirmed: new module.Unconfirmed([], "expired"),
    SessionFull: new module.SessionFull(),
    Unreachable: new module.Unreachable(),
};
const kinds = (thing, members) => Object.fromEntries(members.map((member) => [member, typeof thing[member]]));
const told = Object.entries(JSON.parse(process.argv[2])).map(([name, members]) => [name, kinds(made[name], members)]);
const errors = Object.entries(made).filter(([name, thing]) => thing instanceof Error && thing.name === name);
client.close();
console.log(JSON.stringify({
    exported: Object.keys(module), kinds: Object.fromEntries(told), errors: errors.map(([name]) => name),
}));
"""

# A link from its opening to its end, then one that never comes about: all that is told of them.
STATUSES = """
import WebSocket from "ws";
import { HeartbeatClient } from "txheartbeat";

const tell = (status) => console.log(JSON.stringify(status));
const client = new HeartbeatClient(process.argv[2], { WebSocket, client_id: "node" });
tell(client.status);
client.linkChanged = tell;
await new Promise((then) => (client.pongReceived = then));
tell(client.status);
client.close();
const once = { WebSocket, attempts: 1, delays_ms: [1], linkChanged: tell };
const lonely = new HeartbeatClient("ws://127.0.0.1:9/ws", once);
await lonely.whenOpen().catch(() => lonely.close());
"""

# What a Worker has of its surroundings, as far as the module asks for it.
CLOCK = """
globalThis.name = "heartbeat-clock";
globalThis.postMessage = () => console.log(JSON.stringify({ event: "tick" }));
await import("./bundle.js");
globalThis.onmessage({ data: 60_000 });
globalThis.onmessage({ data: 5 });
"""


def semver(version):
    """A version of Python's as npm writes it."""
    release, letter, number = re.fullmatch(r"(\d+\.\d+\.\d+)(?:(a|b|rc|\.dev)(\d+))?", version).groups()
    words = {"a": "alpha", "b": "beta", "rc": "rc", ".dev": "dev"}
    return f"{release}-{words[letter]}.{number}" if letter else release


VERSIONS = {"0.1.0": "0.1.0", "1.2.0a1": "1.2.0-alpha.1", "1.2.0b12": "1.2.0-beta.12", "1.2.0rc1": "1.2.0-rc.1"}


def test_both_packages_have_one_version():
    assert {version: semver(version) for version in VERSIONS} == VERSIONS
    assert json.loads((PACKAGE / "package.json").read_text())["version"] == semver(__version__)


def test_both_packages_have_one_licence():
    assert (PACKAGE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


# What needs npm.


@pytest.fixture(scope="module")
def tool():
    """The path of a program that npm has installed for these tests."""
    if shutil.which("npm") is None:
        pytest.skip("NOT TESTED: there is no npm on this machine, so nobody has installed the npm package")
    if not NODE_MODULES.is_dir():
        pytest.skip("NOT TESTED: tests/browser/node_modules is not there; `make test-all` makes it")
    return lambda name: NODE_MODULES / ".bin" / name


@pytest.fixture(scope="module")
def npm(tool, tmp_path_factory):
    """Run npm, which must do without the network and leaves nothing in anybody's home."""
    own = {"npm_config_cache": str(tmp_path_factory.mktemp("npm")), "npm_config_update_notifier": "false"}

    def npm(*words, cwd):
        command = ["npm", *words, "--offline", "--no-audit", "--no-fund"]
        told = subprocess.run(
            command, cwd=cwd, env={**os.environ, **own}, capture_output=True, text=True, timeout=60, check=False
        )
        assert told.returncode == 0, told.stdout + told.stderr
        return told.stdout

    return npm


@pytest.fixture(scope="module")
def tarball(npm, tmp_path_factory):
    """The package as it is published, packed from a copy."""
    copy = tmp_path_factory.mktemp("package") / "static"
    shutil.copytree(PACKAGE, copy)
    (packed,) = json.loads(npm("pack", "--json", cwd=copy))
    return copy / packed["filename"]


@pytest.fixture(scope="module")
def project(npm, tarball, tmp_path_factory):
    """An empty project with the package, the package `ws`, and the types of that."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    npm("install", str(tarball), cwd=folder)
    for name in ("ws", "@types"):
        (folder / "node_modules" / name).symlink_to(NODE_MODULES / name)
    return folder


@pytest.fixture
def node(project):
    """Run a program under Node, as a module of the project's."""

    def node(text, *arguments):
        (project / "program.js").write_text(text)
        return Program(["node", "program.js", *arguments], cwd=project)

    return node


@pytest.mark.browser
def test_the_package_holds_the_module_its_types_and_what_there_is_to_read(tarball):
    with tarfile.open(tarball) as packed:
        names = sorted(packed.getnames())
    assert names == [
        f"package/{name}" for name in ("LICENSE", "README.md", "heartbeat.d.ts", "heartbeat.js", "package.json")
    ]


@pytest.mark.browser
def test_a_program_under_node_opens_beats_and_has_its_message_handled(node, tmp_path):
    with twistd("--messages", "chat", cwd=tmp_path) as server, node(PROGRAM, server.url(SOON)) as program:
        events = list(program.json_events(SOON))
        assert program.wait(SOON) == 0, program.seen
    (opened,) = [event for event in events if event["event"] == "open"]
    assert (opened["level"], opened["client_id"]) == (1, "node")
    pongs = [event for event in events if event["event"] == "pong"]
    assert len(pongs) >= 3
    assert all(0 <= pong["rtt_ms"] < 1000 and pong["clients"] == 1 for pong in pongs)
    assert [event["event"] for event in events].count("handled") == 1
    told = [event for event in events if event["event"] == "message"]
    assert [event["seq"] for event in told] == list(range(1, len(told) + 1))
    assert all(event["sid"] == told[0]["sid"] for event in told)
    messages = [event["message"] for event in told]
    (refused,) = [message for message in messages if message["type"] == "error"]
    assert (refused["code"], refused["re"]) == ("unknown-type", "nonsense")
    assert {"type": "onchat", "id": "m1", "from": "node", "text": "to myself"} in messages
    assert events[-1]["event"] == "closed"


@pytest.mark.browser
def test_the_examples_of_its_readme_run(node, tmp_path):
    """The client made as under Node, and used as in a page."""
    page, under_node = re.findall(r"```js\n(.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL)
    imported, made, used = page.split("\n\n")[0], *page.split("\n\n")[1].split("\n", 1)
    assert imported in under_node
    assert made == 'const client = new HeartbeatClient("wss://example.org/ws", { worker: true });'
    with twistd("--messages", "chat", cwd=tmp_path) as server:
        program = under_node.replace("ws://127.0.0.1:9000/ws", server.url(SOON)) + used
        with node(program) as run:
            run.line_with("open open as c-", SOON)
            run.line_with("handled by the server", SOON)


@pytest.mark.browser
def test_the_client_weighs_no_more_than_was_promised(tool, capsys):
    """Minified and gzipped, as a site serves it that minds its bytes."""
    source = PACKAGE / "heartbeat.js"
    command = [tool("terser"), "--module", "-c", "-m", "--", source]
    minified = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    zipped = len(subprocess.run(["gzip", "-9"], input=minified, check=True, capture_output=True, timeout=60).stdout)
    sizes = f"{source.stat().st_size} bytes, {len(minified)} minified, {zipped} gzipped besides"
    with capsys.disabled():
        print(f"\nheartbeat.js: {sizes} (at most {LIMIT})")
    assert zipped <= LIMIT


@pytest.mark.browser
@pytest.mark.parametrize("resolution", ["nodenext", "bundler"])
def test_the_types_allow_what_is_meant_and_refuse_what_is_not(project, tool, resolution):
    """A `@ts-expect-error` without an error below it is an error."""
    _check(project, tool, "usage.ts", "misuse.ts", resolution=resolution, lib="es2022,dom")


@pytest.mark.browser
def test_the_types_need_no_browser(project, tool):
    _check(project, tool, "node.ts", resolution="nodenext", lib="es2022")


def _check(project, tool, *names, resolution, lib):
    for name in names:
        shutil.copy(HERE / "types" / name, project)
    how = {"nodenext": ["--module", "nodenext"], "bundler": ["--module", "esnext", "--moduleResolution", "bundler"]}
    command = [tool("tsc"), "--strict", "--noEmit", "--target", "es2022", "--lib", lib, "--types", "node"]
    told = subprocess.run(
        [*command, *how[resolution], *names], cwd=project, capture_output=True, text=True, timeout=120, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr


def _declared():
    """What is in heartbeat.d.ts: its text without comments; of each class its members, and the type of each."""
    text = (PACKAGE / "heartbeat.d.ts").read_text()
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    exported = {name: {} for name in re.findall(r"^export (?:class|function) (\w+)", text, re.MULTILINE)}
    for name, body in re.findall(r"^export class (\w+)[^{]*\{\n(.*?)^\}$", text, re.MULTILINE | re.DOTALL):
        exported[name] = _members(body)
    return text, exported


def _members(body):
    """Of a class or an interface: the type of each member; of a method what follows its name."""
    members = re.findall(r"^    (?:readonly |static )*(\w+)[?]?(?:: |(?=\())(.*);$", body, re.MULTILINE)
    return {member: declared for member, declared in members if member != "constructor"}


def _kind(declared):
    """What `typeof` says of a thing of a declared type, when it is there."""
    first = declared.split(" | ")[0]
    kinds = {"State": "string", "LinkStatus": "object", "Timing": "object", "readonly Message[]": "object"}
    return "function" if "(" in first else kinds.get(first, first)


def test_the_types_are_used_name_by_name():
    """By usage.ts, so that the type checker has seen all of them at work."""
    text, _ = _declared()
    usage = re.sub(r"//[^\n]*", "", (HERE / "types" / "usage.ts").read_text())
    names = {*re.findall(r"^export (?:type|interface|class|function) (\w+)", text, re.MULTILINE)}
    names |= {*re.findall(r"^    (?:readonly |static )*(\w+)[?]?[:(]", text, re.MULTILINE)} - {"constructor"}
    assert len(names) > 90
    assert {"HeartbeatClient", "Moment", "patience_ms", "whenRoom", "silent_for_ms", "unanswered_for"} <= names
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", usage)) == []


@pytest.mark.browser
def test_the_module_has_what_its_types_promise_and_exports_nothing_else(node):
    _, exported = _declared()
    assert exported["HeartbeatClient"].keys() >= {"status", "linkChanged", "send", "close"}
    wanted = {name: {member: _kind(declared) for member, declared in of.items()} for name, of in exported.items()}
    with node(SURFACE, json.dumps({name: list(members) for name, members in wanted.items()})) as program:
        (told,) = program.json_events(SOON)
        assert program.wait(SOON) == 0, program.seen
    assert told["kinds"] == wanted
    assert sorted(told["exported"]) == sorted(wanted)
    assert told["errors"] == ["Unconfirmed", "SessionFull", "Unreachable"]


@pytest.mark.browser
def test_what_is_told_of_a_link_is_of_the_declared_types(node, tmp_path):
    text, _ = _declared()
    fields = _members(re.search(r"^export interface LinkStatus \{\n(.*?)^\}$", text, re.MULTILINE | re.DOTALL)[1])
    types = re.findall(r"^export type (\w+) =(.*?);", text, re.MULTILINE | re.DOTALL)
    words = {name: re.findall(r'"(\S+)"', body) for name, body in types}
    with twistd(cwd=tmp_path) as server, node(STATUSES, server.url(SOON)) as program:
        told = list(program.json_events(SOON))
        assert program.wait(SOON) == 0, program.seen
    events = ["closed", "open", "open", "closed", "reconnecting", "unreachable", "closed"]
    assert [status["event"] for status in told] == events
    kinds = {"string": str, "boolean": bool, "number": (int, float), "null": type(None)}

    def is_one(value, declared):
        if declared in words:
            return value in words[declared]
        if declared.isdigit():
            return value == int(declared)
        return isinstance(value, kinds[declared]) and (declared == "boolean" or not isinstance(value, bool))

    for status in told:
        assert status.keys() == fields.keys()
        for name, value in status.items():
            assert any(is_one(value, declared) for declared in fields[name].split(" | ")), (name, value)
    before, _, answered, after, waits, given_up, _ = told
    assert (before["state"], before["rtt_ms"], before["level"], before["client_id"]) == (None, None, 0, None)
    assert (answered["state"], answered["level"], answered["client_id"]) == ("acknowledged", 1, "node")
    assert (answered["clients"], answered["rtt_ms"] > 0) == (1, True)
    assert (after["code"], after["reason"], after["attempt"], after["delay_ms"]) == (None, "", None, None)
    assert (waits["attempt"], 0.5 <= waits["delay_ms"] <= 1.5) == (1, True)
    assert (given_up["attempt"], given_up["delay_ms"]) == (1, None)


@pytest.mark.browser
def test_a_bundler_keeps_the_clock_of_a_worker_that_imports_nothing_of_it(project, tool, node):
    """The module beats in a Worker by being imported there: that is its side effect."""
    (project / "worker.js").write_text('import "txheartbeat";\n')
    command = [tool("esbuild"), "--bundle", "--format=esm", "--outfile=bundle.js", "worker.js"]
    subprocess.run(command, cwd=project, check=True, capture_output=True, timeout=60)
    with node(CLOCK) as program:
        # The later word counts, and nothing else keeps the program alive.
        assert list(program.json_events(SOON)) == [{"event": "tick"}]
        assert program.wait(SOON) == 0, program.seen
