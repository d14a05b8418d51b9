"""Who gives out signed tokens: makes keys, signs tokens, and changes the keys while servers run.

    python signed_tokens.py new-key
    twistd -n --pidfile= heartbeat --auth-jwt keys.json
    heartbeat-client "ws://127.0.0.1:9000/ws?token=$(python signed_tokens.py token alice 600)"

`signing.json` has the private key, which signs and stays here; `keys.json` has the public halves, for every server. To
change the key: `new-key`; when the last token of the old one has expired, `forget` and its name.
"""

import json
import secrets
import sys
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNING, KEYS = Path("signing.json"), Path("keys.json")


def new_key() -> None:
    """Make a key that signs from now on. Those before stay good, until they are forgotten."""
    private = Ed25519PrivateKey.generate()
    name = secrets.token_hex(4)
    # Before anything is signed by it: a server looks at its file once a second at most.
    write(KEYS, {"keys": [*known(), described(private.public_key(), name)]}, 0o644)
    write(SIGNING, described(private, name), 0o600)
    print(name)


def forget(name: str) -> None:
    """Have no token of this key let in any more. Connections that are open stay."""
    write(KEYS, {"keys": [key for key in known() if key["kid"] != name]}, 0o644)


def token(client_id: str, seconds: str) -> None:
    """Sign a token: with it, its bearer is this client for so long. A program would do it where people log in."""
    key = json.loads(SIGNING.read_text())
    now = int(time.time())
    claims = {"sub": client_id, "iat": now, "exp": now + int(seconds)}
    print(jwt.encode(claims, jwt.PyJWK(key), headers={"kid": key["kid"]}))


def known() -> list[dict[str, str]]:
    """The keys that servers know."""
    return json.loads(KEYS.read_text())["keys"] if KEYS.exists() else []


def described(key: object, name: str) -> dict[str, str]:
    """A key as a JWK (RFC 7517)."""
    return jwt.algorithms.OKPAlgorithm.to_jwk(key, as_dict=True) | {"kid": name, "alg": "EdDSA", "use": "sig"}


def write(path: Path, content: object, mode: int) -> None:
    """Put a file in the place of the one before, whole: whoever reads it just now gets one or the other."""
    new = path.with_suffix(".new")
    new.touch(mode)
    new.write_text(json.dumps(content))
    new.replace(path)


if __name__ == "__main__":
    {"new-key": new_key, "forget": forget, "token": token}[sys.argv[1]](*sys.argv[2:])
