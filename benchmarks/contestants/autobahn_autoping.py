"""Autobahn with the heartbeat that it brings: RFC 6455 pings to everybody, and dropped is who does not answer."""

from __future__ import annotations

from autobahn_default import serve

if __name__ == "__main__":
    serve(autoPingInterval=6, autoPingTimeout=6)
