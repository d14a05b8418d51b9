"""The site on which a server is watched: what it tells, to whom, and what it does when it is told to."""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from test_chat import Person
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransportWithDisconnection
from twisted.python.failure import Failure

from heartbeat import HeartbeatService, SettingError
from heartbeat._version import __version__
from heartbeat.admin import Deeds, FleetView, Guard, is_near, make_site, metrics, read_token, view
from heartbeat.admin.deeds import KICKED
from heartbeat.admin.view import View
from heartbeat.tally import REFUSALS

PAGE = Path(metrics.__file__).parent / "page"
TOKEN = b"0123456789abcdef-of-an-operator"


class Answer:
    """What was answered to a request: `status`, `headers` by their names in lower case, `body`."""

    def __init__(self, received):
        head, _, self.body = received.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    @property
    def json(self):
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def text(self):
        return self.body.decode()


@pytest.fixture
def admin(serve, world):
    """A factory: `admin(token, near, **settings)` is a way to ask the site of a new server."""
    made = []

    def admin(token=None, *, near=True, **settings):
        site = Asked(serve(**settings), world, token, near)
        made.append(site)
        return site

    yield admin
    for site in made:
        site.leave()


class Asked:
    """Somebody who asks the site on which `server` is watched."""

    def __init__(self, server, world, token, near, fleet=None):
        self.server = server
        self.world = world
        self.drained = 0
        seen = view.View(server)
        deeds = Deeds(seen, self.drain)
        of = None if fleet is None else FleetView(seen, deeds)
        self.site = make_site(seen, deeds, of, Guard(token, near=near), world.server)
        self._open = []

    def drain(self):
        self.drained += 1

    def begin(self, path, method="GET", body=b"", **headers):
        """Send a request; the transport on which it is to be answered."""
        protocol = self.site.buildProtocol(None)
        transport = StringTransportWithDisconnection()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self._open.append(transport)
        headers = {"host": "127.0.0.1:9001"} | headers
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items() if value is not None]
        protocol.dataReceived(f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + body)
        return transport

    def __call__(self, path, method="GET", body=b"", **headers):
        """The answer to a request."""
        transport = self.begin(path, method, body, **headers)
        self.world.advance(0.5)
        return Answer(transport.value())

    def post(self, path, token=TOKEN):
        """The answer to a request that does something."""
        return self(path, "POST", **({} if token is None else {"authorization": f"Bearer {token.decode()}"}))

    def leave(self):
        for transport in self._open:
            if transport.connected:
                with suppress(AttributeError):
                    transport.protocol.connectionLost(Failure(ConnectionDone()))


@pytest.fixture
def person(connect):
    """A client of bytes in a session of its own."""
    return lambda name, **more: Person(connect, name, **more)


# Who may.


NEAR = {
    "tcp:9001:interface=127.0.0.1": True,
    "tcp:interface=127.8.8.8:port=9001": True,
    "tcp6:9001:interface=\\:\\:1": True,
    "ssl:9001:privateKey=key.pem:interface=localhost": True,
    "unix:/run/heartbeat/admin": True,
    "tcp:9001": False,
    "tcp6:9001": False,
    "tcp:9001:interface=": False,
    "tcp:9001:interface=0.0.0.0": False,
    "tcp:9001:interface=10.0.0.1": False,
    "tcp:9001:interface=localhost.example.org": False,
    "tcp:9001:interface=127.0.0.1:interface=10.0.0.1": False,
    "tcp:9001:10.0.0.1:interface\\=127.0.0.1": False,
    "systemd:domain=INET:index=0": False,
    "haproxy:tcp:9001:interface=127.0.0.1": False,
    "": False,
}


@pytest.mark.parametrize(("description", "near"), NEAR.items())
def test_a_listener_is_for_this_machine_alone_where_that_is_sure(description, near):
    """What is not surely so is anybody's, and needs the token."""
    assert is_near(description) is near


def test_a_token_is_the_line_in_its_file(tmp_path):
    (tmp_path / "token").write_bytes(b" " + TOKEN + b"\r\n")

    assert read_token(tmp_path / "token") == TOKEN


@pytest.mark.parametrize(
    "text", ["", "too-short-by-1234"[:15], "two lines of it\nand the other", "ünïcödé-of-an-operator", "x" * 2000]
)
def test_what_is_no_token_is_refused_by_its_option(tmp_path, text):
    """By a sentence that does not hold what is in the file."""
    (tmp_path / "token").write_text(text, "utf-8")

    with pytest.raises(SettingError, match=r"^admin_token must be a file with one line of 16 to 1024 ") as refusal:
        read_token(tmp_path / "token")
    assert not text or text not in str(refusal.value)


