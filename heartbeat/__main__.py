"""`heartbeat-client`: ping(8) for WebSockets.

Parses, prints and counts; everything else is `HeartbeatClient`'s. Installs a reactor only once the
arguments are known to be right.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from math import sqrt
from pathlib import Path
from typing import Any, TextIO

from heartbeat._version import __version__
from heartbeat.core.errors import SettingError, StoreError
from heartbeat.core.link import LinkStatus
from heartbeat.core.settings import BEATS, Settings

__all__ = ["main"]

_ALL_ANSWERED, _SOME_LOST, _UNREACHABLE = 0, 1, 2

_COLOURS = {"open": "32", "acknowledged": "32", "waiting": "33", "suspect": "33", "reconnecting": "33"}
_COLOURS |= {"dead": "31", "closed": "31", "unreachable": "31"}

_EPILOGUE = """\
examples:
  heartbeat-client ws://127.0.0.1:9000/ws                      until Ctrl-C
  heartbeat-client ws://127.0.0.1:9000/ws --interval 0.2 --count 10 --json
  heartbeat-client wss://example.org/ws --cacert ca.pem --header "Cookie: a=b"
  heartbeat-client wss://example.org/socket --frames           a server that knows no JSON pings
  heartbeat-client ws://127.0.0.1:9000/ws --client-id alice --send onchat '{"id": "m1", "to": "bob", "text": "hi"}'

exit status: 0 every ping was answered and every message handled, 1 some were not, 2 the server was unreachable or
the usage was wrong
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="heartbeat-client",
        description="Ping a WebSocket server, tell how it answers, and find out within seconds when it is gone.",
        epilog=_EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("url", metavar="URL", help="ws://HOST:PORT/PATH or wss://…")
    add(
        "--interval",
        type=float,
        metavar="S",
        help="seconds from an answer to the next ping: a wish (the server's, or 6)",
    )
    add("--count", type=int, metavar="N", help="stop after so many beats (default: never)")
    add("--attempts", type=int, default=3, metavar="N", help="attempts to reconnect before giving up (3)")
    add("--beats", choices=BEATS, help="who is to send the pings: a wish to the server (client)")
    add("--frames", action="store_true", help="use RFC 6455 ping frames, for servers that know no JSON pings")
    add("--header", action="append", default=[], metavar="K:V", help="send this header with the handshake; repeatable")
    add(
        "--client-id", metavar="NAME", help="who to say we are; a server honours it from its own machine, or if told to"
    )
    add("--session", metavar="FILE", help="keep the session in FILE, so that the next run with it resumes it")
    add(
        "--send",
        nargs=2,
        action="append",
        default=[],
        metavar=("TYPE", "JSON"),
        help="send a message of this type with these members, and stop when it is handled; repeatable",
    )
    add("--cacert", metavar="FILE", help="trust the PEM certificates in FILE instead of the platform's")
    add("--insecure", action="store_true", help="verify no certificate at all")
    add("--json", action="store_true", help="print one JSON object a line instead of text")
    add("--version", action="version", version=f"heartbeat-client {__version__}")
    return parser


class _Tally:
    """Round trips in milliseconds: least, mean, greatest, mean deviation as ping(8) has it."""

    def __init__(self) -> None:
        self.answered = 0
        self._samples = 0
        self._least = self._greatest = self._sum = self._squares = 0.0

    def sample(self, rtt_ms: float | None) -> None:
        """One answer; None where the time cannot be told."""
        self.answered += 1
        if rtt_ms is None:
            return
        self._least = rtt_ms if not self._samples else min(self._least, rtt_ms)
        self._greatest = max(self._greatest, rtt_ms)
        self._samples += 1
        self._sum += rtt_ms
        self._squares += rtt_ms * rtt_ms

    def summary(self) -> dict[str, float] | None:
        """None without a sample."""
        if not self._samples:
            return None
        mean = self._sum / self._samples
        deviation = sqrt(max(0.0, self._squares / self._samples - mean * mean))
        return {
            "min": round(self._least, 3),
            "avg": round(mean, 3),
            "max": round(self._greatest, 3),
            "mdev": round(deviation, 3),
        }


