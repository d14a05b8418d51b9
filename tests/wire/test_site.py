"""What is served to those who ask by HTTP, and how."""

import gzip
import re
from importlib.resources import files

import pytest
from peers import request
from twisted.logger import formatEvent
from twisted.web.resource import Resource
from twisted.web.server import Site

from heartbeat import HeartbeatService
from heartbeat._version import __version__
from heartbeat.service import PATHS
from heartbeat.web import browser_client, live_page, make_site

WEB = files("heartbeat.web")
SCRIPT, STYLE, PICTURE = "text/javascript; charset=utf-8", "text/css; charset=utf-8", "image/svg+xml"

# What Chromium sends with an address that was typed.
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"

FILES = {
    "/heartbeat.js": ("static/heartbeat.js", SCRIPT),
    "/heartbeat.d.ts": ("static/heartbeat.d.ts", "text/plain; charset=utf-8"),
    "/page.js": ("page/page.js", SCRIPT),
    "/page.css": ("page/page.css", STYLE),
    "/chart.js": ("page/chart.js", SCRIPT),
    "/favicon.svg": ("page/favicon.svg", PICTURE),
    "/favicon.ico": ("page/favicon.svg", PICTURE),
}


def contents(name):
    return (WEB / name).read_bytes()


@pytest.fixture
def ask(connect):
    """Ask whoever listens for something, by HTTP, and have the answer."""

    def ask(path, method="GET", **headers):
        browser = connect()
        browser.write(request(path, method=method, upgrade=None, connection=None, **headers))
        return browser

    return ask


@pytest.fixture
def get(serve, world, ask):
    """Ask our own site, behind a server that serves chat and groups."""
    serve(site=make_site(world.server, ("chat", "group")), paths=PATHS)
    return ask


# The front page.


def test_a_browser_gets_the_live_page(get):
    """It is told by two words of its own what is served, and which version this is."""
    page = get("/", accept=BROWSER)

    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    html = page.body.decode()
    assert 'data-messages="chat group"' in html
    assert __version__ in html
    assert "$messages" not in html
    assert "$version" not in html


