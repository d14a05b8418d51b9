"""Signed tokens at the door of a real server: good, forged and expired ones, and keys that are changed meanwhile."""

import contextlib
import hmac
import json
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from ports import free_port
from processes import BIN, Program, client, twistd

from heartbeat.tokens import LEEWAY, LONGEST_TOKEN

# Each starts programs, most of them several.
pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "signed_tokens.py"

#: What each step may take at most; it takes a second or two.
SOON = 30.0

NOT_OURS = "this token is not signed by a key that is known here"


def signed(key, **claims):
    """A token of alice's, good for a minute, unless it is said otherwise."""
    claims = {"sub": "alice", "exp": time.time() + 60} | claims
    return jwt.encode(claims, key, "HS256" if isinstance(key, str) else "EdDSA")


@pytest.fixture
def secret(tmp_path):
    """A secret, in a file `keys` that only its owner can read."""
    secret = secrets.token_hex(32)
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_text(secret + "\n")
    return secret


def comes(url, **members):
    """What becomes of who opens so: the client id that he is given, or the code and the reason of his being closed."""
    where = urlsplit(url)
    # So long that its length is always said in the same way; and a mask of zeros changes nothing.
    opening = json.dumps({"type": "onopen", "v": 1} | members).encode().ljust(126)
    head = f"GET {where.path}?{where.query} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    head += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    with socket.create_connection((where.hostname, where.port), SOON) as line, line.makefile("rb") as heard:
        line.sendall(head.encode() + struct.pack("!BBH4x", 0x81, 0xFE, len(opening)) + opening)
        assert heard.readline().split()[1] == b"101"
        while heard.readline().strip():
            pass
        kind, length = heard.read(2)
        length = struct.unpack("!H", heard.read(2))[0] if length == 126 else length
        said = heard.read(length)
    if kind == 0x88:
        return struct.unpack("!H", said[:2])[0], said[2:].decode()
    return json.loads(said)["client_id"]


def is_let_in(url, token):
    """Whether alice is let in with this token."""
    answer = comes(url, token=token)
    assert answer in ("alice", (4401, NOT_OURS))
    return answer == "alice"


def wait_until(happens):
    """Ask again until it is so, within bounds."""
    deadline = time.monotonic() + SOON
    while not happens():
        assert time.monotonic() < deadline, "it has not happened"


def complaints(*servers):
    """What servers say that they should not."""
    said = [line for server in servers for line in server.seen + server.rest()]
    return [line for line in said if any(word in line for word in ("Traceback", "Unhandled", "#critical"))]


def test_who_shows_a_token_is_let_in_as_whom_it_names_and_others_are_closed_4401(tmp_path, secret):
    """In the opening, in the query and as a cookie; with a client of ours and without."""
    with twistd("--auth-jwt", "keys", "--auth-audience", "shop", cwd=tmp_path) as server:
        url = server.url()
        good = signed(secret, aud="shop")
        refused = {
            None: "a token is needed here",
            signed(secret): "this token has no aud",
            signed(secret, aud="forge"): "this token is for somebody else (aud)",
            signed(secret, aud="shop", exp=time.time() - LEEWAY - 1): "this token has expired",
            signed(secret, aud="shop", sub="a b"): "the sub of this token can be no client id",
            signed(secrets.token_hex(32), aud="shop"): NOT_OURS,
            "open sesame": "this is no signed token",
            "a" * 60_000: f"a token has at most {LONGEST_TOKEN} characters",
        }

        assert comes(url, token=good, client_id="mallory") == "alice"
        assert comes(f"{url}?token={good}") == "alice"
        for token, sentence in refused.items():
            assert comes(url, **({} if token is None else {"token": token})) == (4401, sentence)
        with client(url, "--count", "1", "--header", f"Cookie: token={good}", "--client-id", "mallory") as run:
            assert "open as alice" in run.event("open", SOON)["detail"]
        with client(url, "--count", "1") as run:
            assert run.event("closed", SOON)["code"] == 4401
            assert run.wait(SOON) == 2
    assert complaints(server) == []
    # What it says is read by more people than may come in.
    assert not [line for line in server.seen if secret in line or good in line]


