"""Watching a server, and the little that an operator may do to it: a site of its own, off the public listener.

Reads what the server counts anyway, when somebody asks. Nothing here is on the way of a heartbeat.
"""

from heartbeat.admin.deeds import Deeds
from heartbeat.admin.fleet import FleetView
from heartbeat.admin.guard import Guard, is_near, read_token
from heartbeat.admin.site import make_site
from heartbeat.admin.view import View

__all__ = ["Deeds", "FleetView", "Guard", "View", "is_near", "make_site", "read_token"]
