"""The fault lab itself: what passes in it and what does not, what it prints and writes, and what it measures by."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from faults import ROOT
from faults.__main__ import main, run_all, run_row
from faults.arrivals import SO_TIMESTAMPNS, TIMESPEC, Stream, came, segment
from faults.lab import FAULTS, NEEDS, Failed, Fault, Seen, granted, missing
from faults.links import Hosts, hosts, sweep
from faults.network import DEFAULTS, Ends, Found
from faults.table import MARKS, Result, as_markdown, as_text, rewritten, sums
from faults.told import Clients, Event, Told

WELL = Seen(detected=12.04, bound=15.4, recovered=1.2, recovery_bound=34.0, note="clients after 12.0 s")
LATE = Seen(detected=15.5, bound=15.4)

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("iptables"),
    reason="not run: network namespaces need root, and Debian's packages iproute2 and iptables",
)


def row(run=lambda lab: WELL, *, cause="line cut", needs=(), alone=False):
    return Fault(cause, "both ends convict", run, needs, alone)


def failing(error):
    def run(lab):
        raise error

    return row(run)


@pytest.mark.parametrize(
    ("seen", "passed"),
    [
        (Seen(), True),
        (WELL, True),
        (LATE, False),
        (Seen(detected=15.4, bound=15.4), True),
        (Seen(bound=15.4), False),
        (Seen(recovered=34.1, recovery_bound=34.0), False),
        (Seen(recovery_bound=34.0), False),
        (Seen(false_convictions=1), False),
        (Seen(lost=1), False),
        (Seen(doubled=1), False),
    ],
)
def test_a_row_passes_in_time_and_with_nothing_false_lost_or_doubled(seen, passed):
    """What has a bound must have been seen, within it."""
    assert seen.passed is passed


def test_one_table_has_every_row_with_its_figures_against_their_bounds():
    """Cause, expected, seen, false convictions, lost, doubled, recovery, passed."""
    text = as_text([Result(row(), WELL), Result(row(cause="line slow"), LATE)])
    assert len([line for line in text.splitlines() if line.startswith("line ")]) == 2
    words = " ".join(text.split())
    for head in ("cause", "expected", "seen", "false", "lost", "doubled", "recovery", "passed"):
        assert head in words
    assert "noticed in 12.0 s of 15.4 s" in words
    assert "1.2 s of 34.0 s" in words
    assert "noticed in 15.5 s of 15.4 s" in words
    assert [line.split("|")[-1].strip() for line in text.splitlines() if line.startswith("line ")] == ["yes", "NO"]


def test_over_several_runs_a_figure_is_a_range_a_count_the_most_and_the_worst_verdict_counts():
    """One row of Markdown for all runs of a row."""
    runs = [
        [Result(row(cause="a | b"), Seen(detected=6.1, bound=15.4, lost=0))],
        [Result(row(cause="a | b"), Seen(detected=11.9, bound=15.4, lost=2))],
    ]
    last = as_markdown(runs).splitlines()[-1]
    assert last == r"| a \| b | both ends convict | noticed in 6.1-11.9 s of 15.4 s | 0 | 2 | 0 |  | NO |"


def test_the_last_line_counts_what_passed_what_failed_and_what_was_not_run():
    """In plain words, for whoever reads only that."""
    well, late = Result(row(), WELL), Result(row(), LATE)
    assert sums([well, late, well]) == "2 passed, 1 failed"
    assert sums([well, Result(row(), skipped="not run here: why")]) == "1 passed, 0 failed, 1 skipped"
    assert sums([well, Result(row(), failed="no dead within 20.4 s")]) == "1 passed, 1 failed"


def test_what_a_row_needs_and_is_not_here_is_said_with_the_reason(monkeypatch):
    """Not run here, and why; nothing of the row has run."""
    monkeypatch.delenv("CI", raising=False)
    result = run_row(row(pytest.fail, needs=("no-such-tool",)))
    assert result.skipped == "not run here: no-such-tool is not installed"
    assert result.verdict == "not run here"
    assert not result.passed
    assert "not run here: no-such-tool is" in as_text([result])


def test_in_ci_what_is_not_run_has_failed(monkeypatch):
    """CI installs what a user's machine may lack."""
    monkeypatch.setenv("CI", "true")
    result = run_row(row(pytest.fail, needs=("no-such-tool",)))
    assert result.verdict == "NO"
    assert sums([result]) == "0 passed, 1 failed"


