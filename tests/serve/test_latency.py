"""What only real sockets show of how soon a message goes out."""

import pytest_twisted
from test_load import until
from twisted.internet import reactor

from heartbeat import HeartbeatClient
from heartbeat.service import HeartbeatService


@pytest_twisted.ensureDeferred
async def test_a_ping_that_follows_a_message_waits_for_no_acknowledgement_of_the_kernels():
    """TCP_NODELAY holds on both ends, which Autobahn says and does not do."""
    service = HeartbeatService("tcp:0:interface=127.0.0.1", reactor=reactor)
    service.startService()
    await until(lambda: service.ports, 5)
    client = HeartbeatClient(f"ws://127.0.0.1:{service.ports[0].getHost().port}/ws", reactor=reactor)
    client.startService()
    await client.whenOpen()
    (edge,) = service.factory.heartbeat.edges

    assert edge.protocol.transport.getTcpNoDelay()
    assert client._connection.transport.getTcpNoDelay()

    await client.stopService()
    await service.stopService()
