"""The store in one SQLite file: whose file it is, what a transaction holds, failing disks, and the power going."""

import queue
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.logger import formatEvent
from twisted.python.failure import Failure

from heartbeat import sqlite
from heartbeat.core.errors import StoreError
from heartbeat.sqlite import SqliteStore
from heartbeat.store import Append, Head, Mark, Settle
from heartbeat.tables import Tables, claim

#: Nothing here takes a second; this bounds what hangs.
PATIENCE = 20

#: How another program would read a store's file.
READ = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT * FROM epoch')"

#: A program that starts a store and ends, as one does that fails.
START = """
import sys, threading
from heartbeat.sqlite import SqliteStore

class Reactor:
    called = threading.Event()

    def callFromThread(self, *call):
        self.called.set()

SqliteStore(sys.argv[1], reactor=Reactor()).start()
assert Reactor.called.wait(10)
"""

ALICE = Head("s1", "e1", "alice", 120.0)


class Turns:
    """A reactor that is called from other threads only, and makes those calls when it is told to."""

    def __init__(self):
        self.made = 0
        self._calls = queue.Queue()

    def callFromThread(self, call, *arguments, **keywords):
        self._calls.put((call, arguments, keywords))

    def turn(self):
        """Wait for the next call, and make it."""
        call, arguments, keywords = self._calls.get(timeout=PATIENCE)
        self.made += 1
        call(*arguments, **keywords)

    def result(self, asked):
        """What was asked for, as soon as it is there; raises what it failed with."""
        if not isinstance(asked, Deferred):
            return asked
        came = []
        asked.addBoth(came.append)
        while not came:
            self.turn()
        if isinstance(came[0], Failure):
            raise came[0].value
        return came[0]

    def sentence(self, log):
        """The next sentence that is logged."""
        told = len(log)
        while len(log) == told:
            self.turn()
        return formatEvent(log[-1])


class Disk:
    """What the store's statements go through: it counts the commits, and fails when it is told to."""

    def __init__(self):
        self.commits = 0
        self.threads = set()
        #: How often a statement is yet to fail.
        self.failures = {}
        self.error = sqlite3.OperationalError("disk I/O error")
        #: What is done before a statement, once.
        self.between = {}
        #: What each transaction is preceded by.
        self.before = None
        #: Opening the file and each commit wait for this.
        self.turns = threading.Event()
        self.turns.set()
        #: A commit has begun, whether or not the disk turns.
        self.busy = threading.Event()

    def connect(self, *arguments, **options):
        assert self.turns.wait(PATIENCE)
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, statement, *parameters):
                if statement == "BEGIN IMMEDIATE" and disk.before:
                    super().execute(disk.before)
                disk.asked(statement)
                return super().execute(statement, *parameters)

        return sqlite3.connect(*arguments, factory=Connection, **options)

    def asked(self, statement):
        self.threads.add(threading.current_thread().name)
        self.between.pop(statement, lambda: None)()
        if statement == "COMMIT":
            self.busy.set()
            assert self.turns.wait(PATIENCE)
        if self.failures.get(statement, 0) > 0:
            self.failures[statement] -= 1
            raise self.error
        self.commits += statement == "COMMIT"

    def stand_still(self):
        """Let the file's opening, or the next commit, wait until the disk turns again."""
        self.busy.clear()
        self.turns.clear()