def test_where_namespaces_are_not_allowed_the_rows_say_so(monkeypatch):
    """Each row of cut links needs them, and says why they are not to be had."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setitem(NEEDS, "namespaces", lambda: "network namespaces need root")
    rows = [one for one in FAULTS if "namespaces" in one.needs]
    assert len(rows) >= 8
    assert {run_row(one).skipped for one in rows} == {"not run here: network namespaces need root"}


def test_a_tool_that_is_there_is_not_missed():
    """By its name, on the path."""
    assert missing(("sh",)) is None


def test_an_exception_is_a_failed_row_with_its_sentence(capfd):
    """What a row expects and does not see, and what nobody expects; the traceback of the latter is shown."""
    assert run_row(failing(Failed("no dead of c0 within 20.4 s"))).failed == "no dead of c0 within 20.4 s"
    assert not capfd.readouterr().err
    result = run_row(failing(ZeroDivisionError("division by zero")))
    assert (result.failed, result.verdict) == ("ZeroDivisionError: division by zero", "NO")
    assert "Traceback" in capfd.readouterr().err


def test_rows_that_run_alone_run_after_the_others_and_the_table_keeps_its_order():
    """Beside a row that needs the processor nothing runs."""
    ran = []

    def noting(name):
        return lambda lab: ran.append(name) or WELL

    rows = [row(noting("alone"), cause="alone", alone=True), row(noting("beside"), cause="beside")]
    assert [result.fault.cause for result in run_all(rows, 2)] == ["alone", "beside"]
    assert ran == ["beside", "alone"]


def test_the_document_has_the_new_table_between_its_marks_and_keeps_all_else():
    """Whatever stood between them is gone."""
    begin, end = MARKS
    text = f"# Reliability\n\n{begin}\n\nold\n\n{end}\n\nAfter it.\n"
    assert rewritten(text, "| new |") == f"# Reliability\n\n{begin}\n\n| new |\n\n{end}\n\nAfter it.\n"
    assert rewritten(rewritten(text, "| newer |"), "| new |") == rewritten(text, "| new |")


def test_a_document_without_marks_gets_them_at_its_end():
    """An empty one too."""
    begin, end = MARKS
    assert rewritten("# Reliability\n", "| t |") == f"# Reliability\n\n{begin}\n\n| t |\n\n{end}\n"
    assert rewritten("", "| t |") == f"{begin}\n\n| t |\n\n{end}\n"


@pytest.mark.parametrize("text", ["a <!-- faults --> b", "a <!-- /faults --> b", "<!-- /faults --> <!-- faults -->"])
def test_a_document_with_one_mark_alone_is_left_as_it_is(text):
    """Nobody can tell what belongs to the table."""
    with pytest.raises(ValueError, match="once each"):
        rewritten(text, "| t |")


def test_the_document_is_only_written_when_every_row_has_passed(tmp_path, monkeypatch, capsys):
    """A table with a failed row is for the screen."""
    path = tmp_path / "reliability.md"
    rows = [row()]
    monkeypatch.setattr("faults.__main__._chosen", lambda word: rows)
    assert main(["--write", str(path), "--times", "2"]) == 0
    written = path.read_text()
    assert "| line cut | both ends convict | noticed in 12.0 s of 15.4 s; clients after 12.0 s |" in written
    assert capsys.readouterr().out.count("1 passed, 0 failed") == 2
    rows[0] = row(lambda lab: LATE)
    assert main(["--write", str(path)]) == 1
    assert path.read_text() == written
    assert capsys.readouterr().out.splitlines()[-2] == "0 passed, 1 failed"


def test_what_has_not_passed_is_said_once_more_behind_the_whole_table(monkeypatch, capsys):
    """Of a long output often only the end is kept."""
    rows = [failing(Failed("no dead of c0 within 20.4 s")), row(cause="line slow")]
    monkeypatch.setattr("faults.__main__._chosen", lambda word: rows)
    assert main([]) == 1
    table, again = capsys.readouterr().out.split("what has not passed:")
    assert "line slow" in table
    assert "line slow" not in again
    assert again.split("|")[-6].split() == ["no", "dead", "of", "c0", "within", "20.4", "s"]
    assert again.splitlines()[-1] == "1 passed, 1 failed"
    rows[0] = row()
    assert main([]) == 0
    assert "not passed" not in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--only", "no such cause"], ["--times", "0"], ["--only", "line", "--write", "x"]])
def test_wrong_usage_runs_nothing_and_says_why(wrong, capsys):
    """Status 2, as with every program."""
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_every_row_has_a_cause_and_an_expectation(capsys):
    """And no two have the same cause, by which they are chosen."""
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(FAULTS) == len({one.cause for one in FAULTS}) == len({one.run for one in FAULTS})
    assert all(one.cause and one.expected for one in FAULTS)


def test_bytes_count_as_arrived_once_they_are_without_a_hole():
    """Repeated ones never do, and those behind a hole when it is filled."""
    stream = Stream(1000)
    assert stream.arrived(1000, 10)
    assert not stream.arrived(1000, 10)
    assert not stream.arrived(1020, 10)
    assert not stream.arrived(1030, 5)
    assert stream.arrived(1005, 15)
    assert not stream.arrived(1020, 15)
    assert stream.arrived(1030, 10)


def test_the_numbers_of_tcp_go_round():
    """After 2**32 comes 0."""
    stream = Stream(2**32 - 5)
    assert stream.arrived(2**32 - 5, 10)
    assert not stream.arrived(2**32 - 5, 10)
    assert stream.arrived(5, 1)


def test_a_packet_is_read_as_the_rfcs_say():
    """Ports, number, flags and the size of its data, options left out; what is no TCP is none."""
    tcp = b"\x23\x28\xc0\x00" + (77).to_bytes(4, "big") + bytes(4) + b"\x80\x12" + bytes(6) + bytes(12) + b"hello"
    head = b"\x45\x00" + (20 + len(tcp)).to_bytes(2, "big") + bytes(5) + b"\x06" + bytes(10)
    assert segment(head + tcp) == (9000, 49152, 77, 0x12, 5)
    assert segment(head[:9] + b"\x11" + head[10:] + tcp) is None
    assert segment(b"") is None


def test_a_packet_came_when_the_kernel_says_and_not_when_we_read_it():
    """By the clock that all programs of the lab go by."""
    earliest = time.monotonic()
    two_seconds_ago = TIMESPEC.pack(*divmod(time.time_ns() - 2_000_000_000, 1_000_000_000))
    moment = came([(socket.SOL_SOCKET, 1, b""), (socket.SOL_SOCKET, SO_TIMESTAMPNS, two_seconds_ago)])
    assert earliest - 2.001 <= moment <= time.monotonic() - 1.999


def test_what_a_program_says_is_kept_with_its_moment():
    """A moment that it tells is its own; of any other line it is that of its coming. A wait is bounded, or ended."""
    lines = [json.dumps({"event": "dead", "at": 7.5, "client": "c0"}), "plain words", "{no json"]
    before = time.monotonic()
    with Told([sys.executable, "-c", "print(" + repr("\n".join(lines)) + ")"]) as program:
        assert program.first("dead", client="c0").at == 7.5
        assert program.first("line", where=lambda event: "{no" in event.detail["text"]).at >= before
        assert [event.detail["text"] for event in program.events("line")] == ["plain words", "{no json"]
        with pytest.raises(Failed, match=r"no dead of c1 within 30\.0 s; the last it said: .*no json"):
            program.first("dead", client="c1", timeout=30.0)
        with pytest.raises(Failed, match="has ended"):
            program.until(time.monotonic() + 30.0)
    assert time.monotonic() - before < 25.0


@pytest.mark.parametrize(
    ("told", "seconds", "bound"),
    [
        ([(12.0, "dead"), (12.1, "closed")], 12.0, 15.4),
        ([(9.0, "suspect"), (12.2, "waiting"), (16.6, "closed")], 16.6, 16.7),
        ([(12.2, "waiting"), (16.9, "closed")], 16.9, 16.7),
        ([(9.0, "suspect"), (16.6, "closed")], None, None),
        ([(15.5, "waiting"), (16.6, "closed")], None, None),
    ],
)
def test_who_has_heard_the_server_meanwhile_is_told_by_it_and_nobody_else_may_be(told, seconds, bound):
    """A line that is cut towards the server only: its probe arrives, and then its abort does."""
    lines = [json.dumps({"event": name, "at": 100.0 + at, "client": "c0"}) for at, name in told]
    program = "import signal, sys; print(sys.argv[1], flush=True); signal.pause()"
    says, silent = ([sys.executable, "-c", program, text] for text in ("\n".join(lines), ""))
    with Clients(says) as clients, Told(silent) as server:
        ends = Ends(server, clients)
        convicted = Found(Event(115.3, "dead", "c0"), 15.3, 15.4)
        if bound is None:
            with pytest.raises(Failed, match="c0 was closed without a verdict of its own"):
                ends.told("c0", convicted, 100.0, granted(DEFAULTS))
            return
        found = ends.told("c0", convicted, 100.0, granted(DEFAULTS))
    assert found.seconds == pytest.approx(seconds)
    # What was late is excused by as much as it had no processor.
    assert found.bound - ends.excused == pytest.approx(bound)


def namespaces():
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True, timeout=30)
    return {line.split()[0] for line in listed.stdout.splitlines() if line.startswith("faults-")}


@needs_namespaces
@pytest.mark.faults
def test_two_rows_have_hosts_of_their_own_and_leave_none_behind():
    """Also where the row fails."""
    before, made = namespaces(), set()

    def run(lab):
        one, other = hosts(lab), hosts(lab)
        made.update({on.on(end)[3] for on in (one, other) for end in ("server", "client", "router")} & namespaces())
        raise Failed("this is not what was expected")

    assert run_row(row(run)).failed == "this is not what was expected"
    assert len(made) == 6
    assert not made & (before | namespaces())


@needs_namespaces
@pytest.mark.faults
def test_what_a_killed_lab_left_behind_is_swept_away_and_what_another_has_is_not():
    """By the process id in the name."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(30)
    stale = f"faults-{gone.pid}-0-server"
    subprocess.run(["ip", "netns", "add", stale], check=True, timeout=30)
    with Hosts() as mine:
        sweep()
        assert stale not in namespaces()
        assert mine.on("server")[3] in namespaces()