def test_a_token_that_cannot_be_read_is_refused_too(tmp_path):
    with pytest.raises(SettingError, match=r"^admin_token must be a file that can be read \(No such file"):
        read_token(tmp_path / "none")


WATCHED = ("/metrics", "/totals", "/clients", "/deaths")


@pytest.mark.parametrize("path", WATCHED)
def test_who_is_on_this_machine_may_watch(admin, path):
    site = admin()

    assert site(path).status == 200
    assert site(path, host=None).status == 200
    assert site(path, host="localhost:9001").status == 200
    assert site(path, host="[::1]:9001").status == 200
    assert site(path, "POST").status == 405


@pytest.mark.parametrize("path", WATCHED)
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9001", "127.0.0.1.evil.example", "localhost.evil", "x y"]
)
def test_a_page_of_a_stranger_whose_name_means_this_machine_may_not(admin, path, host):
    """DNS rebinding: the browser is here, and asks by a name of the stranger's. Who has the token is no stranger."""
    site = admin(TOKEN)

    assert site(path, host=host).status == 403
    assert site(path, host=host, authorization=f"Bearer {TOKEN.decode()}").status == 200


@pytest.mark.parametrize("path", WATCHED)
def test_from_elsewhere_nobody_watches_without_the_token(admin, path):
    site = admin(TOKEN, near=False)

    refused = site(path)
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert site(path, authorization="Bearer another-token-of-this-size").status == 401
    assert site(path, authorization=TOKEN.decode()).status == 401
    assert site(path, authorization=f"Basic {TOKEN.decode()}").status == 401
    assert site(path, authorization=f"bearer  {TOKEN.decode()} ").status == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/watch.js"])
def test_what_tells_of_nobody_is_anybodys(admin, person, path):
    """A load balancer shows no token, and the page has to be there before one can be given to it."""
    site = admin(TOKEN, near=False)
    person("alice")

    assert site(path, host="lb.example").status == 200


@pytest.mark.parametrize("path", ["/drain", "/clients/alice/kick"])
def test_nothing_is_done_without_the_token(admin, person, path):
    """Not even from this machine: any page of a browser here can send a POST."""
    site = admin(TOKEN)
    alice = person("alice")

    assert site.post(path, None).status == 401
    assert site.post(path, b"another-token-of-this-size").status == 401
    assert site(path, authorization=f"Bearer {TOKEN.decode()}").status == 405
    assert (site.drained, alice.peer.closed_with) == (0, None)


@pytest.mark.parametrize("path", ["/drain", "/clients/alice/kick"])
def test_without_a_token_file_nothing_can_be_done_and_the_option_is_named(admin, path):
    site = admin()

    refused = site.post(path)
    assert (refused.status, site.drained) == (403, 0)
    assert "--admin-token" in refused.text


def test_a_body_is_refused_before_it_is_kept(admin):
    """Of whatever size, in chunks or not; and what follows it is not taken for a request."""
    site = admin(TOKEN)
    smuggled = b"POST /drain HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer " + TOKEN + b"\r\n\r\n"

    for more in ({"content_length": 5_000_000_000}, {"transfer_encoding": "chunked"}):
        refused = site("/drain", "POST", smuggled, authorization=f"Bearer {TOKEN.decode()}", **more)
        assert refused.status == 413
        assert refused.text == "nothing here takes a request with a body\n"
    assert site.drained == 0
    assert site.post("/drain").status == 202


# How it is.


def test_it_is_alive_as_long_as_it_turns(admin):
    answer = admin()("/healthz")

    assert (answer.status, answer.text) == (200, f"txheartbeat {__version__} is alive\n")


def test_it_is_ready_when_the_sessions_are_read_and_until_it_is_drained(admin, person, world):
    """Before and after that a load balancer is told to send nobody, in a sentence."""
    site = admin()
    assert (site("/readyz").status, site("/readyz").text) == (503, "the sessions have not been read yet\n")

    person("alice")
    assert (site("/readyz").status, site("/readyz").text) == (200, "ready\n")

    site.server.heartbeat.drain()
    assert (site("/readyz").status, site("/readyz").text) == (503, "the server is on its way out\n")
    assert site("/healthz").status == 200
    world.advance(3)