def test_the_page_allows_itself_nothing_but_what_comes_from_here(get):
    """Also over wss:// and for workers; nothing inline, no form, no frame around it, nobody told where one was."""
    headers = get("/", accept=BROWSER).headers

    assert headers["content-security-policy"].split("; ") == [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_all_that_the_page_is_made_of_is_there(get):
    """Whatever it names, and whatever its scripts and styles name, by a path that holds below any address."""
    seen, waiting = set(), ["index.html"]
    while waiting:
        name = waiting.pop()
        seen.add(name)
        text = get("/" if name == "index.html" else f"/{name}", accept=BROWSER).body.decode()
        named = re.findall(r'(?:href|src)="([^"#][^"]*)"', text) if name == "index.html" else []
        named += re.findall(r'\b(?:from|import)\s*\(?"([^"]+)"', text) if name.endswith(".js") else []
        named += re.findall(r'url\("?([^")]+)"?\)', text) if name.endswith(".css") else []
        for path in (path.removeprefix("./") for path in named):
            assert re.fullmatch(r"[a-z.]+", path), f"{name} names {path}"
            assert get(f"/{path}").status == 200, f"{name} names {path}"
            if path not in seen:
                waiting.append(path)

    assert {"page.js", "page.css", "favicon.svg", "heartbeat.js"} <= seen


HTML = {
    "a browser": BROWSER,
    "alone": "text/html",
    "in capitals": "Text/HTML",
    "not the first": "application/json, text/html",
    "with a preference": "text/html;q=0.1",
    "with parameters": "text/html; charset=utf-8 ; q=0.5",
}


@pytest.mark.parametrize("accept", HTML.values(), ids=HTML)
def test_the_live_page_is_for_whoever_names_html(get, accept):
    assert get("/", accept=accept).headers["content-type"] == "text/html; charset=utf-8"


NOT_HTML = {
    "nothing": None,
    "curl": "*/*",
    "any text": "text/*",
    "JSON": "application/json",
    "HTML is refused": "text/html;q=0, */*",
    "HTML is refused precisely": "text/html; q=0.000",
    "something longer": "text/html5",
    "no list at all": ";,;=,text/html text/plain",
    "odd bytes": "\xff",
}


@pytest.mark.parametrize("accept", NOT_HTML.values(), ids=NOT_HTML)
def test_whoever_does_not_name_html_gets_a_text_to_try_things_by(get, accept):
    page = get("/", accept=accept)

    assert page.status == 200
    assert page.headers["content-type"] == "text/plain; charset=utf-8"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert b'{"type": "ping"}' in page.body
    assert b"heartbeat-client ws://test:9000/ws" in page.body
    assert b"/heartbeat.js" in page.body


def test_a_cache_in_between_is_told_that_there_are_two(get):
    assert get("/", accept=BROWSER).headers["vary"] == get("/").headers["vary"] == "accept, accept-encoding"


def test_a_host_of_odd_bytes_is_said_back_in_bounds(get):
    page = get("/", host="\xff" * 1000)

    assert page.status == 200
    assert page.body.decode().count("\xff") == 255


def test_words_are_no_markup(serve, world, ask):
    serve(site=make_site(world.server, ('"><script>', "$version")), paths=PATHS)

    assert b'data-messages="&quot;&gt;&lt;script&gt; $version"' in ask("/", accept=BROWSER).body


SERVED = {
    "nothing": ((), {}, ""),
    "what was named": (("group", "chat"), {}, "group chat"),
    "each once": (("chat", "chat"), {}, "chat"),
    "no questions that would be refused": (("chat", "ai"), {}, "chat"),
    "questions to a model": (("chat", "ai"), {"url": "http://127.0.0.1:1/v1"}, "chat ai"),
}


@pytest.mark.parametrize(("messages", "ai", "words"), SERVED.values(), ids=SERVED)
def test_the_page_is_told_what_the_service_serves(world, ask, messages, ai, words):
    service = HeartbeatService((), messages=iter(messages), ai=ai, reactor=world.server)
    world.listen(service.factory)

    assert f'data-messages="{words}"' in ask("/", accept=BROWSER).body.decode()


# The files.


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_served_as_what_it_is(get, path):
    name, kind = FILES[path]
    answer = get(path)

    assert answer.status == 200
    assert answer.body == contents(name)
    assert answer.headers["content-type"] == kind
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["vary"] == "accept-encoding"
    assert answer.headers["connection"] == "close"


def test_pages_of_other_hosts_may_import_the_client_and_nothing_else(get):
    opened = [path for path in FILES if get(path).headers.get("access-control-allow-origin") == "*"]

    assert opened == ["/heartbeat.js", "/heartbeat.d.ts"]


@pytest.mark.parametrize("path", [*FILES, "/"])
def test_whoever_takes_gzip_gets_it(get, path):
    plain = get(path, accept=BROWSER)
    zipped = get(path, accept=BROWSER, accept_encoding="gzip, deflate, br, zstd")

    assert zipped.headers["content-encoding"] == "gzip"
    assert gzip.decompress(zipped.body) == plain.body
    # RFC 1952, section 2.3.1: MTIME. With one, each process would have a tag of its own for the same file.
    assert zipped.body[4:8] == bytes(4)
    assert zipped.headers["content-length"] == str(len(zipped.body))
    assert zipped.headers["etag"] != plain.headers["etag"]
    assert "accept-encoding" in zipped.headers["vary"]
    assert "content-encoding" not in plain.headers


@pytest.mark.parametrize("encodings", ["br", "gzip;q=0", "*", "gzip;q=0.0, *", "gzipped", ""])
def test_whoever_does_not_gets_what_is_plain(get, encodings):
    answer = get("/heartbeat.js", accept_encoding=encodings)

    assert "content-encoding" not in answer.headers
    assert answer.body == contents("static/heartbeat.js")


# Not again for those who have it.


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("path", ["/", "/heartbeat.js"])
def test_whoever_has_it_is_told_so(get, path, encoding):
    """The head alone, and nothing in it about bytes that are not sent."""
    asked = {"accept": BROWSER, "accept_encoding": encoding}
    first = get(path, **asked)
    again = get(path, if_none_match=first.headers["etag"], **asked)

    assert again.status == 304
    assert again.body == b""
    kept = ("etag", "vary", "cache-control", "access-control-allow-origin", "content-security-policy")
    assert {name: again.headers.get(name) for name in kept} == {name: first.headers.get(name) for name in kept}
    assert not {"content-length", "content-type", "content-encoding", "transfer-encoding"} & set(again.headers)


HELD = {
    "the same": ("{tag}", 304),
    "weakly": ("W/{tag}", 304),
    "one of a list": ('"a", W/"b", {tag},"c"', 304),
    "anything": (" * ", 304),
    "another": ('"a"', 200),
    "a longer one": ('"x{bare}"', 200),
    "without quotes": ("{bare}", 200),
    "nothing": ("", 200),
    "half of one": ('"', 200),
}


@pytest.mark.parametrize(("held", "status"), HELD.values(), ids=HELD)
def test_what_a_client_holds_is_compared_as_the_rfc_says(get, held, status):
    """RFC 9110, section 13.1.2."""
    tag = get("/page.js").headers["etag"]

    assert get("/page.js", if_none_match=held.format(tag=tag, bare=tag.strip('"'))).status == status


def test_the_compressed_and_the_plain_are_not_taken_for_each_other(get):
    plain = get("/heartbeat.js").headers["etag"]

    assert get("/heartbeat.js", if_none_match=plain, accept_encoding="gzip").status == 200


def test_tags_name_the_bytes(serve, world, ask):
    """The same bytes have the same tag in every process, and others another."""
    tags = []
    for messages in (("chat",), ("chat",), ("group",)):
        serve(site=make_site(world.server, messages), paths=PATHS)
        tags.append(ask("/", accept=BROWSER).headers["etag"])

    assert tags[0] == tags[1] != tags[2]


# Methods.


@pytest.mark.parametrize("path", [*FILES, "/", "/ws", "/elsewhere"])
def test_of_a_head_request_the_head_alone_is_answered(get, path):
    whole, head = get(path, accept=BROWSER), get(path, "HEAD", accept=BROWSER)

    assert head.body == b""
    assert whole.body
    assert head.status == whole.status
    assert head.headers.keys() == whole.headers.keys()
    assert head.headers["content-length"] == whole.headers["content-length"] == str(len(whole.body))


@pytest.mark.parametrize("path", ["/", "/heartbeat.js"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "PROPFIND", "get", "BREW"])
def test_there_is_nothing_to_do_but_read(get, path, method):
    answer = get(path, method)

    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_websockets_own_path_asks_for_an_upgrade(get):
    answer = get("/ws")

    assert answer.head.startswith("HTTP/1.1 426 Upgrade Required\r\n")
    assert answer.headers["upgrade"] == "websocket"
    # RFC 9110, section 7.8: a sender of Upgrade "MUST also send an 'Upgrade' connection option".
    assert answer.headers["connection"] == "upgrade, close"


# Paths.

FOUND = {
    "with a query": "/heartbeat.js?v=1&v=2;/../?",
    "with a query without an end": "/heartbeat.js?" + "a&" * 5000,
    "with the server's name (RFC 9112, 3.2.2)": "http://test:9000/heartbeat.js",
    "with another's name": "https://elsewhere.example/heartbeat.js?x",
    "escaped without need": "/%68eartbeat%2Ejs",
}  # fmt: skip


@pytest.mark.parametrize("path", FOUND.values(), ids=FOUND)
def test_a_file_is_found_however_its_path_is_written(get, path):
    assert get(path).body == contents("static/heartbeat.js")


@pytest.mark.parametrize("path", ["http://test:9000", "http://test:9000/", "/?", "/?/heartbeat.js"])
def test_the_front_page_is_found_however_its_path_is_written(get, path):
    assert b"<html" in get(path, accept=BROWSER).body


NOT_FOUND = [
    "/elsewhere",
    "/elsewhere/below",
    "/index.html",
    "/package.json",
    "/LICENSE",
    "/README.md",
    "/site.py",
    "/static/heartbeat.js",
    "/page/page.js",
    "/heartbeat.js/",
    "/heartbeat.js/heartbeat.js",
    "/ws/heartbeat.js/..",
    "//heartbeat.js",
    "//",
    "/./heartbeat.js",
    "/../static/heartbeat.js",
    "/%2e%2e/static/heartbeat.js",
    "/..%2fstatic%2fheartbeat.js",
    "/%2fetc%2fpasswd",
    "/..\\static\\heartbeat.js",
    "/heartbeat.js%00",
    "/heartbeat.js%00.css",
    "/heartbeat.js%20",
    "/HEARTBEAT.JS",
    "/%",
    "/%zz",
    "/%ff",
    "heartbeat.js",
    "http://test:9000/../static/heartbeat.js",
    "*",
]


@pytest.mark.parametrize("path", NOT_FOUND)
def test_there_is_nothing_else(get, path):
    """No path is ever one of the file system's."""
    answer = get(path)

    assert answer.status == (426 if path.startswith("/ws/") else 405 if path == "*" else 404)
    assert b"import" not in answer.body


NO_REQUEST = {
    "odd bytes in the path": "GET /\xff HTTP/1.1",
    "a NUL in the path": "GET /\0 HTTP/1.1",
    "an escape in the path": "GET /\x1b[2J HTTP/1.1",
    "an escape in the method": "G\x1bT / HTTP/1.1",
    "odd bytes in the method": "G\xcbT / HTTP/1.1",
    "too many words": "GET / page HTTP/1.1",
    "two words": "GET /",
    "one word": "GET",
}


@pytest.mark.parametrize("line", NO_REQUEST.values(), ids=NO_REQUEST)
def test_what_is_no_request_is_refused(get, connect, line, still_serves):
    stranger = connect()
    stranger.write(line.encode("latin-1") + b"\r\nHost: test\r\n\r\n")

    assert stranger.status == 400
    still_serves()


@pytest.mark.parametrize("length", [1000, 16_000, *range(16_330, 16_400), 20_000, 200_000])
def test_a_path_without_an_end_is_refused_and_the_next_one_served(serve, world, connect, length, still_serves):
    """Whichever of its bounds the head meets: ours, or twisted.web's for a line."""
    serve(site=make_site(world.server), paths=PATHS)
    browser = connect()
    browser.write(b"GET /" + b"x" * length + b" HTTP/1.1\r\nHost: test\r\n\r\n")

    assert browser.status in ((404,) if length < 16_300 else (400, 404, 431))
    world.advance(1)
    assert browser.ended is not None
    still_serves()


# The connection.


def test_what_follows_a_request_is_nothing_to_us(get, world):
    """Not even while a client keeps open what we have closed."""
    browser = get("/heartbeat.js")
    server = world.connections[-1][0]
    server.protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

    assert browser.received.count(b"HTTP/1.1 ") == 1


def test_whoever_never_takes_the_answer_is_not_waited_for(serve, world, connect, monkeypatch):
    """Over TLS, a client that does not say goodbye; anywhere, one that reads nothing of a long answer."""
    factory = serve(site=make_site(world.server), paths=PATHS)
    browser = connect()
    server = world.connections[-1][0]
    monkeypatch.setattr(server, "loseConnection", lambda: None)
    browser.write(request("/heartbeat.js", upgrade=None, connection=None))
    assert browser.status == 200

    for _ in range(100):
        # It may talk as much as it likes.
        world.advance(1)
        if browser.ended is None:
            browser.write(b"more")

    assert browser.ended == pytest.approx(75, abs=2)
    assert factory.countConnections == 0


# The access log.


def test_who_asked_for_what_is_logged_but_for_what_browsers_ask_by_themselves(get, log):
    for path in ("/heartbeat.js?v=1", "/favicon.ico", "/favicon.svg", "/favicon.gif"):
        get(path)

    told = [formatEvent(event) for event in log]
    assert [line for line in told if line.startswith("GET")] == [
        "GET /heartbeat.js?v=1 200 from 127.0.0.1",
        "GET /favicon.gif 404 from 127.0.0.1",
    ]


def test_a_log_holds_no_more_than_the_beginning_of_what_strangers_say(get, log):
    get("/" + "x" * 1000, "M" * 1000)

    assert "M" * 200 + " /" + "x" * 199 + " 404 from 127.0.0.1" in [formatEvent(event) for event in log]


def test_of_many_that_are_refused_ten_a_minute_have_their_line_and_the_rest_are_counted(get, world, log):
    """Who is served always has it."""
    for _ in range(25):
        get("/no")
        get("/heartbeat.js")
    world.advance(7)
    get("/no")

    told = [formatEvent(event) for event in log]
    assert told.count("GET /no 404 from 127.0.0.1") == 11
    assert told.count("GET /heartbeat.js 200 from 127.0.0.1") == 25
    assert [line for line in told if "more" in line] == ["refused 15 more requests since then"]


# In a site of one's own.


@pytest.fixture
def own(serve, world, ask):
    """A site of an application's own, which has put the client and the page into its tree."""
    root = Resource()
    root.putChild(b"client.js", browser_client())
    root.putChild(b"live", live_page(("chat",)))
    serve(site=Site(root, reactor=world.server), paths=PATHS)
    return ask


def test_the_client_is_put_where_one_likes(own):
    answer = own("/client.js")

    assert answer.status == 200
    assert answer.headers["content-type"] == SCRIPT
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.body == contents("static/heartbeat.js")
    assert own("/client.js/below").status == 404
    assert own("/client.js", if_none_match=answer.headers["etag"]).status == 304


def test_the_page_is_put_where_one_likes(own):
    """With all that it needs beside it."""
    assert b'data-messages="chat"' in own("/live/", accept=BROWSER).body
    assert own("/live/heartbeat.js").body == contents("static/heartbeat.js")
    assert own("/live/page.css").body == contents("page/page.css")
    assert own("/live/ws").status == 404
    assert own("/live/", "POST").status == 405


def test_a_page_without_its_slash_is_sent_to_it(own):
    """Or its files would be looked for beside it."""
    answer = own("/live", accept=BROWSER)

    assert answer.status == 302
    assert answer.headers["location"] == "./live/"
    assert own("/live", "POST").status == 405
