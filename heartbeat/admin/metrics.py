"""The numbers of a server for Prometheus: names, meanings and units. docs/watching.md says what to make of them.

Reads what was counted, each time that somebody asks; keeps no numbers of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from math import inf
from typing import Any

from heartbeat._version import __version__
from heartbeat.admin.view import Lines, View, word_of
from heartbeat.core.presence import Standing
from heartbeat.tally import Histogram

try:
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.exposition import choose_encoder
except ImportError:
    CollectorRegistry = None  # type: ignore[assignment,misc]  # said when somebody asks for metrics

__all__ = ["MISSING", "Metrics", "is_installed"]

MISSING = "there are no metrics where prometheus_client is not installed (pip install 'txheartbeat[metrics]')"


def is_installed() -> bool:
    """Whether what makes metrics of numbers is there."""
    return CollectorRegistry is not None


class Metrics:
    """The metrics of one server, in a registry of their own, with those of its process."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._lines = Lines()
        self._registry: Any = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self, accept: str, lines: Lines) -> tuple[bytes, str]:
        """All of them, in the format that fits this Accept header best, and its content type."""
        encode, kind = choose_encoder(accept)
        self._lines = lines
        return encode(self._registry), kind

    def describe(self) -> Iterable[Any]:
        """prometheus_client's: which metrics there will be; ours cannot meet others of the same name."""
        return ()

    def collect(self) -> Iterator[Any]:
        """prometheus_client's: all metrics, as they are now."""
        yield from self._who_is_there()
        yield from self._who_is_elsewhere()
        yield from self._what_is_kept()
        yield from self._what_happened()
        yield from self._how_long_it_took()

    def _who_is_there(self) -> Iterator[Any]:
        view, lines = self._view, self._lines
        presence, timing = view.shared.presence, view.shared.settings.timing()
        clients = {word_of(standing): presence.count(standing) for standing in Standing}
        room = view.server.room
        yield _gauges("heartbeat_build_info", "Which version this is; always 1.", "version", {__version__: 1})
        yield _gauge("heartbeat_ready", "Whether somebody may be sent here (1), as /readyz says.", not view.unready)
        yield _gauge("heartbeat_connections", "WebSockets that are open.", presence.connections)
        yield _gauge(
            "heartbeat_connections_limit", "Connections that there is room for.", inf if room is None else room
        )
        yield _gauges(
            "heartbeat_clients", "Distinct client ids, by the best of their connections.", "standing", clients
        )
        yield _gauges(
            "heartbeat_links", "Open connections, by the state of their heartbeat as seen here.", "state", lines.states
        )
        yield _gauges(
            "heartbeat_links_by_level",
            "Open connections, by the level of the wire: 1 with a session, 0 without.",
            "level",
            {str(level): count for level, count in lines.levels.items()},
        )
        bounds = {"ping": timing.pinging_bound + timing.tick, "watch": timing.watching_bound}
        yield _gauges(
            "heartbeat_detection_bound_seconds",
            "Seconds within which this server finds a dead peer that it pings, or watches, at its own interval.",
            "by",
            bounds,
        )

    def _who_is_elsewhere(self) -> Iterator[Any]:
        """Of the fleet; no samples where there is none."""
        fleet = self._view.shared.fleet
        is_up, nodes, *counts = (None,) * 5 if fleet is None else (fleet.is_up, fleet.nodes, *fleet.counts)
        clients, known, connections = counts
        yield _gauge(
            "heartbeat_cluster_up",
            "Whether the fleet is counted as it is (1), or as it last was (0).",
            is_up,
        )
        yield _gauge("heartbeat_fleet_nodes", "Servers in the fleet.", nodes)
        yield _gauge("heartbeat_fleet_clients", "Distinct client ids that are active on any server.", clients)
        yield _gauge("heartbeat_fleet_known", "Distinct client ids that any server knows.", known)
        yield _gauge("heartbeat_fleet_connections", "WebSockets that are open on all servers.", connections)

    def _what_is_kept(self) -> Iterator[Any]:
        sessions, lines = self._view.shared.sessions, self._lines
        count = len(sessions.channels)
        carried = {"carried": count - sessions.detached, "detached": sessions.detached}
        yield _gauges("heartbeat_sessions", "Sessions, by whether a connection carries them now.", "state", carried)
        yield _gauge(
            "heartbeat_sessions_kept_bytes", "Bytes that all sessions keep, with what they cost.", sessions.kept_bytes
        )
        yield _gauge("heartbeat_outgoing_bytes", "Bytes that wait here for peers to read them.", lines.queued)
        yield _gauge(
            "heartbeat_outgoing_longest_bytes",
            "Bytes that wait here for the peer with the most of them.",
            lines.longest,
        )

    def _what_happened(self) -> Iterator[Any]:
        shared = self._view.shared
        tally = shared.tally
        yield _counter("heartbeat_connections_opened", "WebSockets that have opened.", tally.opened)
        closed = CounterMetricFamily(
            "heartbeat_connections_closed",
            "WebSockets that have ended, by who ended them (nobody: they broke) and by the close code.",
            labels=("by", "code"),
        )
        for (by, code), count in sorted(tally.closed.items()):
            closed.add_metric((by, code), count)
        yield closed
        yield _counters("heartbeat_convictions", "Peers found dead, by the reason.", "reason", tally.convictions)
        yield _counter("heartbeat_suspicions", "Peers that were suspected to be dead.", tally.suspicions)
        yield _counter(
            "heartbeat_suspicions_relieved", "Suspicions that ended well: the peer was heard again.", tally.relieved
        )
        yield _counter(
            "heartbeat_reconnects", "Clients that came back, into their session or into a new one.", tally.reconnects
        )
        yield _counter("heartbeat_resumes", "Sessions that were resumed.", tally.resumes)
        yield _counters(
            "heartbeat_resumes_refused",
            "Sessions that were not resumed, by the reason that the client was given.",
            "reason",
            tally.resumes_refused,
        )
        yield _counter(
            "heartbeat_replayed_messages", "Messages to clients that were written again on a resume.", tally.replayed
        )
        yield _counters(
            "heartbeat_refused",
            "What was refused, by the setting or the wire's word.",
            "reason",
            shared.refusals.counts,
        )

    def _how_long_it_took(self) -> Iterator[Any]:
        tally = self._view.shared.tally
        yield _histogram(
            "heartbeat_detection_seconds",
            "Seconds from the last byte of a peer to its conviction, in this server's running time.",
            tally.detection,
        )
        yield _histogram(
            "heartbeat_round_trip_seconds",
            "Seconds from a ping of this server to its answer. Where only clients ping, these are its probes alone.",
            tally.round_trips,
        )
        yield _histogram(
            "heartbeat_reactor_lag_seconds",
            "Seconds by which a tick came late; none while nobody is connected.",
            tally.lag,
        )


def _gauge(name: str, meaning: str, value: float | None) -> Any:
    return GaugeMetricFamily(name, meaning, value=value)


def _gauges(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Any:
    return _family(GaugeMetricFamily, name, meaning, label, values)


def _counter(name: str, meaning: str, value: float) -> Any:
    return CounterMetricFamily(name, meaning, value=value)


def _counters(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Any:
    return _family(CounterMetricFamily, name, meaning, label, values)


def _family(kind: Callable[..., Any], name: str, meaning: str, label: str, values: Mapping[str, float]) -> Any:
    family = kind(name, meaning, labels=(label,))
    for word, value in sorted(values.items()):
        family.add_metric((word,), value)
    return family


def _histogram(name: str, meaning: str, noted: Histogram) -> Any:
    bounds = [*map(str, noted.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(noted.counts), strict=True))
    return HistogramMetricFamily(name, meaning, buckets=buckets, sum_value=noted.sum)
