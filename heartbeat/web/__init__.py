"""What the server says to those who do not ask for a WebSocket, and what pages need of it."""

from heartbeat.web.resources import browser_client, live_page
from heartbeat.web.site import make_site

__all__ = ["browser_client", "live_page", "make_site"]
