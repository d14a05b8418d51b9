"""A real server that is watched: by Prometheus' own tool, by a load balancer while it goes; and the documents agree."""

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from processes import client, twistd
from prometheus_client.parser import text_string_to_metric_families

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
WATCHING = (DOCS / "watching.md").read_text(encoding="utf-8")
TOKEN = "0123456789abcdef-of-an-operator"


@pytest.fixture
def watched(tmp_path):
    """A server that is watched, with a token; and where."""
    (tmp_path / "token").write_text(TOKEN)
    admin = ("--admin", "tcp:0:interface=127.0.0.1", "--admin-token", "token")
    with twistd("--interval", "0.2", *admin, cwd=tmp_path) as program:
        program.ws = program.url()
        program.admin = program.line_with("watched at ", 15).split("watched at ")[1].split()[0]
        yield program


def asked(url, path, method="GET", **headers):
    """The status and the text of an answer."""
    request = urllib.request.Request(url + path, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(text):
    """The values by name and labels."""
    families = text_string_to_metric_families(text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


@pytest.fixture
def promtool():
    """Run Prometheus' own tool on a text; its exit status and what it said."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("not run: promtool is missing; Debian has it in its package prometheus")

    def promtool(*words, text=None):
        told = subprocess.run([tool, *words], input=text, capture_output=True, text=True, timeout=30, check=False)
        return told.returncode, told.stdout + told.stderr

    return promtool


@pytest.mark.slow
def test_prometheus_own_tool_has_nothing_to_say_of_the_metrics(watched, promtool):
    """After clients have come and broken off: every family is there, named and explained as it should be."""
    with client(watched.ws, "--client-id", "alice", "--beats", "server") as alice:
        alice.event("open", 15)
        with client(watched.ws, "--client-id", "bob") as bob:
            bob.event("pong", 15)
            bob.kill()
        asked(watched.ws.replace("ws", "http", 1).removesuffix("ws"), "nowhere")
        status, text = asked(watched.admin, "metrics")

    assert status == 200
    assert promtool("check", "metrics", text=text) == (0, "")
    told = samples(text)
    assert told["heartbeat_connections_opened_total",] == 2
    assert told["heartbeat_connections",] >= 1


def test_the_kernel_knows_a_round_trip_where_the_server_sends_no_pings(watched):
    """A real socket tells it, and what waits in it."""
    with client(watched.ws, "--client-id", "alice") as alice:
        alice.event("pong", 15)
        (only,) = json.loads(asked(watched.admin, "clients")[1])["clients"]

    (connection,) = only["connections"]
    assert only["client_id"] == "alice"
    assert connection["rtt_ms"] is None
    assert 0 < connection["tcp_rtt_ms"] < 1000
    assert connection["outgoing_bytes"] == 0


def test_a_drained_server_sends_all_away_and_is_told_to_be_unready(watched):
    """It stays to be watched until it is stopped."""
    with client(watched.ws, "--client-id", "alice", "--attempts", "1") as alice:
        alice.event("pong", 15)
        assert asked(watched.admin, "readyz") == (200, "ready\n")
        assert asked(watched.admin, "drain", "POST")[0] == 401
        status, said = asked(watched.admin, "drain", "POST", Authorization=f"Bearer {TOKEN}")
        assert (status, json.loads(said)) == (202, {"draining": True})
        assert alice.event("closed", 15)["code"] == 1012

    assert asked(watched.admin, "readyz") == (503, "the server is on its way out\n")
    assert asked(watched.admin, "healthz")[0] == 200
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(watched.ws.replace("ws", "http", 1), timeout=5)
    watched.stop()
    with pytest.raises(urllib.error.URLError):
        asked(watched.admin, "healthz")


@pytest.mark.slow
def test_a_listener_for_the_world_is_refused_without_a_token(tmp_path):
    """In one sentence, by its option, before anything listens."""
    with twistd("--admin", "tcp:0", cwd=tmp_path) as program:
        said = program.line_with("--admin must be", 15)
        assert program.wait(15) != 0

    assert "a listener for this machine alone, such as tcp:9001:interface=127.0.0.1" in said


# The documents.


@pytest.fixture
def families(watched):
    """The kinds of all metrics, by their names."""
    return {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in text_string_to_metric_families(asked(watched.admin, "metrics")[1])
    }


def named(text):
    """The metrics that a text names, without what a histogram's parts are called."""
    names = re.findall(r"\bheartbeat_[a-z_]+|\bprocess_[a-z_]+", text)
    return {re.sub(r"(_seconds)_(bucket|count|sum)$", r"\1", name) for name in names}


def test_the_document_tells_of_each_metric_and_of_no_other(families):
    """By its name and its kind."""
    rows = re.findall(r"^\| `(heartbeat_[a-z_]+)(?:\{[a-z,]*\})?` \| (\w+) \|", WATCHING, re.MULTILINE)

    assert dict(rows) == {name: kind for name, kind in families.items() if name.startswith("heartbeat_")}


def test_each_expression_of_the_dashboard_names_only_metrics_that_there_are(families):
    """And each metric of ours is on it."""
    board = json.loads((DOCS / "grafana.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [one["query"] for one in board["templating"]["list"]]

    assert len(expressions) > 20
    assert set().union(*map(named, expressions)) <= families.keys()
    ours = {name for name in families if name.startswith("heartbeat_")}
    assert ours - set().union(*map(named, expressions)) == set()


def test_no_two_panels_of_the_dashboard_lie_on_each_other():
    """Each has its place on a grid of 24 columns, and a title of its own."""
    panels = json.loads((DOCS / "grafana.json").read_text())["panels"]
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert len({panel["title"] for panel in panels}) == len(panels)


@pytest.mark.slow
def test_the_rules_are_rules_and_name_only_metrics_that_there_are(families, promtool, tmp_path):
    """As Prometheus reads them; so are the dashboard's expressions, with their variables filled in."""
    (rules,) = re.findall(r"^```yaml\n(.*?)^```", WATCHING, re.MULTILINE | re.DOTALL)
    (tmp_path / "rules.yml").write_text(rules)
    assert named(rules) <= families.keys()
    status, said = promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert status == 0, said

    board = json.loads((DOCS / "grafana.json").read_text())
    expressions = {target["expr"] for panel in board["panels"] for target in panel["targets"]}
    filled = [
        one.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$job", ".*") for one in expressions
    ]
    records = [{"record": f"r:{number}", "expr": one} for number, one in enumerate(filled)]
    # JSON is YAML.
    (tmp_path / "board.yml").write_text(json.dumps({"groups": [{"name": "board", "rules": records}]}))
    status, said = promtool("check", "rules", str(tmp_path / "board.yml"))
    assert status == 0, said
