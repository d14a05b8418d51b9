"""What the fuzzers have found worth keeping is tried again, and they themselves find what is planted for them.

`fuzz/README.md` tells how they are run for longer. They take what they send and what they compare from the tests beside
this one, so that an input which breaks something here is seen again by `python -m fuzz TARGET --replay FILE`.
"""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from twins import Mistake

from fuzz import corpora, findings
from fuzz.breeding import Breed
from fuzz.choices import Choices
from fuzz.engines import has_atheris
from fuzz.findings import Findings
from fuzz.reached import look_at
from fuzz.targets import LOOKED_AT, NAMES, load

PROJECT = Path(__file__).parents[2]

FOUND = [(name, path) for name in NAMES for path in findings.kept(name)]

#: So many inputs of each target are tried each time, the whole corpus where there is time.
SAMPLE = 30


@pytest.fixture(autouse=True)
def mistakes(failures):
    """What the applications of `twins` get wrong on purpose is logged, and that is right; nothing else is."""
    yield
    failures.flush(Mistake)


def replay(name, paths):
    """Try these inputs, and say by which one a promise is broken."""
    target = load(name)
    for path in paths:
        try:
            target.try_one(path.read_bytes())
        except Exception as error:
            raise AssertionError(f"python -m fuzz {name} --replay {path}") from error


# What is kept.


