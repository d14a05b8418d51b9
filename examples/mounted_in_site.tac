"""The heartbeat server at /ws of a twisted.web site that was there before, beside its pages.

    twistd -ny mounted_in_site.tac
    LISTEN=ssl:8443:privateKey=key.pem:certKey=cert.pem twistd -ny mounted_in_site.tac
    heartbeat-client ws://127.0.0.1:8080/ws

Each connection keeps the HTTP channel it came by, so this costs more memory than a listener of its
own, where pages can be served too: `HeartbeatServerFactory(settings, site=site, paths=("/ws",))`.
"""

import os

from autobahn.twisted.resource import WebSocketResource
from twisted.application.service import Application
from twisted.application.strports import service
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import Data

from heartbeat import HeartbeatServerFactory, Settings
from heartbeat.web import browser_client

LISTEN = os.environ.get("LISTEN", "tcp:8080:interface=127.0.0.1")

PAGE = b"""<!doctype html>
<title>An ordinary page</title>
<p>Alive: <output>0</output>
<script>
    const ws = new WebSocket(location.origin.replace("http", "ws") + "/ws");
    const ping = () => ws.send('{"type": "ping"}');
    ws.onopen = ping;
    ws.onmessage = (event) => {
        document.querySelector("output").value = JSON.parse(event.data).clients;
        setTimeout(ping, 5000);
    };
</script>
"""

root = Resource()
root.putChild(b"", Data(PAGE, "text/html; charset=utf-8"))
# For pages that want more than this one: import { HeartbeatClient } from "/heartbeat.js"
root.putChild(b"heartbeat.js", browser_client())
root.putChild(b"ws", WebSocketResource(HeartbeatServerFactory(Settings(interval=5.0))))

# twistd looks for this name.
application = Application("example")
service(LISTEN, Site(root)).setServiceParent(application)
