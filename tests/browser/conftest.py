"""What the tests in a browser share: Chromium, servers that live as long as a test, and which tests begin."""

import json
import os
import sys
from contextlib import ExitStack, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

# The programs that the tests of real sockets start are started here too; and the Redis of those on the wire.
sys.path += [str(Path(__file__).parents[1] / name) for name in ("serve", "wire")]

from certificates import Certificates
from chromium import Server, options_that_trust, start
from processes import LOOPBACK, Program, twistd

HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """What takes minutes begins, where tests run beside each other; by now, what was not asked for is left out.

    xdist gives each of its processes two tests at first: one of those, and one of the quick ones that are last.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    is_long = [bool(item.get_closest_marker("browser") and item.get_closest_marker("slow")) for item in items]
    long = [item for item, counts in zip(items, is_long, strict=True) if counts]
    rest = [item for item, counts in zip(items, is_long, strict=True) if not counts]
    pairs = [one for pair in zip(long, reversed(rest), strict=False) for one in pair]
    items[:] = pairs + [item for item in long + rest if item not in pairs]


@pytest.fixture
def browser(tmp_path):
    """A factory: `browser(*chromium_options)` is a webdriver, which is gone after the test."""
    with ExitStack() as stack:

        def make(*options):
            driver = start(tmp_path / f"profile-{len(made)}", *options)
            made.append(driver)
            stack.callback(gone, driver)
            return driver

        def gone(driver):
            # Its driver may hang up before it has said that it will; it is ended all the same.
            with suppress(OSError, HTTPException):
                driver.quit()

        made = []
        yield make


@pytest.fixture
def server(tmp_path):
    """A factory: `server(*twistd_options, tls=False)` is a `twistd heartbeat`, with `url`, `ws` and `program`."""
    with ExitStack() as stack:

        def make(*options, tls=False):
            trust = ()
            if tls:
                certificates = Certificates.issued_in(tmp_path)
                options = ("--listen", certificates.listen, *options)
                trust = options_that_trust(certificates.chain)
            program = stack.enter_context(twistd(*options, cwd=tmp_path))
            stack.callback(tell_the_end, program)
            return Server(program, trust)

        yield make


def tell_the_end(program):
    """For whoever reads of a failure: pytest shows it beside that."""
    program.rest()
    print("the last that the server said:", *program.seen[-50:], sep="\n")


@pytest.fixture
def page_server(tmp_path):
    """A factory: `page_server(tls=False, **settings)` is a server with the pages of these tests."""
    with ExitStack() as stack:

        def make(*, tls=False, **settings):
            listen, trust = LOOPBACK, ()
            if tls:
                certificates = Certificates.issued_in(tmp_path)
                listen, trust = certificates.listen, options_that_trust(certificates.chain)
            command = [sys.executable, HERE / "page_server.py", json.dumps(settings), listen]
            program = stack.enter_context(Program(command))
            stack.callback(tell_the_end, program)
            return Server(program, trust)

        yield make