def every(things, count):
    """So many of these, from all along them."""
    return things[:: 1 + (len(things) - 1) // count]


@pytest.mark.parametrize("name", NAMES)
def test_no_input_of_a_sample_of_the_corpus_breaks_anything(name):
    """A few of each target, of each size."""
    paths = sorted(corpora.corpus(name).iterdir(), key=lambda path: (path.stat().st_size, path.name))

    assert len(paths) > SAMPLE
    replay(name, every(paths, SAMPLE))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_input_of_the_corpus_breaks_anything(name):
    replay(name, sorted(corpora.corpus(name).iterdir()))


@pytest.mark.parametrize(("name", "path"), FOUND, ids=[f"{name}-{path.name}" for name, path in FOUND])
def test_what_once_broke_something_does_so_no_more(name, path):
    replay(name, [path])


@pytest.mark.parametrize("name", NAMES)
def test_the_inputs_to_start_from_break_nothing(name):
    target = load(name)
    beginnings = list(target.beginnings())

    assert len(beginnings) > 20
    assert max(map(len, beginnings)) <= target.LONGEST
    for data in every(beginnings, SAMPLE):
        target.try_one(data)


def test_the_corpora_are_small():
    """So that all of them can be tried in seconds, and looked through by a person."""
    sizes = [path.stat().st_size for name in NAMES for path in corpora.corpus(name).iterdir()]

    assert sum(sizes) < 300_000


@pytest.mark.parametrize("name", NAMES)
def test_what_a_target_looks_at_is_there(name):
    """A module that has been renamed would never be looked at, and nobody would notice."""
    for module in LOOKED_AT[name]:
        import_module(module)


# The tools.


def test_the_same_bytes_decide_alike_and_where_they_end_the_first_is_chosen():
    one, other = Choices(b"heartbeat"), Choices(b"heartbeat")

    def drawn(choices):
        return choices.random(), choices.choice("abc"), choices.randrange(10), choices.pick("abc"), choices.bytes(2)

    assert drawn(one) == drawn(other)
    assert one.left < 9
    assert drawn(Choices(b"")) == (0.0, "a", 0, "a", b"")


MAZE = """
def walk(data):
    if data[:1] == b"d":
        if data[1:2] == b"e":
            if data[2:3] == b"a" or len(data) > 9:
                assert data[3:4] != b"d", "the end"
"""


@pytest.fixture
def maze(tmp_path, monkeypatch):
    """A module to walk through, and what is reached in it."""
    (tmp_path / "maze.py").write_text(MAZE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    reached = look_at(["maze"])
    yield import_module("maze"), reached
    del sys.modules["maze"]


def test_each_branch_and_each_operand_that_is_reached_is_told(maze):
    module, reached = maze
    seen = []
    for data in (b"", b"d", b"dea", b"de.."):
        reached.clear()
        module.walk(data)
        seen.append(frozenset(reached))

    assert len(set(seen)) == 4
    assert seen[1] - seen[0]
    assert seen[3] - seen[2]


def test_what_was_imported_before_cannot_be_looked_at_and_says_so():
    with pytest.raises(RuntimeError, match=r"imported before anybody looked: heartbeat\.core\.messages"):
        look_at(["heartbeat.core.messages"])


@pytest.fixture
def found(tmp_path, monkeypatch, maze):
    """The findings of the maze, and where they are written."""
    monkeypatch.setattr(findings, "HERE", tmp_path)
    return Findings("maze", maze[0].walk), tmp_path / "findings" / "maze"


def test_our_own_fuzzer_finds_its_way_is_the_same_for_a_seed_and_a_finding_is_made_small(maze, found, capsys):
    """Step by step, by what it reaches on its way."""
    module, reached = maze
    made, folder = found

    def lived(try_one):
        breed = Breed(1, (b"a", b"d", b"e", b"x"), 16)
        breed.try_it(module.walk, reached, b"0123456789")
        return [data for data, is_new in breed.live(try_one, reached, 60, 1500) if is_new]

    first = lived(made.tried)

    assert lived(made.tried) == first
    assert [path.read_bytes() for path in folder.iterdir()] == [b"dead"]
    said = capsys.readouterr().out
    assert said.count("finding maze: the end") == 1
    assert f"again by: python -m fuzz maze --replay {folder}" in said


def test_what_was_found_before_is_told_again_and_not_written_again(found, maze, capsys):
    made, folder = found
    made.tried(b"dead and gone")
    before = [*folder.iterdir()]

    again = Findings("maze", maze[0].walk)
    again.tried(b"deadlock")

    assert [*folder.iterdir()] == before
    assert capsys.readouterr().out.count("the end") == 2


def test_of_inputs_that_reach_the_same_the_shortest_is_kept_and_none_that_breaks_something(maze, tmp_path):
    module, reached = maze
    folder = tmp_path / "kept"
    corpora.write(folder, b"left over")
    inputs = [b"d....", b"d", b"", b"zz", b"dea", b"deaf", b"de", b"de........", b"debate"]

    count, size, branches = corpora.keep(folder, [*inputs, b"dead"], Findings("maze", module.walk).breaks, reached)

    assert corpora.read(folder) == [b"", b"d", b"de", b"dea"]
    assert (count, size) == (4, 6)
    assert branches > 4


# The fuzzers at work. What they are started with is what a person would type.


def fuzz(*arguments, cwd=PROJECT, seconds=120):
    run = subprocess.run(
        [sys.executable, "-m", "fuzz", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert run.stderr == ""
    return run.returncode, run.stdout.splitlines()


def copied(folder, *left_out):
    """What the fuzzers need, in a folder of its own, but for what is left out of it."""
    ignore = shutil.ignore_patterns("__pycache__", "findings", *left_out)
    for part in ("heartbeat", "fuzz", "tests/wire"):
        shutil.copytree(PROJECT / part, folder / part, ignore=ignore)


#: Ours, and atheris where it is installed, which the environment of the tests does without.
ENGINES = {"our own": ["--without-atheris"]} | ({"atheris": []} if has_atheris() else {})


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_a_fuzzer_finds_nothing_in_a_short_time(name, engine, tmp_path):
    status, lines = fuzz(name, "--seconds", 10, "--seed", 7, "--corpus", tmp_path, *engine)

    assert (status, lines[-1]) == (0, "1 passed, 0 failed"), "\n".join(lines)
    executions = re.search(r"([\d,]+) executions", lines[-2])[1]
    assert int(executions.replace(",", "")) > 200


#: For each target a defect as one may slip in.
PLANTED = {
    "decoder": ("core/messages.py", " and OWNED.isdisjoint(message)", ""),
    "session": ("core/session.py", "if upto > self.sent:", "if upto > self.sent + 1:"),
    "fastpath": ("mixin.py", "not (self.data or self.current_frame or self.inside_message)", "not self.data"),
    "handshake": ("handshake.py", '        or "sec-websocket-protocol" in headers\n', ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_fuzzer_finds_what_is_planted_and_its_finding_shows_it_again(name, tmp_path):
    copied(tmp_path)
    module, good, bad = PLANTED[name]
    path = tmp_path / "heartbeat" / module
    sound = path.read_text()
    assert sound.count(good) == 1
    path.write_text(sound.replace(good, bad))

    status, lines = fuzz(name, "--seconds", 15, cwd=tmp_path)
    again = [line.rpartition(" ")[2] for line in lines if " again by: " in line]

    assert (status, lines[-1]) == (1, "0 passed, 1 failed"), "\n".join(lines)
    assert fuzz(name, "--replay", *again, cwd=tmp_path)[0] == 1
    path.write_text(sound)
    assert fuzz(name, "--replay", *again, cwd=tmp_path)[0] == 0


@pytest.mark.slow
def test_all_fuzzers_share_the_time_keep_what_is_new_and_end_with_their_sum(tmp_path):
    """In a copy without a corpus, where there is much that is new."""
    copied(tmp_path, "corpus")
    kept = tmp_path / "kept"

    status, lines = fuzz("all", "--seconds", 48, "--runs", 1000, "--without-atheris", "--corpus", kept, cwd=tmp_path)

    assert (status, lines[-1]) == (0, f"{len(NAMES)} passed, 0 failed"), "\n".join(lines)
    assert [line.split()[0] for line in lines[-1 - len(NAMES) : -1]] == [*NAMES]
    assert {name: len(corpora.read(kept / name)) > 0 for name in NAMES} == dict.fromkeys(NAMES, True)