@needs_namespaces
@pytest.mark.faults
def test_ctrl_c_in_the_midst_of_a_row_leaves_nothing_behind():
    """No namespace, no process, and no table: status 130."""
    before = namespaces()
    with Told([sys.executable, "-m", "faults", "--only", "cut_both_ways"], cwd=ROOT) as lab:
        mine = f"faults-{lab.pid}-"
        # The first is made to see whether they are allowed.
        waiting = time.monotonic() + 60.0
        while not any(name.startswith(mine) and "-0-" not in name for name in namespaces()):
            assert time.monotonic() < waiting
        lab.signal(signal.SIGINT)
        assert lab.wait(60) == 130
        assert lab.events()[-1].detail["text"].strip() == "interrupted"
    assert not {name for name in namespaces() - before if name.startswith(mine)}


@pytest.mark.slow
def test_a_row_of_the_real_lab_passes(monkeypatch):
    """From the command line: a server, a proxy and clients, one reset, and the table with its sum."""
    monkeypatch.delenv("CI", raising=False)
    with Told([sys.executable, "-m", "faults", "--only", "RST by a proxy"], cwd=ROOT) as lab:
        status = lab.wait(120)
        said = [event.detail["text"].rstrip() for event in lab.events("line")]
    assert status == 0, "\n".join(said)
    assert "1 passed, 0 failed" in said