# Who is there.


def ids(answer):
    return [client["client_id"] for client in answer.json["clients"]]


def test_clients_are_told_a_page_at_a_time_in_the_order_of_their_ids(admin, person):
    site = admin()
    for name in ("dora", "bob", "alice", "carol"):
        person(name)

    assert ids(site("/clients")) == ["alice", "bob", "carol", "dora"]
    assert site("/clients").json["next"] is None
    first = site("/clients?limit=2")
    assert (ids(first), first.json["next"]) == (["alice", "bob"], "bob")
    second = site("/clients?limit=2&after=bob")
    assert (ids(second), second.json["next"]) == (["carol", "dora"], None)
    assert ids(site("/clients?after=dora")) == []
    assert ids(site("/clients?after=bz")) == ["carol", "dora"]


def test_whoever_was_last_on_a_page_may_leave_and_none_is_missed_for_it(admin, person, world):
    site = admin()
    people = {name: person(name) for name in ("alice", "bob", "carol", "dora")}
    after = site("/clients?limit=2").json["next"]
    people["bob"].peer.leave()
    world.advance(1)

    assert after == "bob"
    assert ids(site(f"/clients?limit=2&after={after}")) == ["carol", "dora"]


def test_clients_can_be_asked_for_by_their_standing(admin, person, connect, world):
    site = admin()
    person("alice")
    person("bob").peer.transport.abortConnection()
    connect().open()
    world.advance(0.5)

    assert ids(site("/clients?standing=active")) == ["alice"]
    assert ids(site("/clients?standing=detached")) == ["bob"]
    assert [one[:2] for one in ids(site("/clients?standing=connected"))] == ["c-"]
    assert ids(site("/clients?standing=suspect")) == []


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("limit=0", "limit must be a whole number from 1 to 1000"),
        ("limit=1001", "limit must be a whole number from 1 to 1000"),
        ("limit=-1", "limit must be a whole number from 1 to 1000"),
        ("limit=many", "limit must be a whole number from 1 to 1000"),
        ("limit=%C2%B2", "limit must be a whole number from 1 to 1000"),
        ("limit=10000000000000000000000", "limit must be a whole number from 1 to 1000"),
        ("standing=asleep", "standing must be one of active, away, connected, suspect, detached"),
    ],
)
def test_a_wrong_question_is_one_sentence(admin, query, why):
    answer = admin()(f"/clients?{query}")

    assert (answer.status, answer.text) == (400, f"{why}\n")


def test_of_each_connection_is_told_what_is_known_of_it(admin, person, world):
    """Two of alice's, the older first; how long, how silent, and what waits for it."""
    site = admin(beats="both", interval=1.0)
    person("alice")
    world.advance(2)
    alice = person("alice")
    world.advance(0.7)
    pings = [one for one in alice.peer.messages if one["type"] == "ping" and "status" not in one]
    if pings:
        alice.peer.say({"type": "ping", "id": pings[-1]["id"], "status": "pong"})

    (client,) = site("/clients").json["clients"]
    assert (client["client_id"], client["sessions"]) == ("alice", 2)
    older, newer = client["connections"]
    assert older["age_s"] - newer["age_s"] == pytest.approx(2.05, abs=0.2)
    assert newer["silent_for_s"] <= newer["age_s"]
    assert newer.keys() == {
        "peer", "level", "state", "standing", "busy", "age_s", "silent_for_s", "rtt_ms", "tcp_rtt_ms", "outgoing_bytes",
    }  # fmt: skip
    assert (newer["peer"], newer["level"]) == ("tcp4:127.0.0.1:50000", 1)
    # The transport of this test is no socket.
    assert (newer["outgoing_bytes"], newer["tcp_rtt_ms"]) == (None, None)


def test_a_name_that_would_be_markup_is_json(admin, person):
    """And is kicked by its name, whatever it has of a path in it."""
    hostile = '<script>"../&?#%/kick'
    site = admin(TOKEN)
    mallory = person(hostile)

    answer = site("/clients")
    assert ids(answer) == [hostile]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert site.post("/clients/%3Cscript%3E%22..%2F%26%3F%23%25%2Fkick/kick").json == {
        "client_id": hostile,
        "closed": 1,
    }
    assert mallory.peer.closed_with == 1008


# The numbers.


