"""The heartbeat for WebSockets on Twisted and Autobahn."""