def test_forged_tokens_are_let_in_by_no_real_server(tmp_path):
    private = Ed25519PrivateKey.generate()
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "keys.pem").write_bytes(pem)

    def forged(header, sign):
        parts = ({"typ": "JWT"} | header, {"sub": "alice", "exp": time.time() + 60})
        said = ".".join(jwt.utils.base64url_encode(json.dumps(part).encode()).decode() for part in parts)
        return f"{said}.{jwt.utils.base64url_encode(sign(said.encode())).decode()}"

    forgeries = {
        "no algorithm": forged({"alg": "none"}, lambda said: b""),
        "the public key": forged({"alg": "HS256"}, lambda said: hmac.digest(pem, said, "sha256")),
        "a file": forged({"alg": "HS256", "kid": "/dev/null"}, lambda said: hmac.digest(b"", said, "sha256")),
        "another key": signed(Ed25519PrivateKey.generate()),
    }
    with twistd("--auth-jwt", "keys.pem", cwd=tmp_path) as server:
        url = server.url()
        assert comes(url, token=signed(private)) == "alice"
        for by, token in forgeries.items():
            assert comes(url, token=token) == (4401, NOT_OURS), by
    assert complaints(server) == []


@pytest.mark.slow
def test_a_token_that_expires_ends_no_connection_and_the_session_goes_on_with_a_fresh_one(tmp_path, secret):
    """What is sent to a client is delivered long after its token has expired; and what comes while it is away, too."""
    port = free_port()
    url = f"ws://127.0.0.1:{port}/ws"
    session = ["--session", tmp_path / "alice.db"]

    def serve():
        store, listen = f"sqlite:{tmp_path / 'sessions.db'}", f"tcp:{port}:interface=127.0.0.1"
        options = ["--auth-jwt", "keys", "--store", store, "--messages", "chat"]
        return twistd("--listen", listen, *options, cwd=tmp_path)

    def bob_says(text):
        letter = json.dumps({"id": text, "to": "alice", "text": text})
        with client(f"{url}?token={signed(secret, sub='bob')}", "--send", "onchat", letter) as bob:
            assert bob.event("handled", SOON)["n"] == 1
            assert bob.wait(SOON) == 0

    with contextlib.ExitStack() as life:
        server = life.enter_context(serve())
        server.url()
        for seconds in (4, 8, 16, 32):
            end = time.time() + seconds
            old = signed(secret, exp=end - LEEWAY)
            alice = life.enter_context(client(f"{url}?token={old}", "--interval", "0.2", *session))
            if next(alice.json_events(SOON))["event"] == "open":
                break
            # On a busy machine it was not even started by then.
        for event in alice.json_events(seconds + SOON):
            if event["event"] == "pong" and time.time() > end + 1:
                break
        assert comes(url, token=old) == (4401, "this token has expired")
        bob_says("one")
        assert alice.event("message", SOON)["message"]["text"] == "one"

        server.kill()
        again = life.enter_context(serve())
        again.url()
        assert "4401: this token has expired" in alice.event("unreachable", SOON)["detail"]
        assert [line for line in alice.seen if '"dead"' in line] == []
        assert alice.wait(SOON) == 2
        bob_says("two")

        fresh = f"{url}?token={signed(secret)}"
        with client(fresh, "--interval", "0.2", *session) as back:
            assert back.event("message", SOON)["message"]["text"] == "two"
            assert [line for line in back.seen if "session-lost" in line] == []
        again.stop()
    assert complaints(server, again) == []


def example(folder, *words):
    """What the example says."""
    command = [sys.executable, EXAMPLE, *words]
    return subprocess.check_output(command, cwd=folder, timeout=SOON, text=True).strip()


