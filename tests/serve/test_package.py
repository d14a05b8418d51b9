"""What is shipped: the wheel and the source distribution, installed by a stranger."""

import shutil
import subprocess
import sys
import tarfile
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest
from processes import Program

ROOT = Path(__file__).parents[2]

SERVED = {
    "admin/page": ["index.html", "watch.css", "watch.js"],
    "web/page": ["index.html", "page.js", "page.css", "favicon.svg"],
    "web/static": ["heartbeat.js", "heartbeat.d.ts", "package.json", "README.md", "LICENSE"],
}

# What a browser and a program ask of a server whose package lies in a zip file.
FROM_A_ZIP = """
import sys

sys.path.insert(0, sys.argv[1])

import heartbeat.web
from heartbeat import HeartbeatServerFactory
from heartbeat.testing import World
from twisted.internet.protocol import Factory, Protocol

assert heartbeat.web.__file__.startswith(sys.argv[1])
world = World()
site = heartbeat.web.make_site(world.server)
world.listen(HeartbeatServerFactory(site=site, reactor=world.server))
for path in ("/", "/heartbeat.js"):
    protocol = Protocol()
    protocol.dataReceived = lambda data: sys.stdout.buffer.write(data)
    world.endpoint().connect(Factory.forProtocol(lambda: protocol))
    world.advance(1)
    protocol.transport.write(f"GET {path} HTTP/1.1\\r\\nHost: x\\r\\nAccept: text/html\\r\\n\\r\\n".encode())
    world.advance(1)
world.close()
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist, built from a copy, so that nothing is left behind in the tree."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, source)
    without = shutil.ignore_patterns("__pycache__", "dropin.cache")
    for name in ("heartbeat", "twisted"):
        shutil.copytree(ROOT / name, source / name, ignore=without)
    dist = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(dist), str(source)],
        check=True,
        capture_output=True,
        timeout=900,
    )
    return dist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A fresh environment with nothing but the wheel."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=True)
    wheel = next(built.glob("*.whl"))
    subprocess.run([home / "bin" / "pip", "install", "--quiet", wheel], check=True, timeout=900)
    return home / "bin"


def test_the_wheel_holds_the_package_and_the_plugin_and_nothing_of_twisteds(built):
    """An __init__.py under twisted/ would hide Twisted itself."""
    names = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    assert {"heartbeat/__init__.py", "heartbeat/py.typed", "heartbeat/core/monitor.py"} <= names
    assert {name for name in names if name.startswith("twisted/")} == {"twisted/plugins/heartbeat_plugin.py"}


@pytest.mark.parametrize("folder", SERVED)
def test_the_wheel_and_the_source_distribution_hold_what_is_served_to_pages(built, folder):
    """And all that the npm package is made of."""
    here = {f"heartbeat/{folder}/{path.name}" for path in (ROOT / "heartbeat" / folder).iterdir()}
    assert {f"heartbeat/{folder}/{name}" for name in SERVED[folder]} <= here
    assert here <= set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    with tarfile.open(next(built.glob("txheartbeat-*.tar.gz"))) as sdist:
        assert here <= {name.partition("/")[2] for name in sdist.getnames()}


def test_twistd_of_the_fresh_environment_lists_heartbeat(installed):
    told = subprocess.run([installed / "twistd", "--help"], check=True, capture_output=True, text=True, timeout=60)
    assert "    heartbeat            A WebSocket heartbeat server" in told.stdout


def test_the_installed_client_talks_to_the_installed_server(installed, tmp_path):
    """Ten beats, none lost."""
    listen = ["--listen", "tcp:0:interface=127.0.0.1"]
    with Program([installed / "twistd", "-n", "--pidfile=", "heartbeat", *listen], cwd=tmp_path) as server:
        url = server.line_with("listening on", 30).split("listening on ")[1].split()[0]
        command = [installed / "heartbeat-client", url, "--interval", "0.1", "--count", "10"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "10 sent, 10 answered, 0 lost" in told.stdout


def test_the_installed_server_serves_the_page_and_the_browser_client(installed, tmp_path):
    """From wherever it was started."""
    listen = ["--listen", "tcp:0:interface=127.0.0.1"]
    with Program([installed / "twistd", "-n", "--pidfile=", "heartbeat", *listen], cwd=tmp_path) as server:
        page = server.line_with("page: ", 30).split("page: ")[1].rstrip(")")
        asked = urllib.request.Request(page, headers={"Accept": "text/html"})
        with urllib.request.urlopen(asked, timeout=15) as answer:
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
            assert b"<html" in answer.read()
        with urllib.request.urlopen(f"{page}heartbeat.js", timeout=15) as answer:
            assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
            assert answer.read() == (ROOT / "heartbeat" / "web" / "static" / "heartbeat.js").read_bytes()


def test_the_page_and_the_browser_client_are_served_out_of_a_zip_too(built, tmp_path):
    """A wheel is one."""
    wheel = next(built.glob("*.whl"))
    command = [sys.executable, "-W", "error", "-c", FROM_A_ZIP, wheel]
    told = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=60, check=False)
    assert told.returncode == 0, told.stderr.decode()
    assert told.stdout.count(b"HTTP/1.1 200 OK") == 2
    assert b"<html" in told.stdout
    assert told.stdout.endswith((ROOT / "heartbeat" / "web" / "static" / "heartbeat.js").read_bytes())
