"""Growth on paper and by simulation: the document says what the scripts compute, and the settings hold as it says."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from peers import Refusing
from twisted.internet.protocol import Factory

from heartbeat import Settings
from heartbeat.core.backoff import Backoff
from heartbeat.core.errors import CloseCode

ROOT = Path(__file__).parents[2]

# Only for these two: a test of another folder may call a module as a benchmark is called.
sys.path.insert(0, str(ROOT / "benchmarks"))
import data_centre  # noqa: E402  # as said
import scale  # noqa: E402  # as said

sys.path.remove(str(ROOT / "benchmarks"))

DOCUMENT = (ROOT / "docs" / "scale.md").read_text()

# A hundredth of a million clients, of the paces and of the cores.
PART = 100
PLANS = {plan.name: plan for plan in data_centre.plans(PART)}

# The busiest second, by the mean: of so few it is chance by itself that makes it a fifth more.
MULTIPLE = 1.5


def course(name, **changes):
    """How a plan goes."""
    return data_centre.Return(replace(PLANS[name], **changes)).run()


def broken(course):
    """Which of the document's promises a course does not keep."""
    first = course.plan.settings.delays[0]
    drained = course.plan.how == "drained"
    by = course.plan.settings.window / 2 if drained else course.bound + 1.5 * first
    kept = {
        "somebody gave up": course.gave_up == 0,
        "not all are back": len(course.back) == course.plan.lost,
        "somebody was refused": not course.became["refused"],
        "somebody was dropped": not course.became["dropped"],
        "found out late": course.latest_finding <= course.bound,
        "a peak": course.peak <= MULTIPLE,
        "back late": bool(course.back) and course.back[-1] <= by + 1,
    }
    return [promise for promise, is_so in kept.items() if not is_so]


# On paper.


@pytest.mark.parametrize("name", ["units", "beats", "standing", "node", "breaking"])
def test_the_document_has_the_tables_that_the_script_prints(name):
    """`python benchmarks/scale.py --write` puts them there, and the figures of `make bench` are theirs."""
    assert scale.put(DOCUMENT, name, scale.chapters()[name]) == DOCUMENT


def test_the_figures_are_read_where_they_were_measured():
    """A benchmark's table by its heading, its row and its column, without what is in brackets."""
    measured = scale.figure(scale.HERE / "results.md", scale.IDLE, scale.OWN, "us a beat")
    row = next(line for line in (scale.HERE / "results.md").read_text().splitlines() if f"| {measured} (" in line)
    assert row.startswith(f"| {scale.OWN} |")
    assert scale.units()["lone"].value == measured


@pytest.mark.parametrize("row", ["txheartbeat, in a dream", "| ---"])
def test_a_figure_that_is_not_there_is_an_error(row):
    with pytest.raises(SystemExit, match=r"results\.md has no"):
        scale.figure(scale.HERE / "results.md", scale.IDLE, row, "us a beat")


def test_a_document_without_a_place_for_a_table_is_an_error():
    with pytest.raises(SystemExit, match="no place for weather"):
        scale.put(DOCUMENT, "weather", "| rain |")


def test_a_heartbeat_writes_nothing_into_a_store():
    """Whatever a session costs a store, its beats cost nothing: the document's figures for Redis rest on that."""
    written = scale.writes()
    assert written[f"{scale.BEATS} beats"] == 0
    assert [written[name] for name in (scale.BEGIN, scale.BREAK, scale.END)] == [1, 2, 2]


def test_the_bytes_of_a_beat_are_those_of_our_frames():
    """Masked with four bytes from a client, and back with what the server adds to the text."""
    ping, pong = scale.frames(6.0)
    text = len(b'{"type":"ping","id":14400,"ack":0}')
    assert ping == 2 + 4 + text
    assert pong == 2 + text - len(',"ack":0') + len(b',"status":"pong","clients":1000000,"ack":0')


# By simulation.


def waits(client, chance, *, after, times):
    """What the simulation's client waits after so many refusals, each `after` seconds or without a word of it."""
    return [client.wait(0.0, chance, not_before=after) for _ in range(times)]


@pytest.mark.parametrize("after", [None, 3, 20, 90])
def test_the_client_of_the_simulation_waits_as_ours_does_when_it_is_refused(start_client, world, after):
    """The same chance gives the same seconds, attempt by attempt, and then the same end."""
    header = b"" if after is None else b"Retry-After: %d\r\n" % after
    world.listen(Factory.forProtocol(lambda: Refusing(b"HTTP/1.1 503 No\r\n%s\r\n" % header)))
    ours = start_client(chance=Random(1).random)
    world.advance(400)

    client = data_centre.Client(0, Settings())
    expected = waits(client, Random(1), after=after, times=4)
    assert [status.delay for status in ours.all("reconnecting")] == expected[:3]
    assert ours.events[-1] == "unreachable"
    assert expected[3] is None