class _Script:
    """One run of the script: a client, what it prints, and how it ends."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        client: Any,
        reactor: Any,
        out: TextIO,
        messages: Sequence[dict[str, Any]] = (),
    ) -> None:
        self._arguments = arguments
        self._messages = messages
        # Messages whose fate is not known yet, and those that were lost.
        self._under_way = len(messages)
        self._unhandled = 0
        self._client = client
        self._reactor = reactor
        self._out = out
        self._colour = out.isatty() and "NO_COLOR" not in os.environ and not arguments.json
        self._tally = _Tally()
        self._asked = 0
        self._opened = 0
        self._lost_by_the_end = 0
        self._unreachable = False
        self._stopping = False
        client.linkChanged = self._link_changed
        client.pongReceived = self._pong_received
        client.pingReceived = self._ping_received
        client.messageReceived = self._message_received
        client.sessionLost = self._session_lost

    def run(self) -> int:
        """Until the count is reached, the server is unreachable, or somebody presses Ctrl-C; the exit status."""
        reactor = self._reactor
        reactor.addSystemEventTrigger("before", "shutdown", self._end)
        reactor.callWhenRunning(self._start)
        reactor.run()
        lost = self._summarize()
        if self._unreachable or not (self._opened or self._tally.answered):
            return _UNREACHABLE
        return _SOME_LOST if lost or self._unhandled or self._under_way else _ALL_ANSWERED

    def _end(self) -> Any:
        # What is on its way just now may yet come while the connection closes, and is neither answered nor lost.
        self._lost_by_the_end = max(0, self._lost())
        return self._client.stopService()

    def _start(self) -> None:
        self._client.startService()
        for number, message in enumerate(self._messages, 1):
            self._client.send(message).addCallbacks(
                self._handled, self._not_handled, callbackArgs=(number, message), errbackArgs=(number, message)
            )

    def _handled(self, _: None, number: int, message: dict[str, Any]) -> None:
        self._under_way -= 1
        event = {"event": "handled", "n": number, "type": message["type"]}
        self._print(event, f"message {number} ({message['type']}): handled by the server")
        self._stop_if_done()

    def _not_handled(self, failure: Any, number: int, message: dict[str, Any]) -> None:
        if self._stopping or not self._client.running:
            # The end of the run is no news; that it is not known is in the exit status.
            return
        self._under_way -= 1
        self._unhandled += 1
        why = getattr(failure.value, "reason", None) or failure.getErrorMessage()
        event = {"event": "unconfirmed", "n": number, "type": message["type"], "reason": why}
        self._print(event, f"message {number} ({message['type']}): never confirmed ({why})", "31")
        self._stop_if_done()

    # Hooks of the client.

    def _link_changed(self, status: LinkStatus) -> None:
        if not self._client.running:
            return
        self._opened += status.event == "open"
        self._print(_event_of(status), _text_of(status, self._arguments.url), _COLOURS.get(status.event))
        if status.event == "unreachable":
            self._unreachable = True
            self._stop()
        elif status.event in ("dead", "closed"):
            self._stop_if_done()

    def _pong_received(self, rtt: float | None, clients: int | None) -> None:
        if not self._client.running:
            return
        rtt_ms = None if rtt is None else round(rtt * 1000, 3)
        self._tally.sample(rtt_ms)
        event = {"event": "pong", "n": self._tally.answered, "rtt_ms": rtt_ms, "clients": clients}
        time = "time unknown, we were late" if rtt_ms is None else f"time={rtt_ms:.2f} ms"
        count = "" if clients is None else f" clients={clients}"
        self._print(event, f"pong {self._tally.answered}: {time}{count}")
        self._stop_if_done()

    def _ping_received(self) -> None:
        if not self._client.running:
            return
        self._asked += 1
        self._print({"event": "ping", "n": self._asked}, f"ping {self._asked} of the server's, answered")
        self._stop_if_done()

    def _message_received(self, message: dict[str, Any]) -> None:
        if self._client.running:
            self._print({"event": "message", "message": message}, f"message: {json.dumps(message)}")

    def _session_lost(self, error: Any) -> None:
        # Of what this run has sent it is told by `_not_handled`; the rest is of a run before, with the same file.
        before = [message for message in error.messages if message not in self._messages]
        if self._client.running and before:
            event = {"event": "session-lost", "reason": error.reason, "messages": before}
            words = ", ".join(map(json.dumps, before))
            self._print(event, f"the session was lost ({error.reason}); never confirmed: {words}", "31")

    # The end.

    def _stop_if_done(self) -> None:
        count = self._arguments.count
        if self._under_way or (count is None and not self._messages):
            return
        if count is None or self._tally.answered + self._lost() + self._asked >= count:
            self._stop()

    def _stop(self) -> None:
        """End the run, after whatever is being told just now; once."""
        if not self._stopping:
            self._stopping = True
            self._reactor.callLater(0, self._stop_reactor)

    def _stop_reactor(self) -> None:
        # Ctrl-C may have been quicker.
        if self._client.running:
            self._reactor.stop()

    def _lost(self) -> int:
        return int(self._client.pings_sent) - self._tally.answered - int(self._client.pings_in_flight)

    def _summarize(self) -> int:
        lost, rtt = self._lost_by_the_end, self._tally.summary()
        sent, reconnects = self._tally.answered + lost, max(0, self._opened - 1)
        event = {"event": "summary", "sent": sent, "answered": self._tally.answered, "lost": lost}
        event |= {"rtt_ms": rtt, "reconnects": reconnects}
        text = f"\n--- {self._arguments.url} ---\n{sent} sent, {self._tally.answered} answered, {lost} lost"
        text += f", {reconnects} reconnects"
        if self._asked:
            text += f"; {self._asked} pings of the server's answered"
        if rtt is not None:
            text += f"\nrtt min/avg/max/mdev = {rtt['min']}/{rtt['avg']}/{rtt['max']}/{rtt['mdev']} ms"
        self._print(event, text)
        return lost

    def _print(self, event: dict[str, Any], text: str, colour: str | None = None) -> None:
        if self._arguments.json:
            line = json.dumps(event)
        else:
            line = f"\033[{colour}m{text}\033[0m" if self._colour and colour else text
        try:
            print(line, file=self._out, flush=True)
        except OSError:
            # Whoever read us has gone, as `head` does, or the disk is full; there is nobody left to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
            self._stop()


def _event_of(status: LinkStatus) -> dict[str, Any]:
    event: dict[str, Any] = {"event": status.event, "detail": status.detail}
    if status.event == "reconnecting":
        event |= {"attempt": status.attempt, "delay_ms": round((status.delay or 0.0) * 1000)}
    if status.event == "open":
        event |= {"level": status.level, "client_id": status.client_id, "clients": status.clients}
    if status.event in ("suspect", "waiting", "dead", "closed"):
        event |= {"silent_ms": round(status.silent_for * 1000), "unanswered_ms": round(status.unanswered_for * 1000)}
    if status.event in ("dead", "closed"):
        event |= {"reason": status.reason, "code": status.code}
    return event


def _text_of(status: LinkStatus, url: str) -> str:
    # Some of these words are the server's, who is not to steer our terminal.
    detail = "".join(char if char.isprintable() else "?" for char in status.detail)
    if status.event == "open":
        return f"HEARTBEAT {url}: {detail}"
    if status.event == "reconnecting":
        which = f"attempt {status.attempt}" if status.attempt else "as the server asked"
        return f"reconnecting in {status.delay or 0.0:.1f} s ({which}): {detail}"
    return detail if status.event == "suspect" else f"{status.event}: {detail}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script with these arguments (the process's); returns the exit status."""
    try:
        return _run(argv)
    except KeyboardInterrupt:
        # Before the reactor was there to take it: nothing was reached, and nothing is to be summed up.
        return _UNREACHABLE


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.count is not None and arguments.count < 1:
        parser.error("--count must be a whole number from 1")
    if arguments.cacert is not None and arguments.insecure:
        parser.error("--cacert and --insecure contradict each other")
    headers = []
    for header in arguments.header:
        name, colon, value = header.partition(":")
        if not colon:
            parser.error(f"--header must be KEY:VALUE, not {header!r}")
        headers.append((name.strip(), value.strip()))
    messages = [_message(parser, kind, text) for kind, text in arguments.send]
    try:
        settings = Settings(
            client_id=arguments.client_id,
            interval=arguments.interval,
            attempts=arguments.attempts,
            beats=arguments.beats,
            frames=arguments.frames,
        )
        client = _client(arguments, settings, headers)
    except SettingError as error:
        name = "header" if error.name == "headers" else error.name.replace("_", "-")
        parser.error(f"--{name} must be {error.bound}")
    except StoreError as error:
        parser.error(f"--session: {error}")
    except ValueError as error:
        parser.error(str(error))
    from twisted.internet import reactor  # noqa: PLC0415  # only now are the arguments known to be right

    from heartbeat.pulse import make_monotonic  # noqa: PLC0415  # as above

    make_monotonic(reactor)
    return _Script(arguments, client, reactor, _standard_output(), messages).run()


