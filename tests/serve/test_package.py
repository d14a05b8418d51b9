"""What is shipped: the wheel and the source distribution, installed by a stranger."""

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from processes import Program

ROOT = Path(__file__).parents[2]

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
        timeout=300,
    )
    return dist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A fresh environment with nothing but the wheel."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=True)
    wheel = next(built.glob("*.whl"))
    subprocess.run([home / "bin" / "pip", "install", "--quiet", wheel], check=True, timeout=300)
    return home / "bin"


def test_the_wheel_holds_the_package_and_the_plugin_and_nothing_of_twisteds(built):
    """An __init__.py under twisted/ would hide Twisted itself."""
    names = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    assert {"heartbeat/__init__.py", "heartbeat/py.typed", "heartbeat/core/monitor.py"} <= names
    assert {name for name in names if name.startswith("twisted/")} == {"twisted/plugins/heartbeat_plugin.py"}


def test_a_source_distribution_is_built_too(built):
    assert len(list(built.glob("txheartbeat-*.tar.gz"))) == 1


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
