"""The Autobahn|Testsuite on this machine: a CPython 2.7, and an environment that has what it needs.

It was never carried to Python 3. What is installed goes into `.venv-conformance`, and nowhere else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["HOW_TO_GET_IT", "Failed", "environment", "python27"]

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE.parent / ".venv-conformance"
_WANTED = HERE / "requirements.txt"
# The last one without parts of its own to install.
_VIRTUALENV = "virtualenv==16.7.12"

#: Seconds that an installation may take.
_PATIENCE = 600

HOW_TO_GET_IT = """\
******************************************************************************
CONFORMANCE WAS NOT RUN. The Autobahn|Testsuite runs on CPython 2.7 only, and
none that works, with pip and ssl, was found: neither `python2.7` on the PATH
nor one of pyenv's. To get one:
    pyenv install 2.7.18
which needs gcc, make and the headers of OpenSSL, zlib and libffi (Debian:
apt-get install gcc make libssl-dev zlib1g-dev libffi-dev). It does not have to
be chosen. Then run the same command again.
******************************************************************************"""


class Failed(Exception):
    """Something that the rest needs could not be done; a sentence."""


def python27() -> Path | None:
    """A CPython 2.7 that works; None where there is none."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = (shutil.which("python2.7"), *sorted(versions.glob("2.7*/bin/python"), reverse=True))
    # A version manager's shim may be on the PATH for a version that is not chosen, so each is tried.
    return next((Path(candidate) for candidate in candidates if candidate and _works(candidate)), None)


def _works(python: str | Path) -> bool:
    asked = "import pip, platform, ssl, sys; print(platform.python_implementation(), sys.version_info[:2])"
    try:
        told = subprocess.run([python, "-c", asked], check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return told.returncode == 0 and told.stdout.strip() == "('CPython', (2, 7))"


def environment(python: Path) -> Path:
    """The Python of an environment that has the suite, made now if it is not there. Raises Failed."""
    made, inside = ENVIRONMENT / "made", ENVIRONMENT / "bin" / "python"
    if made.exists() and made.read_text() == _WANTED.read_text():
        return inside
    print(f"making {ENVIRONMENT.name} for {python}: the Autobahn|Testsuite, in a minute", flush=True)
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    with tempfile.TemporaryDirectory() as tool:
        _install(python, "--target", tool, _VIRTUALENV)
        _ran([python, "-m", "virtualenv", "--no-download", "--quiet", ENVIRONMENT], PYTHONPATH=tool)
    _install(inside, "--requirement", _WANTED)
    made.write_text(_WANTED.read_text())
    return inside


def _install(python: Path, *what: str | Path) -> None:
    _ran([python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *what])


def _ran(command: list[str | Path], **environ: str) -> None:
    # It says at each call that Python 2.7 has reached its end.
    environ = {**os.environ, "PYTHONWARNINGS": "ignore", "PIP_NO_PYTHON_VERSION_WARNING": "1", **environ}
    try:
        told = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            env=environ,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{command[0]} was not ready within {_PATIENCE} s: {' '.join(map(str, command))}") from None
    if told.returncode:
        said = "\n".join((told.stdout + told.stderr).strip().splitlines()[-20:])
        raise Failed(f"{' '.join(map(str, command))} ended with {told.returncode}:\n{said}")
