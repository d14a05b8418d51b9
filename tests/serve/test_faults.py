"""What the project exists for, on real processes: a dead peer is found in time, a living one never convicted."""

import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from processes import client, script, twistd

HERE = Path(__file__).parent

# At the defaults, in seconds: the bound that the server prints, and some for starting processes and reading lines.
BOUND = 15.4
SLACK = 2.0


def real_server(settings="{}", **how):
    return script(HERE / "real_server.py", settings, **how)


def real_client(url, settings="{}", **how):
    return script(HERE / "real_client.py", url, settings, **how)


@pytest.mark.slow
def test_a_killed_server_is_told_at_once_and_tried_three_times(tmp_path):
    """SIGKILL: closed, reconnecting 1, 2, 3, unreachable, status 2."""
    with twistd(cwd=tmp_path) as server, client(server.url(), "--interval", "0.2") as run:
        run.event("pong", 20)
        server.kill()
        events = [event for event in run.json_events(60) if event["event"] != "pong"]
        assert run.wait(5) == 2
    assert [event["event"] for event in events] == [
        "closed",
        "reconnecting",
        "reconnecting",
        "reconnecting",
        "unreachable",
        "summary",
    ]
    assert [event["attempt"] for event in events[1:4]] == [1, 2, 3]
    for event, nominal in zip(events[1:4], (1000, 4000, 16000), strict=True):
        assert 0.5 * nominal <= event["delay_ms"] <= 1.5 * nominal


@pytest.mark.slow
def test_a_stopped_server_is_suspected_and_convicted_within_the_printed_bound(tmp_path):
    """SIGSTOP: suspect at the deadline, dead within the bound, counted from the stop."""
    with twistd(cwd=tmp_path) as server, client(server.url(), "--interval", "1") as run:
        run.event("pong", 20)
        run.event("pong", 20)
        server.pause()
        stopped = time.monotonic()
        suspect = run.event("suspect", BOUND)
        # Where the first answers were slow, the deadline is later.
        assert 3000 <= suspect["unanswered_ms"] <= 6000
        assert "network fluctuation: no answer for " in suspect["detail"]
        dead = run.event("dead", BOUND)
        assert time.monotonic() - stopped <= BOUND
        assert dead["reason"] == "silent"


@pytest.mark.slow
def test_a_server_that_goes_on_while_suspected_is_acknowledged_without_a_reconnect(tmp_path):
    """SIGSTOP, and SIGCONT in `suspect`: acknowledged again on the same connection, nothing lost."""
    with twistd(cwd=tmp_path) as server, client(server.url(), "--interval", "0.5") as run:
        run.event("pong", 20)
        server.pause()
        run.event("suspect", BOUND)
        server.resume()
        events = []
        for event in run.json_events(BOUND):
            events.append(event["event"])
            if events.count("pong") == 4:
                break
        run.signal(signal.SIGINT)
        summary = run.event("summary", 10)
        assert run.wait(5) == 0
    assert "acknowledged" in events
    assert not {"dead", "closed", "reconnecting"} & set(events)
    assert (summary["lost"], summary["reconnects"]) == (0, 0)


@pytest.mark.slow
def test_a_stopped_client_is_convicted_by_the_server_after_a_probe_within_the_bound():
    """The server watches: suspect after 12 s of silence, dead 3 s later, in its own words."""
    with real_server() as server, client(server.url(), "--interval", "1") as run:
        run.event("pong", 20)
        run.pause()
        stopped = time.monotonic()
        server.event("suspect", BOUND + SLACK)
        server.event("dead", BOUND + SLACK)
        assert time.monotonic() - stopped <= BOUND + SLACK
        run.resume()


FAKETIME = sorted(map(str, Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")))
needs_faketime = pytest.mark.skipif(
    not FAKETIME, reason="libfaketime is missing: install Debian's package `faketime` to run the clock-step tests"
)


class SteppedClock:
    """The system clock as one process sees it: a file says how far it is off, monotonic time is untouched."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = folder / name
        self.step(0)
        self.env = {
            "LD_PRELOAD": FAKETIME[0],
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
        }

    def step(self, seconds: int) -> None:
        self._file.write_text(f"{seconds:+d}\n")


def threads(program):
    """How many threads it has."""
    return len(list(Path(f"/proc/{program.pid}/task").iterdir()))


@needs_faketime
@pytest.mark.faults
@pytest.mark.parametrize("step", [3600, -3600])
@pytest.mark.parametrize("kind", ["ours", "embedded on the stock reactor", "on our reactor"])
def test_a_step_of_the_system_clock_convicts_nobody_and_the_beats_go_on(tmp_path, step, kind):
    """Under server and client at once: for twice the bound pongs keep coming, and nothing else happens."""
    clocks = SteppedClock(tmp_path, "server"), SteppedClock(tmp_path, "client")
    settings = '{"interval": 0.5, "timeout_min": 2.0, "timeout_max": 2.0, "probe": 1.0}'
    stock = kind == "embedded on the stock reactor"
    if stock:
        server = real_server(settings, env=clocks[0].env)
    else:
        reactor = "default" if kind == "ours" else "heartbeat"
        server = twistd("--interval", "0.5", cwd=tmp_path, env=clocks[0].env, reactor=reactor)
    with server:
        url = server.url()
        if kind == "ours":
            run = client(url, "--interval", "0.5", env=clocks[1].env)
        else:
            run = real_client(url, settings, env=clocks[1].env, reactor="default" if stock else "heartbeat")
        with run:
            run.event("pong", 20)
            for clock in clocks:
                clock.step(step)
            # What stands still after the step is poked within 2 s or so; ten pongs take 5 s more.
            events = []
            for event in run.json_events(30):
                events.append(event["event"])
                if events.count("pong") == 20:
                    break
            assert set(events) <= {"pong", "open"}, events
            # Where the process is ours, and on our reactor, nobody watches. A client has one thread more, for names.
            assert (threads(server), threads(run)) == ((2, 3) if stock else (1, 2))
        with client(url, "--count", "1") as another:
            another.event("summary", 20)
        # That the server did see its clock step: it says so in the time of its log.
        joined = server.line_with(" joined", 10)
        logged = datetime.fromisoformat(joined.split(" ")[0])
        while abs((logged - datetime.now(UTC)).total_seconds() - step) > 60:
            logged = datetime.fromisoformat(server.line_with(" joined", 10).split(" ")[0])
        told = [line for line in run.seen + run.rest() if "the system clock stepped back" in line]
        assert bool(told) == (stock and step < 0)
        # The embedded one tells of every change; what twistd's server convicts its client sees closed, above.
        if stock:
            server.stop()
            assert not [line for line in server.seen + server.rest() if '"suspect"' in line or '"dead"' in line]