def families(answer):
    """The samples of an answer in Prometheus' format: by name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_the_numbers_are_those_of_the_server(admin, person, connect, world):
    site = admin(max_connections=100)
    alice, bob = person("alice"), person("bob")
    connect().open()
    bob.peer.transport.abortConnection()
    alice.say(type="nobody-takes-this")
    world.advance(0.5)
    person("bob", resume=bob.resume() | {"epoch": "another"})

    told = families(site("/metrics"))
    said = {
        name[0] if len(name) == 1 else (name[0], name[1][1]): value for name, value in told.items() if len(name) < 3
    }
    expected = {
        ("heartbeat_build_info", __version__): 1,
        "heartbeat_ready": 1,
        "heartbeat_connections": 3,
        "heartbeat_connections_limit": 100,
        ("heartbeat_clients", "active"): 2,
        ("heartbeat_clients", "connected"): 1,
        ("heartbeat_clients", "suspect"): 0,
        ("heartbeat_links", "acknowledged"): 3,
        ("heartbeat_links_by_level", "0"): 1,
        ("heartbeat_links_by_level", "1"): 2,
        ("heartbeat_sessions", "carried"): 2,
        ("heartbeat_sessions", "detached"): 1,
        "heartbeat_sessions_kept_bytes": site.server.heartbeat.sessions.kept_bytes,
        "heartbeat_outgoing_bytes": 0,
        "heartbeat_connections_opened_total": 4,
        "heartbeat_reconnects_total": 1,
        ("heartbeat_resumes_refused_total", "epoch"): 1,
        ("heartbeat_resumes_refused_total", "gap"): 0,
        ("heartbeat_convictions_total", "silent"): 0,
        "heartbeat_detection_seconds_count": 0,
        ("heartbeat_detection_bound_seconds", "watch"): 15.4,
    }
    assert {name: said[name] for name in expected} == pytest.approx(expected)
    assert told["heartbeat_connections_closed_total", ("by", "nobody"), ("code", "none")] == 1
    assert said["process_open_fds"] > 0
    assert {name[1][1] for name in told if name[0] == "heartbeat_resumes_refused_total"} == set(REFUSALS)
    # It counts its clients with nobody else's.
    assert not [name for name in told if name[0].startswith(("heartbeat_fleet", "heartbeat_cluster"))]


def test_a_histogram_is_told_with_its_buckets_and_its_sum(admin, connect, world):
    site = admin()
    connect().open()
    world.advance(1)
    world.stall(0.7)
    world.advance(2)

    told = families(site("/metrics"))
    lag = site.server.heartbeat.tally.lag
    buckets = [value for name, value in told.items() if name[0] == "heartbeat_reactor_lag_seconds_bucket"]
    assert buckets == sorted(buckets)
    assert told["heartbeat_reactor_lag_seconds_bucket", ("le", "+Inf")] == buckets[-1] > 5
    assert told["heartbeat_reactor_lag_seconds_bucket", ("le", "0.2")] == buckets[-1] - 1
    assert 0.5 < told["heartbeat_reactor_lag_seconds_sum",] <= lag.sum


def test_the_format_is_the_one_that_was_asked_for(admin):
    """Prometheus' own text, or OpenMetrics, as prometheus_client chooses."""
    site = admin()

    assert site("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")
    opened = site("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert opened.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert opened.text.endswith("# EOF\n")


def test_without_the_extra_one_sentence_names_it(admin, monkeypatch):
    """All else can be watched all the same."""
    monkeypatch.setattr(metrics, "CollectorRegistry", None)
    site = admin()

    refused = site("/metrics")
    assert (refused.status, refused.text.count("\n")) == (501, 1)
    assert "pip install 'txheartbeat[metrics]'" in refused.text
    assert site("/totals").status == 200


def test_the_totals_are_what_the_page_shows(admin, person):
    site = admin()
    person("alice")
    totals = site("/totals").json

    assert totals["clients"] == {"active": 1, "away": 0, "connected": 0, "suspect": 0, "detached": 0}
    assert totals["states"] == {"acknowledged": 1, "waiting": 0, "suspect": 0, "dead": 0}
    assert totals["fleet"] is None
    assert (totals["connections"], totals["sessions"], totals["unready"]) == (1, 1, "")


def test_the_deaths_are_told_with_their_evidence_the_latest_first(admin, person, world):
    site = admin()
    for name in ("alice", "bob"):
        person(name).peer.transport.abortConnection()
        world.advance(1)

    deaths = site("/deaths").json["deaths"]
    assert [death["client_id"] for death in deaths] == ["bob", "alice"]
    assert deaths[0].keys() == {
        "at", "client_id", "peer", "reason", "detail", "silent_for", "unanswered_for", "rtt", "busy", "level", "age",
    }  # fmt: skip


# The look at every connection.


def test_a_look_that_takes_long_lets_the_reactor_turn(admin, person, world, monkeypatch):
    """Each is looked at once; who goes meanwhile is not; and who asks meanwhile gets the same."""
    site = admin()
    people = [person(f"n{number}") for number in range(12)]
    monkeypatch.setattr(view, "_SLICE", 0.0)
    monkeypatch.setattr(view, "_BETWEEN", 1)
    looking = View(site.server)
    found = []
    looking.lines().addCallback(found.append)
    looking.lines().addCallback(found.append)
    assert found == []
    turns, call_later = [], world.server.callLater
    world.server.callLater = lambda *arguments: turns.append(1) or call_later(*arguments)
    world.advance(0)

    assert len(turns) >= 10
    assert found[0] is found[1]
    assert found[0].states["acknowledged"] == len(people)


def test_one_that_goes_in_the_middle_of_a_look_is_not_counted(admin, person, world, monkeypatch):
    site = admin()
    people = [person(f"n{number}") for number in range(5)]
    monkeypatch.setattr(view, "_SLICE", 0.0)
    monkeypatch.setattr(view, "_BETWEEN", 1)
    found = []
    View(site.server).lines().addCallback(found.append)
    world.latency = 0.0
    for one in people:
        one.peer.transport.abortConnection()
    world.advance(0.1)

    assert found[0].states["acknowledged"] <= 2
    # The next look is another one.
    View(site.server).lines().addCallback(found.append)
    world.advance(0.1)
    assert found[1].states["acknowledged"] == 0


def test_who_asked_and_went_is_answered_nothing(admin, person, world, monkeypatch):
    """Nor does anything fail."""
    monkeypatch.setattr(view, "_SLICE", 0.0)
    monkeypatch.setattr(view, "_BETWEEN", 1)
    site = admin()
    for number in range(5):
        person(f"n{number}")
    transport = site.begin("/metrics")
    transport.protocol.connectionLost(Failure(ConnectionDone()))
    world.advance(1)

    assert transport.value() == b""


class Broken(Exception):
    """What this test has gone wrong."""


def test_a_look_that_fails_is_logged_and_said(admin, failures, monkeypatch):
    site = admin()

    def fail(self, lines):
        raise Broken

    monkeypatch.setattr(View, "totals", fail)
    assert site("/totals").status == 500
    assert len(failures.flush(Broken)) == 1
    monkeypatch.undo()
    assert site("/totals").status == 200


# What is done.


def test_a_client_that_is_kicked_is_closed_on_each_of_its_connections_for_good(admin, person, world):
    """1008 is final: by itself it does not come back. Its sessions wait as ever, others notice nothing."""
    site = admin(TOKEN)
    one, two, bob = person("alice"), person("alice"), person("bob")

    answer = site.post("/clients/alice/kick")
    assert (answer.status, answer.json) == (200, {"client_id": "alice", "closed": 2})
    assert (one.peer.closed_with, two.peer.close_reason, bob.peer.closed_with) == (1008, KICKED, None)
    world.advance(2)
    assert site.server.heartbeat.sessions.detached == 2
    assert site.server.heartbeat.tally.closed["server", "1008"] == 2
    assert site.post("/clients/alice/kick").status == 404


def test_our_client_takes_that_for_an_end(admin, start_client, world):
    site = admin(TOKEN)
    client = start_client(client_id="alice")
    site.post("/clients/alice/kick")
    world.advance(30)

    assert client.events == ["open", "closed", "unreachable"]
    assert len(world.connections) == 1


def test_a_page_at_level_0_can_be_kicked_by_the_id_that_it_was_given(admin, connect):
    site = admin(TOKEN)
    page = connect().open()
    page.say({"type": "ping"})
    (name,) = ids(site("/clients"))

    assert site.post(f"/clients/{name}/kick").json["closed"] == 1
    assert page.closed_with == 1008


@pytest.mark.parametrize("path", ["/clients/nobody/kick", "/clients/%ff/kick", "/clients//kick"])
def test_nobody_cannot_be_kicked(admin, path):
    assert admin(TOKEN).post(path).status == 404


@pytest.mark.parametrize("path", ["/nothing", "/clients/alice", "/clients/alice/kick/more", "/metrics/more", "/page/x"])
def test_there_is_nothing_else(admin, path):
    assert admin()(path).status == 404


def test_the_server_is_drained_by_whoever_may(admin, log):
    site = admin(TOKEN)

    answer = site.post("/drain")
    assert (answer.status, answer.json, site.drained) == (202, {"draining": True}, 1)
    assert "drained by an operator" in [event.get("log_format") for event in log]


# The page.


def test_the_page_has_all_that_it_names_and_may_load_nothing_else(admin):
    site = admin()
    page = site("/")

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    named = re.findall(r'(?:href|src)="([^"#]+)"', page.text)
    assert sorted(named) == ["favicon.svg", "page.css", "watch.css", "watch.js"]
    for name in named:
        assert site(f"/{name}").status == 200
    assert f"txheartbeat {__version__}" in page.text
    assert "$" not in page.text


def test_the_page_writes_no_html():
    """A client id is a stranger's text: it becomes text, and never markup."""
    script = (PAGE / "watch.js").read_text()

    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage|sessionStorage", script
    )


