"""The judgement, without the world: no I/O, no clock and no chance live below this name.

*now*, identifiers and jitter are arguments; what is to be done is returned. Nothing here imports
Twisted, which is why a million links can be simulated in a minute.
"""
