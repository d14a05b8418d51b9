"""What the Python core and the JavaScript core must both do, as tests/vectors tells it; here Python does.

The same files are replayed by tests/node/vectors.test.js. What is recorded of Python must be what Python does
today, or JavaScript would be held to what Python did once.
"""

import importlib.util
import json
from itertools import product
from pathlib import Path

import pytest

from heartbeat.core.backoff import Backoff
from heartbeat.core.client_link import ClientLink
from heartbeat.core.errors import is_final_close
from heartbeat.core.link import Close, Run
from heartbeat.core.messages import OWNED, OWNED_IN_SESSION, decode, encode, pong_frame
from heartbeat.core.rtt import RoundTrip
from heartbeat.core.running import RunningTime
from heartbeat.core.session import Bounds, Session
from heartbeat.core.settings import Settings

VECTORS = Path(__file__).parents[1] / "vectors"

_spec = importlib.util.spec_from_file_location("make_vectors", VECTORS / "make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)

WALKS, RTT, BACKOFF, WIRE = (make.read(name) for name in ("walks", "rtt", "backoff", "wire"))
ANSWER = make.read("exchanges")["answer"]
SCENARIOS = make.TRANSITIONS["scenarios"]

#: What a link never does: it opens once, first, and tells a dead monitor nothing of settings and verdicts.
NEVER = {*product(("waiting", "suspect", "dead"), ("open",)), *product(("dead",), ("declare", "hold", "convict"))}


def named(vectors):
    """These, by their names."""
    return pytest.mark.parametrize("vector", vectors, ids=[vector["name"] for vector in vectors])


def replayed(scenario):
    """Each step of a scenario: the state before it, its input, and what was expected and seen after it."""
    replay = make.Replay(scenario.get("timing", {}), scenario.get("roles", {}))
    expected = make.FRESH | scenario.get("begins", {})
    assert replay.looks(0) == expected
    for (what, arguments, now_ms), answer, changes in scenario["steps"]:
        state = expected["state"]
        expected |= changes
        answered = replay.step(what, arguments, now_ms)
        yield state, what, (answer, expected), (answered, replay.looks(now_ms))


@named(SCENARIOS)
def test_the_monitor_does_what_the_table_says(vector):
    for step, (_, what, expected, seen) in enumerate(replayed(vector)):
        assert seen == expected, f"step {step}, {what}"


def test_every_state_is_met_by_every_input_that_can_reach_it():
    told = {(state, what) for scenario in SCENARIOS for state, what, _, _ in replayed(scenario)}

    assert told == {*product(("acknowledged", "waiting", "suspect", "dead"), make.INPUTS)} - NEVER


def test_names_are_told_once():
    for vectors in (SCENARIOS, WALKS, RTT, WIRE["pongs"], WIRE["messages"]):
        names = [vector["name"] for vector in vectors]
        assert len(set(names)) == len(names)


def test_what_is_one_languages_alone_says_why():
    for vector in (*SCENARIOS, *WALKS, *WIRE["pongs"], *WIRE["messages"]):
        assert ("only" in vector) == ("why" in vector)
        assert vector.get("only", "python") in ("python", "js")


@pytest.mark.parametrize("name", make.MADE)
def test_what_is_recorded_is_what_python_does_today(name):
    """If this fails and the change is meant: `python tests/vectors/make.py`, and JavaScript has to follow."""
    assert (VECTORS / f"{name}.json").read_text(encoding="utf-8") == make.text_of(make.MADE[name]())


def test_the_walks_are_many_and_go_everywhere():
    """Every input in every state, every effect, and many a peer that is busy: or they would prove little."""
    met, effects, busy = set(), set(), 0
    for walk in WALKS:
        state = "acknowledged"
        for (what, _, _), answer, changes in walk["steps"]:
            met.add((state, what))
            if isinstance(answer, list):
                effects.add(" ".join(word for word in answer if isinstance(word, str)))
            state = changes.get("state", state)
            busy += changes.get("busy", False)

    assert len(WALKS) > 300
    chance_inputs = {*make.INPUTS} - {"hold"}
    assert {*product(("acknowledged", "waiting", "suspect", "dead"), chance_inputs)} - NEVER <= met
    assert effects == {"ping", "probe", "confirm", *(f"convict {why}" for why in ("silent", "no-pong", "refused"))}
    assert busy >= 10


@named(RTT)
def test_the_round_trip_is_smoothed_so(vector):
    tick, low, high = (vector[name] / 1000 for name in ("tick_ms", "low_ms", "high_ms"))
    trip = RoundTrip()
    for sample, srtt, rttvar, timeout in vector["steps"]:
        if sample is not None:
            trip.sample(sample / 1000)
            assert [trip.srtt * 1000, trip.rttvar * 1000] == pytest.approx([srtt, rttvar])
        assert trip.timeout(tick, low, high) * 1000 == pytest.approx(timeout)


def test_the_delays_are_these():
    for plan in BACKOFF["attempts"]:
        backoff = Backoff(tuple(delay / 1000 for delay in plan["delays_ms"]), plan["attempts"])
        delays = [backoff.next_delay(u) for u in plan["u"]]
        assert [delay and delay * 1000 for delay in delays] == plan["next_delay_ms"]
    for drain in BACKOFF["drained"]:
        least, most, window = (drain[name] / 1000 for name in ("min_ms", "max_ms", "window_ms"))
        assert Backoff.drained(least, most, window, drain["u"]) * 1000 == pytest.approx(drain["delay_ms"])
    for restart in BACKOFF["restarted"]:
        assert Backoff.restarted(restart["u"]) * 1000 == pytest.approx(restart["delay_ms"])


def test_no_delay_leaves_its_bounds():
    """Whatever the core does: half to one and a half of each delay, a drain's window, 1 s to 10 s after a restart."""
    for plan in BACKOFF["attempts"]:
        nominal = [*plan["delays_ms"], *[plan["delays_ms"][-1]] * plan["attempts"]][: plan["attempts"]]
        assert plan["next_delay_ms"][len(nominal) :] == [None]
        for delay, middle in zip(plan["next_delay_ms"][: len(nominal)], nominal, strict=True):
            assert 0.5 * middle <= delay <= 1.5 * middle
    for drain in BACKOFF["drained"]:
        assert min(drain["min_ms"], drain["window_ms"] / 2) <= drain["delay_ms"] <= drain["max_ms"]
        assert drain["delay_ms"] <= drain["window_ms"] / 2
    assert all(1000 <= restart["delay_ms"] < 10_000.001 for restart in BACKOFF["restarted"])


def test_a_client_stays_away_after_these_codes_and_no_others():
    assert [code for code in range(5000) if is_final_close(code)] == BACKOFF["final"]
    assert {1000, 1002, 1003, 1007, 1008, 1009, 1010, *range(4400, 4500)} == {*BACKOFF["final"]}


@named(WIRE["pongs"])
@pytest.mark.parametrize("members", [{"status": "pong"}, {"status": "pong", "clients": 3}], ids=["client", "server"])
@pytest.mark.parametrize("in_session", [False, True])
def test_a_ping_is_answered_so(vector, members, in_session):
    payload, owned = vector["ping"].encode(), OWNED_IN_SESSION if in_session else OWNED
    if in_session:
        members = members | {"ack": 17}
    spliced = encode(members)[1:-1]

    answer = pong_frame(payload, decode(payload), b"," + spliced + b"}", owned).decode()

    pong = vector.get("in_session", vector["pong"]) if in_session else vector["pong"]
    assert answer == pong.replace("…", spliced.decode())
    # No member of the answerer's is in it twice, and what is not his is as it was.
    theirs = {name: value for name, value in json.loads(payload).items() if name not in owned}
    assert json.loads(answer) == theirs | members


@named([vector for vector in WIRE["messages"] if vector.get("only", "python") == "python"])
def test_a_client_answers_nothing_but_a_ping(vector):
    settings, now = Settings(), 0.0
    link = ClientLink(settings, RunningTime(settings.tick, now), now)
    link.open(now)
    if vector["level"] == 1:
        link.receive(encode(ANSWER), False, now)
        link.admitted(Session("s-1", "e-1", "c-1", Bounds(1000, 1_048_576)), now)
    link.receive(b'{"type":"ping","id":1,"status":"pong"}', False, now)
    assert (link.opened, link.level) == (True, vector["level"])

    effects = link.receive(vector["text"].encode(), False, now)

    written = [effect.decode() for effect in effects if type(effect) is bytes]
    assert written == ([] if vector["answer"] is None else [vector["answer"]])
    assert not [effect for effect in effects if type(effect) is Close or type(effect) is Run]
    assert link.monitor.state == "acknowledged"
