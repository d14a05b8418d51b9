"""One world after another, until there were enough: how much was lived in them, and how fast."""

from collections import Counter
from time import perf_counter, process_time

from world import Finding, World

DAY = 86_400.0


class Worlds:
    """What many worlds came to, all together. `nearest` is the nearest that any end came to its bound, in seconds."""

    def __init__(self):
        self.lives = self.steps = self.round_trips = self.handled = self.confirmed = 0
        self.client_seconds = 0.0
        self.nearest = float("-inf")
        self.seen = Counter()
        self.findings = []
        self._began, self._cpu = perf_counter(), process_time()

    def live(self, seed, **world):
        """One more; raises Finding. Returns the world."""
        one = World(seed, **world)
        try:
            return one.run()
        except Finding as finding:
            self.findings.append(finding)
            raise
        finally:
            self.lives += 1
            self.steps += one.steps
            self.round_trips += one.round_trips
            self.handled += one.ledger.handlings
            self.confirmed += one.ledger.confirmations
            # A plain page is a client, too.
            self.client_seconds += one.now * (len(one.devices) + len(one.pages))
            self.nearest = max(self.nearest, one.oracle.nearest)
            self.seen += one.seen

    @property
    def seconds(self):
        """Seconds since it began."""
        return perf_counter() - self._began

    def __str__(self):
        cpu = process_time() - self._cpu
        days = self.client_seconds / DAY
        return (
            f"{self.lives} lives, {days:.2f} client-days, {self.round_trips} round trips, {self.handled} messages;"
            f" {days / cpu * 60:.1f} client-days a minute of one core, {self.round_trips / cpu:.0f} round trips/s"
        )