def threads():
    """The threads of stores."""
    return [thread for thread in threading.enumerate() if thread.name == "heartbeat-store"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """A thread's last act is to say that it ends; a moment later it is gone."""
    yield
    for thread in threads():
        thread.join(PATIENCE)
    assert threads() == []


@pytest.fixture
def turns():
    return Turns()


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sessions.db"


@pytest.fixture
def make(turns, disk, path):
    """A store of the file, not started; stopped in the end."""
    made = []

    def make(path=path):
        store = SqliteStore(path, reactor=turns)
        store._connect = disk.connect
        made.append(store)
        return store

    yield make
    disk.failures.clear()
    disk.turns.set()
    for store in made:
        turns.result(store.stop())


@pytest.fixture
def store(make, turns):
    """A store that has started."""
    store = make()
    turns.result(store.start())
    return store


def by_hand(path, statement):
    """What somebody's own hands do to a file that no store has open."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


def refusal(asked, turns):
    """The sentence of the StoreError that this fails with."""
    with pytest.raises(StoreError) as refused:
        turns.result(asked)
    return str(refused.value)


# Whose file it is.


def test_the_constructor_opens_neither_file_nor_thread(make, path):
    make()

    assert not path.exists()
    assert threads() == []


def test_the_path_is_the_one_of_the_constructors_directory(make, turns, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = make("here.db")
    monkeypatch.chdir("/")

    turns.result(store.start())

    assert (tmp_path / "here.db").exists()


def test_a_new_file_is_for_its_owner_only_and_so_is_its_log(store, path):
    for file in (path, path.with_name("sessions.db-wal")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_so_it_is_where_a_link_leads(make, turns, path, tmp_path):
    path.symlink_to(tmp_path / "elsewhere.db")

    turns.result(make().start())

    assert stat.S_IMODE((tmp_path / "elsewhere.db").stat().st_mode) == 0o600


def test_a_file_that_was_there_keeps_its_mode(make, turns, path):
    path.touch(0o640)
    path.chmod(0o640)

    turns.result(make().start())

    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_commit_is_on_the_disk_and_nobody_else_gets_in(store, turns):
    def pragmas(tables):
        names = ("journal_mode", "synchronous", "locking_mode")
        return [tables._execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert turns.result(store._ask(pragmas)) == ["wal", 2, "exclusive"]


def test_a_file_in_use_is_refused_within_the_process(store, make, turns, path):
    second = make()

    assert refusal(second.start(), turns) == f"the store {path} cannot be used: it is in use"
    assert turns.result(store.append([])) == ()


def test_a_file_in_use_is_refused_to_another_process(store, turns, path):
    child = subprocess.run(
        [sys.executable, __file__, path], capture_output=True, text=True, timeout=PATIENCE, check=False
    )

    assert child.stderr == f"the store {path} cannot be used: it is in use\n"
    reading = subprocess.run(
        [sys.executable, "-c", READ, path],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "database is locked" in reading.stderr
    assert turns.result(store.append([])) == ()


def test_of_two_that_make_a_file_at_the_same_time_one_gets_it(make, turns, disk, path):
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)) as second:

        def claim_too():
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                claim(path, second)

        disk.between["PRAGMA application_id"] = claim_too

        assert turns.result(make().start()).heads == ()
        assert disk.between == {}


def test_what_is_no_database_is_refused_and_stays_as_it_was(make, turns, path):
    path.write_text("Dear diary, " * 1000)

    assert refusal(make().start(), turns) == f"the store {path} cannot be used: file is not a database"
    assert path.read_text() == "Dear diary, " * 1000


@pytest.mark.parametrize("statement", ["CREATE TABLE t (x)", "PRAGMA user_version = 1", "PRAGMA application_id = 7"])
def test_the_database_of_another_program_is_refused_and_stays_as_it_was(make, turns, path, statement):
    by_hand(path, statement)
    before = path.read_bytes()

    assert refusal(make().start(), turns) == f"the store {path} cannot be used: it is the database of another program"
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(make, turns, path):
    store = make()
    turns.result(store.start())
    turns.result(store.stop())
    by_hand(path, "PRAGMA user_version = 2")

    assert refusal(store.start(), turns) == f"the store {path} cannot be used: its schema is 2, the one known here is 1"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nowhere/sessions.db", "No such file or directory"),
        ("file/sessions.db", "Not a directory"),
        ("folder", "unable to open database file"),
        ("a\0b", "embedded null"),
    ],
)
def test_what_cannot_be_made_is_refused_and_the_thread_is_gone(make, turns, tmp_path, name, why):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    store = make(tmp_path / name)

    # The words are the system's, and Python's, which differ by its version.
    head, said, end = refusal(store.start(), turns).partition("cannot be used: ")
    assert (head, said) == (f"the store {tmp_path / name} ", "cannot be used: ")
    assert why in end
    for thread in threads():
        thread.join(PATIENCE)
    assert threads() == []


def test_what_was_asked_of_a_store_that_did_not_open_fails_with_the_same_sentence(make, turns, disk, path):
    path.write_text("Dear diary, " * 1000)
    store = make()
    disk.stand_still()
    started, opened = store.start(), store.open(ALICE)
    disk.turns.set()

    assert refusal(opened, turns) == refusal(started, turns)
    assert refusal(store.open(ALICE), turns) == f"the store {path} is not open"


def test_a_start_that_failed_can_be_tried_again(make, turns, tmp_path):
    store = make(tmp_path / "later" / "sessions.db")
    refusal(store.start(), turns)
    (tmp_path / "later").mkdir()

    assert turns.result(store.start()).heads == ()


# What it keeps from start to start.


def test_the_epoch_is_kept_in_the_file(make, turns):
    first, second = make(), make()
    epoch = turns.result(first.start()).epoch
    turns.result(first.stop())

    assert turns.result(second.start()).epoch == epoch
    assert len(epoch) == 16


def test_a_file_without_epoch_is_a_restored_backup_and_gets_a_new_one(make, turns, path):
    store = make()
    epoch = turns.result(store.start()).epoch
    turns.result(store.open(ALICE))
    turns.result(store.stop())
    by_hand(path, "DELETE FROM epoch")

    contents = turns.result(store.start())

    assert contents.epoch != epoch
    assert contents.heads == (ALICE,)
    turns.result(store.stop())
    assert turns.result(store.start()).epoch == contents.epoch


def test_what_was_stopped_is_one_file_and_all_is_in_it(store, turns, path):
    asked = [store.open(ALICE), store.append([Append("s1", b"{}")])]

    turns.result(store.stop())

    assert [deferred.result for deferred in asked] == [None, (1,)]
    assert [file.name for file in path.parent.iterdir()] == ["sessions.db"]
    assert by_hand(path, "SELECT seq, payload FROM messages") == [(1, b"{}")]


def test_stopping_is_possible_at_any_time_and_any_number_of_times(make, turns):
    store = make()
    turns.result(store.stop())

    started = store.start()
    stops = [store.stop(), store.stop()]

    assert turns.result(stops[1]) is None
    assert stops[0].called
    assert started.result.heads == ()
    assert turns.result(store.stop()) is None


def test_a_program_that_ends_without_stopping_it_does_not_hang(path):
    subprocess.run([sys.executable, "-c", START, path], timeout=PATIENCE, check=True)

    assert by_hand(path, "SELECT count(*) FROM epoch") == [(1,)]


def test_before_start_and_after_stop_everything_fails_at_once(make, turns, path):
    store = make()
    sentence = f"the store {path} is not open"
    assert refusal(store.append([]), turns) == sentence

    turns.result(store.start())
    stopped = store.stop()

    assert refusal(store.replay("s1", 0), turns) == sentence
    turns.result(stopped)
    assert refusal(store.open(ALICE), turns) == sentence


def test_a_store_starts_anew_even_while_it_is_still_stopping(store, turns, disk):
    disk.stand_still()
    opened = store.open(ALICE)
    stopped = store.stop()

    started = store.start()
    disk.turns.set()

    assert turns.result(started).heads == (ALICE,)
    assert stopped.called
    assert opened.called


def test_to_start_what_has_started_tells_its_contents(store, turns):
    turns.result(store.open(ALICE))

    assert turns.result(store.start()).heads == (ALICE,)


@pytest_twisted.ensureDeferred
async def test_without_another_the_reactor_is_the_global_one(path):
    store = SqliteStore(path)
    await store.start()
    await store.open(ALICE)
    assert await store.append([Append("s1", b"{}")]) == (1,)
    await store.stop()


# Transactions.


def test_only_the_stores_thread_touches_the_file(store, turns, disk):
    turns.result(store.open(ALICE))
    turns.result(store.stop())

    assert disk.threads == {"heartbeat-store"}


def test_what_was_asked_while_the_disk_was_busy_is_one_commit_and_one_call(store, turns, disk):
    disk.stand_still()
    opened = store.open(ALICE)
    assert disk.busy.wait(PATIENCE)
    commits, made = disk.commits, turns.made

    appended = [store.append([Append("s1", b"%d" % n)]) for n in range(1, 101)]
    disk.turns.set()

    assert turns.result(appended[-1]) == (100,)
    assert opened.called
    assert [deferred.result for deferred in appended[:-1]] == [(n,) for n in range(1, 100)]
    assert disk.commits == commits + 2
    assert turns.made == made + 2


def test_nothing_is_answered_before_it_is_committed(store, turns, disk):
    disk.stand_still()
    opened = store.open(ALICE)
    assert disk.busy.wait(PATIENCE)

    assert turns._calls.empty()
    assert not opened.called
    disk.turns.set()
    assert turns.result(opened) is None


def test_a_transaction_has_its_bound(store, turns, disk, monkeypatch):
    monkeypatch.setattr(sqlite, "BATCH", 10)
    disk.stand_still()
    store.open(ALICE)
    assert disk.busy.wait(PATIENCE)
    commits = disk.commits

    appended = [store.append([Append("s1", b"{}")]) for _ in range(25)]
    disk.turns.set()

    assert turns.result(appended[-1]) == (25,)
    assert disk.commits == commits + 1 + 3


def test_results_come_in_the_order_of_the_calls_failures_too(store, turns):
    fired = []
    asked = [
        store.open(ALICE),
        store.append([Append("s1", b"{}")]),
        store.replay("nobody", 0),
        store.detach("s1", 7, 1.0),
        store.replay("s1", 0),
        store.stop(),
    ]
    for number, deferred in enumerate(asked):
        deferred.addBoth(lambda result, number=number: fired.append((number, type(result))))

    while len(fired) < len(asked):
        turns.turn()

    kinds = [type(None), tuple, Failure, Failure, tuple, type(None)]
    assert fired == list(enumerate(kinds))


def test_what_can_never_be_done_fails_alone_and_wholly(store, turns, disk):
    turns.result(store.open(ALICE))
    disk.stand_still()
    before = store.append([Append("s1", b"1")])
    assert disk.busy.wait(PATIENCE)

    impossible = store.handle("s1", 0, 5, [Append("s1", b"2"), Mark("s1", "key", "value"), Append("s1", object())])
    unknown = store.append([Append("s1", b"2"), "no effect"])
    too_big = store.handle("s1", 0, 2**64, [])
    stale = store.handle("s1", 1, 5, [Append("s1", b"2")])
    again = store.open(ALICE)
    after = store.append([Append("s1", b"2")])
    disk.turns.set()

    assert turns.result(after) == (2,)
    assert before.called
    with pytest.raises((sqlite3.ProgrammingError, sqlite3.InterfaceError)):
        turns.result(impossible)
    with pytest.raises(KeyError):
        turns.result(unknown)
    with pytest.raises(OverflowError):
        turns.result(too_big)
    assert refusal(stale, turns) == "the session was taken over: fence 1, not 0"
    assert refusal(again, turns) == "the session is in the store already"
    (head,) = turns.result(store.start()).heads
    assert head == Head("s1", "e1", "alice", 120.0, sent=2)


def test_effects_are_those_of_the_moment_of_the_call(store, turns, disk):
    turns.result(store.open(ALICE))
    effects = [Append("s1", b"{}")]
    disk.stand_still()

    appended = store.append(effects)
    effects.clear()
    disk.turns.set()

    assert turns.result(appended) == (1,)


def test_no_operation_reads_a_whole_table(path):
    connection = sqlite3.connect(":memory:", isolation_level=None)
    claim(path, connection)
    tables = Tables(connection)
    statements = []
    connection.set_trace_callback(statements.append)

    tables.open(ALICE)
    tables.append(
        [Append("s1", b"{}", "r"), Append("s1", b"{}"), Settle("r"), Mark("s1", "k", "v"), Mark("s1", "k", None)]
    )
    tables.handle("s1", 0, 1, [])
    tables.confirm("s1", 0, 1, [])
    tables.replay("s1", 0)
    tables.detach("s1", 0, 1.0)
    tables.take_over("s1", 1)
    tables.expire("s1", 1, [])
    connection.set_trace_callback(None)

    plans = [row[3] for statement in statements for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
    connection.close()
    assert len(plans) > 15
    assert [plan for plan in plans if plan.startswith("SCAN") and plan != "SCAN CONSTANT ROW"] == []
    assert any("INDEX receipts" in plan for plan in plans)


# Failing disks.


@pytest.fixture
def impatient(monkeypatch):
    """What failed is tried again soon."""
    monkeypatch.setattr(sqlite, "RETRY", 0.005)


@pytest.fixture
def patient(monkeypatch):
    """What failed is not tried again in the time of a test."""
    monkeypatch.setattr(sqlite, "RETRY", 3600)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "INSERT INTO messages VALUES (?, ?, ?, ?)", "COMMIT"])
def test_a_disk_that_failed_heals_and_all_is_done_once_and_in_order(store, turns, disk, log, path, statement):
    turns.result(store.open(ALICE))
    disk.failures[statement] = 4

    appended = [store.append([Append("s1", b"%d" % n)]) for n in range(1, 11)]

    assert turns.sentence(log) == f"the store {path} fails: disk I/O error; what is asked of it waits"
    assert log[-1]["log_level"].name == "warn"
    assert turns.sentence(log) == f"the store {path} works again"
    assert [turns.result(deferred) for deferred in appended] == [(n,) for n in range(1, 11)]
    assert [kept.payload for kept in turns.result(store.replay("s1", 0))] == [b"%d" % n for n in range(1, 11)]
    assert len(log) == 2


@pytest.mark.usefixtures("impatient")
def test_a_full_disk_is_waited_for(store, turns, disk, log, path):
    turns.result(store.open(ALICE))
    disk.before = "PRAGMA max_page_count = 20"

    appended = [store.append([Append("s1", b"x" * 5000)]) for _ in range(50)]

    assert turns.sentence(log) == f"the store {path} fails: database or disk is full; what is asked of it waits"
    disk.before = "PRAGMA max_page_count = 100000"
    assert [turns.result(deferred) for deferred in appended] == [(n,) for n in range(1, 51)]
    assert formatEvent(log[-1]) == f"the store {path} works again"


@pytest.mark.usefixtures("patient")
def test_stopping_tries_a_failing_disk_once_more(store, turns, disk, log):
    disk.failures["COMMIT"] = 1
    opened = store.open(ALICE)
    turns.sentence(log)

    assert turns.result(store.stop()) is None

    assert opened.result is None
    assert turns.result(store.start()).heads == (ALICE,)


@pytest.mark.usefixtures("patient")
def test_what_a_failing_disk_never_took_fails_when_the_store_is_stopped(store, turns, disk, log, path, monkeypatch):
    monkeypatch.setattr(sqlite, "BATCH", 2)
    disk.failures["COMMIT"] = 2
    fired = []
    asked = [store.open(ALICE), *(store.append([Append("s1", b"{}")]) for _ in range(4))]
    for number, deferred in enumerate(asked):
        deferred.addErrback(lambda failure, number=number: fired.append((number, str(failure.value))))
    turns.sentence(log)

    assert turns.result(store.stop()) is None

    assert fired == [(number, f"the store {path} cannot be used: disk I/O error") for number in range(5)]
    assert len(log) == 1
    assert turns.result(store.start()).heads == ()


def test_a_damaged_file_is_refused_at_the_start(make, turns, path):
    store = make()
    turns.result(store.start())
    turns.result(store.stop())
    ((page,),) = by_hand(path, "SELECT rootpage FROM sqlite_master WHERE name = 'sessions'")
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)

    assert refusal(store.start(), turns) == f"the store {path} cannot be used: database disk image is malformed"


@pytest.mark.usefixtures("impatient")
def test_a_file_that_is_damaged_later_is_waited_for(store, turns, disk, log, path):
    disk.error = sqlite3.DatabaseError("database disk image is malformed")
    disk.failures["INSERT INTO messages VALUES (?, ?, ?, ?)"] = 2
    store.open(ALICE)

    appended = store.append([Append("s1", b"{}")])

    sentence = f"the store {path} fails: database disk image is malformed; what is asked of it waits"
    assert turns.sentence(log) == sentence
    assert turns.result(appended) == (1,)


# The power going.


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
def test_what_was_committed_outlives_a_kill(make, turns, path, seed):
    """Killed without warning at some moment, twice over the same file: every number that was told is there."""
    chance = random.Random(seed)
    told = 0
    for _ in range(2):
        with subprocess.Popen([sys.executable, __file__, path], stdout=subprocess.PIPE, text=True) as child:
            told = int(next(child.stdout))
            for _ in range(chance.randrange(1, 400)):
                told = int(next(child.stdout))
            child.send_signal(signal.SIGKILL)
            told = max([told, *(int(line) for line in child.stdout if line.endswith("\n"))])
        assert child.returncode == -signal.SIGKILL

    store = make()
    (head,) = turns.result(store.start()).heads
    kept = turns.result(store.replay("s1", 0))

    assert head.sent >= told > 0
    assert [(one.seq, one.payload) for one in kept] == [(n, b"%d" % n) for n in range(1, head.sent + 1)]


def append_for_ever(path):
    """Append to one session as fast as the disk takes it, some at a time, and tell each number that is committed."""
    turns = Turns()
    store = SqliteStore(path, reactor=turns)
    try:
        heads = turns.result(store.start()).heads
    except StoreError as error:
        sys.exit(str(error))
    if not heads:
        turns.result(store.open(ALICE))
    sent = heads[0].sent if heads else 0
    numbers = count(sent + 1)
    print(sent, flush=True)

    def append_next(result):
        print(*result, flush=True)
        append()

    def append():
        store.append([Append("s1", b"%d" % next(numbers))]).addCallback(append_next)

    for _ in range(20):
        append()
    while True:
        turns.turn()


if __name__ == "__main__":
    append_for_ever(Path(sys.argv[1]))
