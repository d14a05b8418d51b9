"""The starts that docs/browser.md tells, as somebody copies them: pages opened from a file, and a module under Node."""

import re
import shutil
from pathlib import Path

import pytest
from chromium import Tab
from processes import Program
from selenium.webdriver.support.wait import WebDriverWait

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
SOCKET = ROOT / "tests" / "browser" / "node_modules" / "ws" / "wrapper.mjs"
HTML_FROM_SERVER, HTML_PLAIN = re.findall(r"```html\n(.*?)```", (ROOT / "docs" / "browser.md").read_text(), re.DOTALL)
(FROM_NPM,) = re.findall(r"```js\n(.*?)```", (ROOT / "docs" / "browser.md").read_text(), re.DOTALL)


@pytest.fixture
def copied(browser, server, tmp_path):
    """A page of the docs, copied into a file, where only the address of the server was changed."""

    def copied(html):
        running = server("--origin", "null", "--messages", "chat,group", "--interval", "0.5")
        address = running.url.removeprefix("http://").rstrip("/")
        assert "127.0.0.1:9000" in html
        path = tmp_path / "page.html"
        path.write_text(html.replace("127.0.0.1:9000", address))
        driver = browser()
        driver.get(path.as_uri())
        return Tab(driver)

    return copied


def test_the_first_start_opens_the_line_and_has_its_message_handled(copied):
    """What it writes to the console: that its message was handled, and the group's word that it has joined."""
    tab = copied(HTML_FROM_SERVER)
    tab.until("document.getElementById('line').value.startsWith('open: open as c-')", 15)
    said = []

    def told(_):
        said.extend(tab.driver.get_log("browser"))
        return len(said) >= 2

    WebDriverWait(tab.driver, 15, 0.1).until(told)
    assert sorted(entry["level"] for entry in said) == ["INFO", "INFO"], said
    assert any('"handled"' in entry["message"] for entry in said), said


def test_the_second_start_runs_under_node_where_a_websocket_is_handed_over(server, tmp_path):
    if shutil.which("node") is None or not SOCKET.exists():
        pytest.skip("not run: what runs under Node needs node, and what `make test-all` installs by npm")
    running = server("--messages", "chat")
    module = (tmp_path / "heartbeat.js").as_uri()
    shutil.copy(ROOT / "heartbeat" / "web" / "static" / "heartbeat.js", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    program = FROM_NPM.replace('"txheartbeat"', f'"{module}"').replace("ws://127.0.0.1:9000/ws", running.ws)
    # Before the module is read, which takes the class that the surroundings have.
    start = f'import WebSocket from "{SOCKET.as_uri()}"; globalThis.WebSocket = WebSocket; await import("./start.js");'
    (tmp_path / "start.js").write_text(program)
    (tmp_path / "main.js").write_text(start)
    with Program(["node", tmp_path / "main.js"]) as run:
        assert "open as alice" in run.line_with("open ", 15)


def test_the_third_start_beats_and_never_comes_back(copied):
    """The server's interval is nothing to such a page; its own is 5 s."""
    tab = copied(HTML_PLAIN)
    tab.until("document.getElementById('alive').value === '1'", 15)
    began = tab.ask("performance.now()")
    tab.until("performance.now() > arguments[0]", 15, began + 11000)
    assert tab.ask("document.getElementById('reconnects').value") == "0"
    assert tab.driver.get_log("browser") == []