def test_the_page_puts_each_number_where_there_is_a_place_for_it():
    script, html = (PAGE / "watch.js").read_text(), (PAGE / "index.html").read_text()
    places = set(re.findall(r'id="([^"]+)"', html))

    assert set(re.findall(r'\$\("([^"]+)"\)', script)) <= places


# The service.


@pytest.fixture
def reactor():
    """A reactor that opens nothing, on which nothing is left."""
    reactor = MemoryReactorClock()
    yield reactor
    assert reactor.getDelayedCalls() == []


def test_a_server_is_watched_where_that_was_asked_for_and_nowhere_else(reactor, log):
    service = HeartbeatService("tcp:9000", admin="tcp:9001:interface=127.0.0.1", reactor=reactor)
    service.privilegedStartService()

    assert [(port, interface) for port, _, _, interface in reactor.tcpServers] == [(9000, ""), (9001, "127.0.0.1")]
    assert (len(service.ports), len(service.admin_ports)) == (1, 1)
    service.stopService()
    plain = HeartbeatService("tcp:9000", reactor=reactor)
    assert len(plain.services) == 1


REFUSED = {
    "anybody's": (
        {"admin": "tcp:9001"},
        "admin must be a listener for this machine alone, such as tcp:9001:interface=",
    ),
    "none": ({"admin": "9001"}, "admin must be "),
    "nonsense": ({"admin": "tcp:x:interface=127.0.0.1"}, "admin must be an endpoint description such as tcp:9001:"),
    "a token for nothing": ({"admin_token": "t"}, "admin_token must be left out where nothing is said of admin"),
    "no file": ({"admin": "tcp:9001", "admin_token": "/nowhere/t"}, "admin_token must be a file that can be read"),
}


