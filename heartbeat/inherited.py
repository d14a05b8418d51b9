"""Sockets that listen in one process and are served in others: opened by the one, and adopted by each of these.

Whatever an endpoint is described as, TLS or a proxy's protocol before it, in the end it asks a reactor to listen on one
socket. The two here are that reactor, so that every kind of endpoint works as it does in a single process: one opens
the socket and reads nothing from it, the other hands over the socket that there is.
"""

from __future__ import annotations

import os
import re
import socket
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory

__all__ = ["Adopting", "Opening", "without_manager"]

_MANAGED = re.compile(r"(?<![^:])systemd:.*")


class Opening:
    """A reactor where what listens is opened, and is left alone: `ports` are those that were."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.ports: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        """All else is the reactor's."""
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """IReactorTCP: listen."""
        return self._opened(self._reactor.listenTCP(port, _nobody(), backlog, interface))

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = "") -> Any:
        """IReactorSSL: listen; what is spoken there is no affair of this process."""
        return self.listenTCP(port, factory, backlog, interface)

    def listenUNIX(
        self, address: str, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: bool | int = 0
    ) -> Any:
        """IReactorUNIX: listen."""
        return self._opened(self._reactor.listenUNIX(address, _nobody(), backlog, mode, wantPID))

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        """IReactorSocket: take over what a service manager has opened."""
        if addressFamily == socket.AF_UNIX:
            return self._opened(_adopt_unix(self._reactor, fileDescriptor, _nobody()))
        return self._opened(self._reactor.adoptStreamPort(fileDescriptor, addressFamily, _nobody()))

    def _opened(self, port: Any) -> Any:
        port.stopReading()
        self.ports.append(port)
        return port


class Adopting:
    """A reactor where whatever is to be listened on is the one socket that listens already: `descriptor`."""

    def __init__(self, reactor: Any, descriptor: int) -> None:
        self._reactor = reactor
        self._descriptor: int | None = descriptor

    def __getattr__(self, name: str) -> Any:
        """All else is the reactor's."""
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """IReactorTCP: listen."""
        return self._adopted(factory)

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = "") -> Any:
        """IReactorSSL: listen."""
        return self._adopted(TLSMemoryBIOFactory(contextFactory, False, factory))

    def listenUNIX(
        self, address: str, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: bool | int = 0
    ) -> Any:
        """IReactorUNIX: listen."""
        return self._adopted(factory)

    def _adopted(self, factory: Any) -> Any:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            raise CannotListenError(None, None, "it listens already")
        os.set_blocking(descriptor, False)
        with socket.socket(fileno=descriptor) as listening:
            # Both have a copy of their own.
            if listening.family == socket.AF_UNIX:
                port = _adopt_unix(self._reactor, listening.fileno(), factory)
            else:
                port = self._reactor.adoptStreamPort(listening.fileno(), listening.family, factory)
        _take_turns(port)
        return port


class _Adopted(unix.Port):
    """A UNIX socket that is another's: its name, its mode and its queue are not ours to change.

    Twisted's own takes such a socket, lets everybody write to it (mode 0666), shortens its queue to 50, shuts it down
    for all others and removes its name when it stops (26.10).
    """

    _shouldShutdown = False

    def startListening(self) -> None:
        """IListeningPort: begin to accept."""
        factory: Any = self.factory
        factory.doStart()
        listening: Any = self._preexistingSocket
        self._preexistingSocket = None
        self.socket = listening
        self.connected = True
        self.fileno = listening.fileno  # type: ignore[method-assign]  # as Twisted does
        self.numberAccepts = 100
        self.startReading()  # type: ignore[no-untyped-call]  # Twisted's

    def connectionLost(self, reason: Any) -> None:
        """Twisted's: it has stopped, here."""
        tcp.Port.connectionLost(self, reason)


def _adopt_unix(reactor: Any, descriptor: int, factory: Any) -> Any:
    port = _Adopted._fromListeningDescriptor(reactor, descriptor, factory)  # type: ignore[no-untyped-call]  # Twisted's
    port.startListening()
    return port


def _take_turns(port: Any) -> None:
    """Have whoever came too late be the first to be told of the next connection.

    All are woken, first who has begun to wait last (Linux, epoll), and whoever runs first takes it. Of 80 clients that
    came one by one, 50 ms apart, three processes had 14 to 45 each without this, and 23 to 33 with it.
    """
    read = port.doRead

    def read_or_wait_anew() -> None:
        before = port.sessionno
        read()
        if port.sessionno == before and port.connected:
            port.stopReading()
            port.startReading()

    port.doRead = read_or_wait_anew


def _nobody() -> Factory:
    """For a socket at which nobody is served."""
    factory = Factory()
    factory.noisy = False
    return factory


def without_manager(description: str) -> str:
    """The description of what a service manager has opened, where it was handed on: any other says the same."""
    return _MANAGED.sub("tcp:0", description)