def _message(parser: argparse.ArgumentParser, kind: str, text: str) -> dict[str, Any]:
    """The message that `--send` asks for."""
    from heartbeat.handling import encode_message  # noqa: PLC0415  # Twisted takes its time; most runs send nothing

    try:
        members = json.loads(text)
    except ValueError as error:
        parser.error(f"--send {kind}: not JSON: {error}")
    if not isinstance(members, dict) or members.get("type", kind) != kind:
        parser.error(f"--send {kind}: the second argument must be a JSON object, without a type of its own")
    message = {"type": kind} | members
    try:
        encode_message(message)
    except ValueError as error:
        parser.error(f"--send {kind}: {error}")
    return message


def _standard_output() -> TextIO:
    """Where to print: whatever it is, what cannot be printed there is no reason to stop."""
    if sys.stdout is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return sys.stdout


def _client(arguments: argparse.Namespace, settings: Settings, headers: list[tuple[str, str]]) -> Any:
    from urllib.parse import urlsplit  # noqa: PLC0415  # with the reactor, which the next import installs

    from heartbeat.client import HeartbeatClient  # noqa: PLC0415  # as above
    from heartbeat.tls import trust_anybody, trust_file  # noqa: PLC0415  # as above

    host = urlsplit(arguments.url).hostname or ""
    tls = None
    if arguments.cacert is not None:
        tls = trust_file(host, arguments.cacert)
    elif arguments.insecure:
        tls = trust_anybody(host)
    client = HeartbeatClient(arguments.url, settings=settings, tls=tls, headers=headers, session=arguments.session)
    if arguments.session is not None:
        client.checkSession()
    return client


if __name__ == "__main__":
    sys.exit(main())
