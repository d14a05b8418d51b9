"""Who is told to have left: nobody who is only on the way back."""

from heartbeat import HeartbeatClient, HeartbeatServerFactory, Settings
from heartbeat.testing import World


def test_a_reply_to_a_close_of_the_servers_is_no_goodbye():
    """Autobahn's clients answer every close with 1000; this one comes back in time, and nobody hears of it."""
    world, told = World(), []
    factory = HeartbeatServerFactory(reactor=world.server)
    factory.clientJoined = lambda client_id: told.append(("joined", client_id))
    factory.clientLeft = lambda client_id: told.append(("left", client_id))
    world.listen(factory)
    settings = Settings(client_id="alice")
    client = HeartbeatClient("ws://test/ws", settings=settings, reactor=world.client, endpoint=world.endpoint())
    client.startService()
    world.advance(10)
    connected = world.connections[0][0].protocol

    connected._heartbeat.close(1011, "internal error")
    world.advance(60)

    assert client.status.event == "acknowledged"
    assert told == [("joined", "alice")]

    client.stopService()
    world.advance(2)
    assert told == [("joined", "alice"), ("left", "alice")]
    world.close()
    assert world.delayed_calls == []
