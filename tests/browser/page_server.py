"""A server that serves the pages of the tests and tells what reaches it from them.

    page_server.py '{"interval": 1.0}' [ENDPOINT]      settings as JSON

A message `note` is told of when it is handled; `listen` makes it send numbered words of its own, `enough` ends that and
is answered with their count; at `hangup` it drops the connection without a word. Prints where it listens and, as
JSON, its links' changes, pings, what was handled, and who is present, whenever that has changed. A page is served under
the Content-Security-Policy of its query's `csp`. The environment variable HEARTBEAT_JS names another module to serve as
heartbeat.js: a broken one, to see that the tests notice.
"""

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import LoopingCall
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.web.pages import notFound
from twisted.web.resource import Resource
from twisted.web.server import Site

from heartbeat import HeartbeatServerFactory, HeartbeatServerProtocol, Settings
from heartbeat.service import PATHS, HeartbeatService

HERE = Path(__file__).parent
MODULE = HERE.parents[1] / "heartbeat" / "web" / "static" / "heartbeat.js"
FILES = {path.name: path for path in (HERE / "pages").iterdir()}
FILES["heartbeat.js"] = Path(os.environ.get("HEARTBEAT_JS", MODULE))
KINDS = {".html": b"text/html; charset=utf-8", ".js": b"text/javascript; charset=utf-8"}


def tell(**event):
    print(json.dumps({**event, "at": time.monotonic()}), flush=True)


class Pages(Resource):
    """The files of the tests, and nothing else."""

    isLeaf = True

    def render_GET(self, request):
        file = FILES.get(request.path.decode("latin-1").lstrip("/"))
        if file is None:
            return notFound().render(request)
        for policy in request.args.get(b"csp", ()):
            request.setHeader(b"content-security-policy", policy)
        request.setHeader(b"content-type", KINDS[file.suffix])
        # A page in a sandbox has no origin, and may import a module only where everybody may.
        request.setHeader(b"access-control-allow-origin", b"*")
        return file.read_bytes()


class Told(HeartbeatServerProtocol):
    def linkChanged(self, status):
        tell(
            event=status.event,
            client=status.client_id,
            detail=status.detail,
            peer=self.transport.getPeer().port,
            closed_with=self.localCloseCode,
        )

    def _onMessage(self, payload, isBinary):
        if b'"ping"' in payload:
            message = json.loads(payload)
            tell(event="ping", client=self.status.client_id, away=message.get("away", False))
        super()._onMessage(payload, isBinary)


class Words:
    """What the server has to say in one session, on whichever connection that is."""

    def __init__(self, protocol, every):
        self.count = 0
        self.protocol = protocol
        self.loop = LoopingCall(self.say)
        self.loop.start(every)

    def say(self):
        self.count += 1
        self.protocol.send({"type": "word", "n": self.count}).addErrback(
            lambda failure: tell(event="refused", detail=failure.getErrorMessage())
        )


WORDS = {}


def noted(protocol, message):
    handling = protocol.handling
    tell(event="handled", client=handling.client_id, sid=handling.sid, n=message["n"], who=message.get("who"))


def listened(protocol, message):
    WORDS[protocol.handling.sid] = Words(protocol, message["every_ms"] / 1000)


def had_enough(protocol, message):
    words = WORDS[protocol.handling.sid]
    words.loop.stop()
    protocol.handling.reply({"type": "enough", "count": words.count})


def hung_up(protocol, message):
    protocol.transport.abortConnection()


class Census:
    """Tells who is present, how present, and on how many connections, when that has changed."""

    def __init__(self, factory):
        self.factory = factory
        self.told = None

    def look(self):
        presence = self.factory.presence
        standings = {name: presence.standing_of(name).name.lower() for name in presence.client_ids()}
        links = (edge.link for edge in self.factory.heartbeat.edges)
        connections = Counter(link.client_id for link in links if link is not None)
        found = {"clients": presence.active, "standings": standings, "connections": connections}
        if found != self.told:
            self.told = found
            tell(event="present", **found)


def main():
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    settings = Settings(**json.loads(sys.argv[1]))
    factory = HeartbeatServerFactory(settings, site=Site(Pages(), reactor=reactor), paths=PATHS, reactor=reactor)
    factory.protocol = Told
    factory.register("note", noted)
    factory.register("listen", listened)
    factory.register("enough", had_enough)
    factory.register("hangup", hung_up)
    factory.sessionLost = lambda client_id, error: tell(event="lost", client=client_id, reason=error.reason)
    listen = sys.argv[2] if len(sys.argv) > 2 else "tcp:0:interface=127.0.0.1"
    HeartbeatService(listen, settings, factory=factory, messages=["chat"], reactor=reactor).startService()
    LoopingCall(Census(factory).look).start(0.05)
    reactor.run()


main()
