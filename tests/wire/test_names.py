"""Names: which we share with Autobahn on purpose, and what importing one of them brings along."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)

import heartbeat
from heartbeat import factory, mixin, protocol

ROOT = Path(heartbeat.__file__).parent

#: Where we stand in Autobahn's or Twisted's way on purpose; each calls `super()` or says why not.
INTERCEPTED = {
    "_onOpen",
    "_onMessage",
    "_onPing",
    "_onPong",
    "_onClose",
    "dataReceived",
    "consumeData",
    "onFrameEnd",
    "_trigger",
    "on",
    # On our own protocols and factories.
    "connectionMade",
    "sendCloseFrame",
    "dropConnection",
    "processHandshake",
    "sendHttpErrorResponse",
    "failHandshake",
    "onOpenHandshakeTimeout",
    "_fail_connection",
    "buildProtocol",
    "startFactory",
    "stopFactory",
    "protocol",
}

#: What we set of theirs.
SET = {"data", "state", "host", "tcpNoDelay"}

THEIRS = (WebSocketServerProtocol, WebSocketClientProtocol, WebSocketServerFactory, WebSocketClientFactory)


def defined(*modules):
    """The classes that these modules define."""
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]


def live_names():
    """What Autobahn's classes have, and what their instances get besides, on a connection that is open."""
    names = set()
    for theirs in THEIRS:
        names.update(*(vars(base) for base in theirs.__mro__))
        names.update(theirs.__dict__)
    for cls in (WebSocketServerProtocol, WebSocketClientProtocol):
        for base in cls.__mro__:
            if not base.__module__.startswith(("autobahn.", "twisted.")):
                continue
            source = Path(sys.modules[base.__module__].__file__).read_text("utf-8")
            names.update(
                node.attr
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "self"
            )
    return names


def ours(cls):
    """What a class of ours defines, on itself or on its instances."""
    stored = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(cls)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and getattr(node.value, "id", "") == "self"
    }
    return {name for name in stored | vars(cls).keys() if not name.startswith("__")}


@pytest.mark.parametrize(
    "cls",
    [cls for cls in defined(mixin, protocol, factory) if cls is not protocol._HandedOver],
    ids=lambda cls: cls.__name__,
)
def test_the_names_we_share_with_autobahn_are_those_we_mean(cls):
    """A collision by chance would be found by nobody: neither would raise."""
    assert ours(cls) & live_names() <= INTERCEPTED | SET


def test_every_interception_is_still_needed():
    used = set().union(*map(ours, defined(mixin, protocol, factory)))

    assert used >= INTERCEPTED | SET
    assert live_names() >= INTERCEPTED | SET


def test_the_mixins_keep_one_attribute_on_the_protocol_and_all_private_names_are_marked():
    names = {name for cls in defined(mixin) for name in ours(cls) if name.startswith("_")}

    assert {name for name in names if not name.startswith("_heartbeat")} <= INTERCEPTED


def run(code):
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()


def test_importing_the_package_imports_neither_twisted_nor_autobahn():
    code = "import heartbeat\nprint(*(name for name in sys.modules if name.split('.')[0] in ('twisted', 'autobahn')))"

    assert run(code) == []


def test_importing_the_core_imports_no_twisted():
    code = "import heartbeat.core.link, heartbeat.core.client_link, heartbeat.core.server_link\n"

    assert run(code + "print(*(n for n in sys.modules if n.split('.')[0] in ('twisted', 'autobahn', 'txaio')))") == []


def test_importing_every_public_name_installs_no_reactor():
    code = "import heartbeat\nfor name in heartbeat.__all__: getattr(heartbeat, name)\n"

    assert run(code + "print('twisted.internet.reactor' in sys.modules)") == ["False"]


def test_importing_our_test_doubles_installs_no_reactor_either():
    assert run("import heartbeat.testing\nprint('twisted.internet.reactor' in sys.modules)") == ["False"]


def test_every_public_name_is_loaded_when_it_is_asked_for():
    for name in heartbeat.__all__:
        assert getattr(heartbeat, name) is not None
    assert set(heartbeat.__all__) <= set(dir(heartbeat))
    assert sorted(heartbeat.__all__) == sorted({*heartbeat._HOMES, "__version__"})


def test_a_name_that_is_none_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'heartbeat' has no attribute 'Hartbeat'$"):
        _ = heartbeat.Hartbeat


# Layers: imports point downwards.


def imports(path):
    """The modules of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names if node.module == "heartbeat")
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "core").glob("*.py")), ids=lambda path: path.stem)
def test_the_core_imports_nothing_from_above_and_nothing_that_does_io(path):
    upwards = {name for name in imports(path) if name.startswith("heartbeat") and not name.startswith("heartbeat.core")}

    assert upwards == set()
    assert not {name.split(".")[0] for name in imports(path)} & {
        "asyncio", "autobahn", "random", "secrets", "select", "socket", "ssl", "threading", "time", "twisted", "uuid",
    }  # fmt: skip


#: Who may be imported by whom: each line by those below it.
LAYERS = (
    ("core", "_version", "addresses", "refusals"),
    (
        "handshake",
        "auth",
        "watchdog",
        "quiet",
        "outbox",
        "frames",
        "limits",
        "config",
        "logs",
        "notify",
        "certificate",
        "tls",
        "endings",
        "inherited",
        "store",
        "sse",
        "tally",
    ),
    ("reactor", "tokens", "pulse"),
    ("ticker",),
    ("lane", "handling", "tables", "model", "fastpath"),
    ("arrivals", "channel", "sqlite", "cluster", "lean"),
    ("sessions", "pacing"),
    ("register",),
    ("roaming",),
    ("admission", "draining"),
    ("shared",),
    ("edge",),
    ("ends",),
    ("mixin", "groups"),
    ("protocol",),
    ("factory", "web", "own_session", "fleet_groups"),
    ("question",),
    ("client", "chat", "ai", "admin"),
    ("service",),
    ("launched", "workers"),
    ("tap", "__main__", "testing", "__init__"),
    ("worker",),
)


def test_every_module_has_a_layer_and_imports_only_from_those_below():
    layer = {name: at for at, names in enumerate(LAYERS) for name in names}
    modules = sorted(path for path in ROOT.rglob("*.py") if path.parent.name != "core")
    for path in modules:
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        assert own in layer, f"{own} has no layer"
        if own == "__init__":
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "heartbeat" and len(parts) > 1 and parts[1] in layer and parts[1] != own:
                assert layer[parts[1]] < layer[own], f"{own} imports {name}"
