"""What is promised over a crash, on real processes: a server is killed at 200 random moments under 50 clients."""

import contextlib
import json
import os
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ports import free_port
from processes import Program, twistd

HERE = Path(__file__).parent
CLIENTS, CHATS = 50, 8
KILLS = int(os.environ.get("HEARTBEAT_KILLS", "200"))


class Rig:
    """A server on its file and its port, and the clients; `kills` times the server is killed and started again."""

    def __init__(self, folder, seed, kills):
        self.folder = folder
        self.seed = seed
        self.kills = kills
        self.chance = random.Random(seed)
        self.port = free_port(self.chance)
        # At each kill: chats whose sender does not know yet that they are handled, and those without a final status.
        self.unhandled, self.waiting, self.early = [], [], 0
        self.complaints = []

    def server(self):
        listen = f"tcp:{self.port}:interface=127.0.0.1"
        store = f"sqlite:{self.folder / 'sessions.db'}"
        return twistd("--listen", listen, "--store", store, "--messages", "chat", cwd=self.folder)

    def run(self):
        """Returns the summary of the clients' ledger."""
        script = [sys.executable, HERE / "chat_clients.py", f"ws://127.0.0.1:{self.port}/ws", self.seed, CLIENTS, CHATS]
        with contextlib.ExitStack() as life, Program(script) as clients:
            server = life.enter_context(self.server())
            while json.loads(clients.line(30))["open"] < CLIENTS:
                pass
            for number in range(self.kills):
                self.kill(server, clients, early=number > 0 and self.chance.random() < 0.125)
                life.close()
                server = life.enter_context(self.server())
            server.url()
            clients.signal(signal.SIGUSR1)
            summary = clients.event("summary", 90)
            assert clients.wait(15) == 0, clients.rest()
            server.stop()
            self.read(server)
        return summary

    def kill(self, server, clients, *, early):
        """At a moment between 0 and 1 s after it listens; or `early`, while it starts."""
        self.early += early
        if early:
            moment = time.monotonic() + self.chance.uniform(0.0, 0.6)
        else:
            server.url()
            moment = time.monotonic() + self.chance.uniform(0.0, 1.0)
        progress = self.listen_until(moment, clients)
        server.kill()
        self.read(server)
        if progress is not None:
            self.unhandled.append(progress["unhandled"])
            self.waiting.append(progress["waiting"])

    def listen_until(self, moment, clients):
        """Let time pass by listening to the clients; their latest word."""
        word = None
        while True:
            try:
                line = clients.line(moment - time.monotonic())
            except AssertionError:
                return word
            assert line is not None, "the clients ended"
            assert '"progress"' in line, line
            word = json.loads(line)

    def read(self, server):
        """Whatever a server says that it should not."""
        said = server.seen + server.rest()
        words = ("Traceback", "Unhandled", "#critical", "#error", "#warn", " bug", "failed")
        self.complaints += [line for line in said if any(word in line for word in words)]


def look_at(rig, summary):
    """The three promises, exactly."""
    sent = summary["sent"]
    # Nothing acknowledged is lost, and what is not acknowledged in the end neither: everybody resumed.
    assert summary["failed"] == {}
    assert summary["lost_sessions"] == {}
    assert summary["not_resumed"] == 0
    assert summary["handled"] == sent
    assert summary["missing"] == []
    # Nobody gets one twice, nor another's, nor in another order.
    assert summary["received"] == sent
    assert (summary["doubles"], summary["strangers"], summary["misordered"]) == (0, [], 0)
    # Every id gets one final status, after at most one `queued`.
    assert (summary["without_final"], summary["several_finals"]) == ([], [])
    assert (summary["queued_twice"], summary["queued_late"]) == ([], [])
    assert summary["finals"] == {"delivered": sent}
    assert summary["errors"] == []
    assert rig.complaints == []


@pytest.mark.slow
def test_killed_at_200_random_moments_nothing_is_lost_or_doubled_and_every_id_gets_one_final_status(tmp_path):
    """`kill -9` under 50 clients exchanging `onchat`, on two rigs side by side; everybody resumes every time."""
    rigs = []
    for number, kills in enumerate((KILLS - KILLS // 2, KILLS // 2)):
        folder = tmp_path / f"rig{number}"
        folder.mkdir()
        rigs.append(Rig(folder, seed=20261125 + number, kills=kills))
    with ThreadPoolExecutor(len(rigs)) as threads:
        summaries = list(threads.map(Rig.run, rigs))
    for rig, summary in zip(rigs, summaries, strict=True):
        figures = {name: summary[name] for name in ("sent", "handled", "received", "finals", "resumed", "not_resumed")}
        print(rig.kills, "kills,", rig.early, "of them while it started;", figures)
        print("chats under way at a kill:", sorted(rig.unhandled), "unhandled,", sorted(rig.waiting), "without a final")
        look_at(rig, summary)
        # That the work was real: at half of the kills, and more, so many chats were under way; and all came back often.
        assert summary["sent"] >= 20 * rig.kills
        assert sorted(rig.waiting)[len(rig.waiting) // 2] >= CLIENTS * CHATS // 2
        assert sorted(rig.unhandled)[len(rig.unhandled) // 2] >= CLIENTS
        assert summary["resumed"] >= CLIENTS * rig.kills // 4
