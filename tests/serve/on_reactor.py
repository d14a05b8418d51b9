"""Runs a program on another reactor than Twisted's own: on_reactor.py heartbeat real_server.py '{"interval": 0.5}'."""

import runpy
import sys

from twisted.application.reactors import installReactor

_, name, *sys.argv = sys.argv
installReactor(name)
runpy.run_path(sys.argv[0], run_name="__main__")