def test_the_client_of_the_simulation_waits_as_ours_does_when_its_server_drains(serve, start_client, world):
    """Inside the window that it was told; that is no attempt, and what follows is."""
    factory = serve(drain_after=2.0, drain_rate=0.1)
    ours = start_client(chance=Random(1).random)
    factory.heartbeat.drain()
    world.advance(0.5)
    world.listen(Factory.forProtocol(lambda: Refusing(b"HTTP/1.1 503 No\r\nRetry-After: 7\r\n\r\n")))
    world.advance(200)

    chance, client = Random(1), data_centre.Client(0, Settings())
    client.drained(2.0, 12.0, 0.0, Settings().window, chance.random())
    first = client.wait(0.0, chance, code=CloseCode.RESTART)
    delays = [status.delay for status in ours.all("reconnecting")]
    assert delays[0] == pytest.approx(first, abs=0.1)
    assert delays[1:] == waits(client, chance, after=7, times=3)


def test_the_client_of_the_simulation_waits_as_ours_does_after_a_restart_without_a_word():
    assert data_centre.Client(0, Settings()).wait(0.0, Random(1), code=CloseCode.RESTART) == Backoff.restarted(
        Random(1).random()
    )


@pytest.mark.parametrize("name", ["silent", "slow", "drained"])
def test_a_third_of_all_is_back_in_time_without_a_peak_and_nobody_gives_up(name):
    """With the defaults, eight nodes a data centre: found out within the bound, let in at the first attempt."""
    went = course(name)
    assert broken(went) == []
    assert went.became["accepted"].total() == went.attempts.total() == went.plan.lost


def test_a_moment_when_all_are_cut_off_is_survived():
    """Nobody gives up and nobody is dropped, though the busiest node answers after seconds."""
    went = course("loud")
    assert set(broken(went)) <= {"a peak"}
    assert 1 < went.longest < went.plan.settings.handshake_timeout


def test_beats_in_step_would_come_back_in_one_peak():
    """Of clients that all beat at the same moment: what spreads their return is that they do not."""
    assert "a peak" in broken(course("silent", part=3 * PART, spread=0.0))


def test_a_drain_without_a_window_would_be_a_peak(monkeypatch):
    """All who are asked for the first moment of it come in that moment."""
    monkeypatch.setattr(Backoff, "drained", staticmethod(lambda shortest, longest, window, u: shortest))
    assert "a peak" in broken(course("drained"))


def test_who_is_sent_to_the_lost_data_centre_for_good_may_give_up():
    """One in 27 meets it three times, which is the reason to take it out of the names that clients are told."""
    went = course("named", part=3 * PART)
    assert went.gave_up == went.plan.lost - len(went.back)
    assert 0.5 < went.gave_up / (went.plan.lost / 27) < 1.5


def test_nodes_that_are_too_few_drop_those_who_wait():
    assert "somebody was dropped" in broken(course("loud", nodes=3))


def test_a_pace_that_is_too_slow_refuses_and_who_was_told_when_comes_then():
    """503 with a Retry-After of a node's own Arrivals; nobody is back before it, and all are in the end."""
    went = course("silent", settings=Settings(handshake_rate=2000.0))
    assert "somebody was refused" in broken(went)
    assert went.gave_up == 0


def test_the_simulation_comes_out_the_same_every_time():
    """By its seed, which chooses between worlds that differ."""
    plan = replace(PLANS["silent"], part=10 * PART)
    once, again, other = (data_centre.Return(plan, seed=seed).run() for seed in (7, 7, 8))
    assert once == again
    assert once != other


def test_the_moments_of_finding_out_are_spread_over_an_interval():
    """The monitor's table: a beat that is due inside the interval, three seconds for its answer and for the probe's."""
    chance = Random(1)
    found = [data_centre.found_out_at(PLANS["silent"], chance) for _ in range(1000)]
    assert min(found) > 5.7
    assert max(found) < 12.3
    spread = Counter(int(seconds) for seconds in found if 6 <= seconds < 12)
    assert max(spread.values()) < 1.5 * min(spread.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plans", "seconds", "sizes"])
def test_the_document_has_the_tables_that_the_simulation_prints(name):
    """`python benchmarks/data_centre.py --write` puts them there."""
    assert scale.put(DOCUMENT, name, chapters()[name]) == DOCUMENT


def chapters(found={}):  # noqa: B006  # kept on purpose: it takes a minute
    """The simulation's tables, computed once."""
    if not found:
        found |= data_centre.chapters(data_centre.PART)
    return found