def test_keys_are_changed_while_a_server_runs(tmp_path):
    """With the example that gives out tokens: the new key counts soon, the old one no more when it is forgotten."""
    first = example(tmp_path, "new-key")
    old = example(tmp_path, "token", "alice", "600")
    with twistd("--auth-jwt", "keys.json", cwd=tmp_path) as server:
        server.line_with(f"'{first}' (EdDSA)", SOON)
        url = server.url()
        with client(f"{url}?token={old}", "--interval", "0.2") as stays:
            assert "open as alice" in stays.event("open", SOON)["detail"]

            second = example(tmp_path, "new-key")
            new = example(tmp_path, "token", "alice", "600")
            wait_until(lambda: is_let_in(url, new))
            assert is_let_in(url, old)
            server.line_with(f"'{first}' (EdDSA), '{second}' (EdDSA)", SOON)

            example(tmp_path, "forget", first)
            wait_until(lambda: not is_let_in(url, old))
            assert is_let_in(url, new)

            (tmp_path / "keys.json").write_text('{"keys": [')
            wait_until(lambda: is_let_in(url, new) and _has_said(server, "cannot be used"))
            assert is_let_in(url, new)
            # Who was there before is there still.
            stays.rest()
            for _ in range(2):
                stays.event("pong", SOON)
            assert [line for line in stays.seen if '"closed"' in line] == []
    (line,) = [line for line in server.seen + server.rest() if "cannot be used" in line]
    assert line.endswith("cannot be used (it begins as JSON does, and is none); what it held before still holds")
    assert complaints(server) == []
    private = json.loads((tmp_path / "signing.json").read_text())["d"]
    assert not [line for line in server.seen if private in line]
    assert (tmp_path / "signing.json").stat().st_mode & 0o777 == 0o600


def _has_said(server, words):
    server.rest()
    return any(words in line for line in server.seen)


WRONG = {
    "it is not there": (["--auth-jwt", "nowhere"], "--auth-jwt must be a file of keys for tokens (No such file or"),
    "it is short": (["--auth-jwt", "short"], "(its line has 6 bytes, and a secret for HS256 needs 32), not 'short'"),
    "it is private": (["--auth-jwt", "private"], "(of PEM only public keys (BEGIN PUBLIC KEY) belong in it), not"),
    "there is none": (["--auth-audience", "shop"], "--auth-audience must be left out where there is no --auth-jwt"),
}  # fmt: skip


@pytest.mark.parametrize("why", WRONG)
def test_a_wrong_file_of_keys_ends_the_start_in_one_sentence(tmp_path, why):
    (tmp_path / "short").write_text("secret")
    (tmp_path / "private").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    options, sentence = WRONG[why]
    with Program([BIN / "twistd", "-n", "--pidfile=", "heartbeat", *options], cwd=tmp_path) as server:
        assert server.line_with(sentence, SOON)
        assert server.wait(SOON) == 1
    assert complaints(server) == []


def test_without_pyjwt_it_is_one_sentence_that_says_how_to_get_it(tmp_path, secret):
    """And without the option nothing is missing."""
    (tmp_path / "jwt.py").write_text("raise ModuleNotFoundError('No module named jwt')\n")
    command = [BIN / "twistd", "-n", "--pidfile=", "heartbeat", "--listen", "tcp:0:interface=127.0.0.1"]
    env = {"PYTHONPATH": str(tmp_path)}
    with Program([*command, "--auth-jwt", "keys"], cwd=tmp_path, env=env) as server:
        hint = "left out where PyJWT is not installed (pip install 'txheartbeat[auth]')"
        assert server.line_with(f"--auth-jwt must be {hint}, not 'keys'", SOON)
        assert server.wait(SOON) == 1
    with Program(command, cwd=tmp_path, env=env) as plain:
        assert comes(plain.url(), client_id="alice") == "alice"
    assert complaints(server, plain) == []


# How a key and a token are made by hand, as the documents say.
SIGN = """python -c 'import jwt, time; print(jwt.encode({"sub": "alice", "exp": time.time() + 600}, %s))'"""
BY_HAND = {
    "a secret": (
        "(umask 077; openssl rand -hex 32 > keys)",
        SIGN % 'open("keys").read().strip(), "HS256"',
    ),
    "a key pair": (
        "(umask 077; openssl genpkey -algorithm ed25519 -out own.pem); openssl pkey -in own.pem -pubout -out keys",
        SIGN % 'open("own.pem").read(), "EdDSA"',
    ),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_key_and_a_token_are_made_by_two_commands(tmp_path, kind):
    if shutil.which("openssl") is None:
        pytest.skip("NOT TESTED: no openssl on this machine, so nobody has made a key with it")
    env = {"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin"}
    made, token = (
        subprocess.check_output(["sh", "-c", line], cwd=tmp_path, env=env, timeout=SOON, text=True).strip()
        for line in BY_HAND[kind]
    )
    assert made == ""
    with twistd("--auth-jwt", "keys", cwd=tmp_path) as server:
        assert comes(server.url(), token=token) == "alice"
    assert [line for line in server.seen + server.rest() if "#warn" in line] == []
