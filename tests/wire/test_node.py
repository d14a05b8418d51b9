"""The browser's client under Node, with a browser of fakes: the tests in tests/node, run by Node's own test runner."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NODE_TESTS = Path(__file__).parents[1] / "node"

#: What the client's syntax and the tests' runner need.
OLDEST = 18


def node_or_skip():
    """Node, if there is one that is young enough."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("NOT TESTED: no node on this machine, so heartbeat.js has not run")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    if int(re.match(r"v(\d+)", version)[1]) < OLDEST:
        pytest.skip(f"NOT TESTED: node {version} is older than {OLDEST}, so heartbeat.js has not run")
    return node


def test_the_browsers_client_does_under_node_what_its_tests_say():
    """All of them, each file a process of its own; those that fail are told whole."""
    node, files = node_or_skip(), sorted(NODE_TESTS.glob("*.test.js"))
    assert files

    # By name, for what `node --test` makes of a folder differs from version to version.
    command = [node, "--test", "--test-reporter=tap", *map(str, files)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    counts = {
        name: int(count) for name, count in re.findall(r"^# (tests|pass|fail|skipped) (\d+)$", ran.stdout, re.MULTILINE)
    }
    failed = re.findall(r"^ *not ok [\s\S]*?^ *\.\.\.$", ran.stdout, re.MULTILINE)
    assert ran.returncode == 0, "\n".join([*failed, ran.stderr]) or ran.stdout
    assert counts["pass"] == counts["tests"] > len(files)
    assert (counts["fail"], counts["skipped"]) == (0, 0)


def test_no_test_under_node_is_left_out_or_alone():
    """Nothing says skip, todo or only: what does not run there would not be seen here."""
    for path in NODE_TESTS.glob("*.test.js"):
        assert re.findall(r"\b(?:test|describe|it)\.(?:skip|todo|only)\b|\b(?:skip|todo): ", path.read_text()) == [], (
            path
        )


def test_the_files_that_are_shared_are_read_by_both():
    """No vector stands where only one language would look for it."""
    names = {path.stem for path in (NODE_TESTS.parent / "vectors").glob("*.json")}
    scripts = "".join(path.read_text() for path in NODE_TESTS.glob("*.js"))
    tests = "".join((NODE_TESTS.parent / name).read_text() for name in ("core/test_vectors.py", "vectors/make.py"))

    assert {name for name in names if f'read("{name}")' in scripts} == names
    assert {name for name in names if f'"{name}"' in tests} == names
    assert all(json.loads((NODE_TESTS.parent / "vectors" / f"{name}.json").read_text()) for name in names)