@pytest.mark.parametrize(("options", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_wish_is_one_sentence_that_names_the_setting(reactor, options, sentence):
    with pytest.raises(SettingError) as refusal:
        HeartbeatService(**options, reactor=reactor)

    assert sentence in str(refusal.value)


def test_with_a_token_it_may_be_watched_from_elsewhere(reactor, tmp_path):
    (tmp_path / "token").write_bytes(TOKEN)

    HeartbeatService(admin="tcp:9001", admin_token=tmp_path / "token", reactor=reactor)


def test_a_service_that_is_drained_is_still_watched_and_can_be_stopped(reactor):
    """Once or twice; what listens is told to end once."""
    service = HeartbeatService("tcp:9000", admin="tcp:9001:interface=127.0.0.1", reactor=reactor)
    service.privilegedStartService()
    service.startService()
    ended = []
    for one in (*service._listeners, *service._watching):
        stop = one.stopService
        one.stopService = lambda one=one, stop=stop: ended.append(one) or stop()
    drained = [service.drain(), service.drain()]

    assert all(one.called for one in drained)
    assert ended == service._listeners
    assert (service.ports, len(service.admin_ports), service.running) == ([], 1, 1)
    stopped = service.stopService()
    assert stopped.called
    assert ended == [*service._listeners, *service._watching]
    assert (service.admin_ports, service.running) == ([], 0)


def test_other_services_below_it_end_with_it(reactor):
    from twisted.application.service import Service

    service, other = HeartbeatService("tcp:9000", reactor=reactor), Service()
    other.setServiceParent(service)
    service.privilegedStartService()
    service.startService()
    assert other.running
    service.stopService()

    assert not other.running
