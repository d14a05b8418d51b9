"""The open-file limit, looked at before it is reached."""

import resource
import sys

import pytest

from heartbeat import limits
from heartbeat.core.errors import SettingError
from heartbeat.core.settings import Settings
from heartbeat.factory import HeartbeatServerFactory
from heartbeat.limits import open_file_limit, room_for_connections


@pytest.fixture
def limited(monkeypatch):
    """Have the open-file limit be this."""

    def limited(soft):
        monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, resource.RLIM_INFINITY))

    return limited


def test_the_limit_is_the_soft_one_of_this_process():
    assert open_file_limit() in (resource.getrlimit(resource.RLIMIT_NOFILE)[0], None)


def test_no_limit_is_none(limited):
    limited(resource.RLIM_INFINITY)

    assert open_file_limit() is None
    assert room_for_connections(None) is None
    assert room_for_connections(10_000_000) == 10_000_000


def test_where_the_platform_knows_no_limits_there_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)

    assert open_file_limit() is None


@pytest.mark.parametrize(("soft", "room"), [(20_000, 19_872), (1024, 896), (256, 128), (64, 32)])
def test_there_is_room_for_what_the_limit_allows_less_some_for_other_files(limited, soft, room):
    limited(soft)

    assert room_for_connections(None) == room
    assert room_for_connections(room) == room
    assert room_for_connections(1) == 1
    with pytest.raises(SettingError, match=rf"^max_connections must be at most {room} under .* \(ulimit -n\)"):
        room_for_connections(room + 1)


def test_a_server_refuses_to_promise_more(limited, world):
    limited(1024)

    assert HeartbeatServerFactory(reactor=world.server).room == 896
    with pytest.raises(SettingError) as refusal:
        HeartbeatServerFactory(Settings(max_connections=1000), reactor=world.server)
    assert (refusal.value.name, refusal.value.value) == ("max_connections", 1000)
    assert limits.__all__ == ["open_file_limit", "room_for_connections"]
