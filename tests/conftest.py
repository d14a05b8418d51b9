"""What all tests share: properties are searched the same way every time, and CI skips nothing.

And how the same tests are run in another way: `--plain-path` leaves every frame and handshake to Autobahn, `--reactor`
is pytest-twisted's choice of Twisted's reactors, `-p tests.on_heartbeat_reactor` is ours; with `-p tests.unfair` those
serve whoever is ready in no order.
"""

import os
import sys

import pytest
from hypothesis import settings

from heartbeat import Settings

# `make test` searches a little, and `make test-all` once more, further (--hypothesis-profile=thorough).
settings.register_profile("heartbeat", deadline=None, derandomize=True, database=None, max_examples=30)
settings.register_profile("thorough", settings.get_profile("heartbeat"), max_examples=200)
settings.load_profile("heartbeat")


def pytest_addoption(parser):
    parser.getgroup("heartbeat").addoption(
        "--plain-path",
        action="store_true",
        help="Settings have `fast_path` off unless a test says otherwise; servers of twistd's too.",
    )


def pytest_configure(config):
    if config.getoption("--plain-path"):
        Settings.__init__.__kwdefaults__["fast_path"] = False
    if Settings().fast_path is config.getoption("--plain-path"):
        raise pytest.UsageError("--plain-path does not reach the default of Settings.fast_path")


def pytest_report_header():
    reactor = type(sys.modules["twisted.internet.reactor"]).__name__
    return f"heartbeat: on {reactor}, on the {'fast' if Settings().fast_path else 'plain'} path"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """In CI nothing is skipped: what a user's machine may lack, CI installs, or the run fails."""
    report = (yield).get_result()
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI must not do: {report.longrepr}"
