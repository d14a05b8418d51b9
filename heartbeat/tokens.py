"""Signed tokens (JWT, RFC 7519) at the door: whoever shows one that a key of ours has signed is whom it names.

Judges tokens, and reads the file of keys; makes neither. A signature is checked by the algorithm that the kind of the
key calls for, HS256 for a secret and EdDSA for a public key (Ed25519), and never by the one that a token names (RFC
8725, section 3.1). Nothing that a token says leads to a file, an address or another key than those of the file.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key
from twisted.logger import Logger

from heartbeat.auth import Credentials
from heartbeat.core.errors import SettingError, Unauthorized
from heartbeat.core.settings import is_client_id

try:
    import jwt
except ImportError:
    jwt = None  # type: ignore[assignment]  # said when somebody wants tokens judged

if TYPE_CHECKING:
    from jwt.types import Options

__all__ = ["LEEWAY", "LONGEST_TOKEN", "SignedTokens"]

_log = Logger()

#: Seconds by which the clock of who signs may differ from ours.
LEEWAY = 10.0

#: Characters of a token at most; a cookie, or a line of a request, cannot be much longer either.
LONGEST_TOKEN = 8192

#: Bytes of an HS256 secret at least (RFC 7518, section 3.2).
SHORTEST_SECRET = 32

# Seconds from one look at the file to the next.
_LOOK = 1.0
# A token that names no key is tried with each.
_MOST_KEYS = 16
_LARGEST_FILE = 65_536

# What signs by a key of these kinds: the `kty` of a JWK, and its `crv` where it has one.
_ALGORITHMS = {"oct": "HS256", "OKP Ed25519": "EdDSA"}

# Times are ours to judge, by our own clock; so is a `sub`, which has to be a client id.
_OPTIONS: Options = {
    "require": ["exp", "sub"],
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_sub": False,
}

_BASE64URL = re.compile("[A-Za-z0-9_-]+")
_BEGIN, _END = b"-----BEGIN PUBLIC KEY-----", b"-----END PUBLIC KEY-----"


class SignedTokens:
    """An `Authenticator` that lets in who shows a token signed by a key of `keyfile`, as whom its `sub` says.

    A token has an `exp` and a `sub`. Its `aud` names `audience`, and is not there without one; its `iss` is `issuer`,
    where there is one. It is judged when a connection opens: one that is open lives on, whatever becomes of its token
    and of the key.

    `keyfile` is a JWK Set (RFC 7517), or a JWK, of the kinds `oct` and `OKP` with `Ed25519`; or public keys in PEM; or
    one line, whose characters are a secret. It is looked at again when somebody comes, once a second at most. `clock`
    tells the seconds since 1970. Raises SettingError (`keyfile`, `audience`, `issuer`).
    """

    def __init__(
        self,
        keyfile: str | os.PathLike[str],
        *,
        audience: str | None = None,
        issuer: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if jwt is None:
            bound = "left out where PyJWT is not installed (pip install 'txheartbeat[auth]')"
            raise SettingError("keyfile", os.fspath(keyfile), bound)
        for name, value in (("audience", audience), ("issuer", issuer)):
            if value == "":
                raise SettingError(name, value, "text, and not empty")
        self.path = Path(keyfile).absolute()
        self._decode = partial(jwt.decode, audience=audience, issuer=issuer, options=_OPTIONS)
        self._has_audience = audience is not None
        self._clock = clock
        self._looked_at = clock()
        self._stamp = _stamp_of(self.path)
        try:
            self._keys = self._read()
        except _Unusable as why:
            raise SettingError("keyfile", os.fspath(keyfile), f"a file of keys for tokens ({why})") from None

    def authenticate(self, credentials: Credentials) -> str:
        """Authenticator: the client id of whoever shows these. Raises Unauthorized."""
        now = self._clock()
        self._look(now)
        token = credentials.token
        if token is None:
            raise Unauthorized("a token is needed here")
        claims = self._verified(token)
        if not self._has_audience and "aud" in claims:
            # RFC 7519, section 4.1.3: who does not find himself in an `aud` must refuse. PyJWT lets an empty one pass.
            raise Unauthorized("this token is for somebody else (aud)")
        _judge_times(claims, now)
        name = claims["sub"]
        if not is_client_id(name):
            raise Unauthorized("the sub of this token can be no client id")
        if name.startswith("c-"):
            # As everywhere: such ids are given by a server, and are nobody's.
            raise Unauthorized("the sub of this token begins with c-, which is nobody's to claim")
        return str(name)

    def _verified(self, token: str) -> dict[str, Any]:
        """What a token says, once the signature of a key of ours was found under it."""
        if len(token) > LONGEST_TOKEN:
            raise Unauthorized(f"a token has at most {LONGEST_TOKEN} characters")
        if not token.isascii():
            raise Unauthorized("this is no signed token")
        try:
            name = jwt.get_unverified_header(token).get("kid")
            for key in self._keys:
                # The name only chooses among keys that are all good; one without a name stands for any.
                if name is None or key.name in (None, name):
                    try:
                        return self._decode(token, key.key, algorithms=[key.algorithm])
                    except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
                        continue
        except jwt.MissingRequiredClaimError as error:
            raise Unauthorized(f"this token has no {error.claim}") from None
        except jwt.InvalidAudienceError:
            raise Unauthorized("this token is for somebody else (aud)") from None
        except jwt.InvalidIssuerError:
            raise Unauthorized("this token is from somebody else (iss)") from None
        except jwt.InvalidTokenError:
            raise Unauthorized("this is no signed token") from None
        raise Unauthorized("this token is not signed by a key that is known here")

    def _look(self, now: float) -> None:
        """Read the file again, if it has changed; where it cannot be used, what it held before still holds."""
        # A system clock may step back.
        if 0 <= now - self._looked_at < _LOOK:
            return
        self._looked_at = now
        stamp = _stamp_of(self.path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = self._read()
        except _Unusable as why:
            _log.error(
                "the key file {path} cannot be used ({why}); what it held before still holds", path=self.path, why=why
            )

    def _read(self) -> tuple[_Key, ...]:
        """The keys in the file, of which the log is told all but their secrets. Raises _Unusable."""
        content, mode = _content_of(self.path)
        keys, others = _keys_of(content)
        said = (f"{'a key' if key.name is None else repr(key.name)} ({key.algorithm})" for key in keys)
        _log.info("tokens are judged by the keys in {path}: {keys}", path=self.path, keys=", ".join(said))
        if others:
            _log.warn("{count} key(s) in {path} are for something else, and passed over", count=others, path=self.path)
        if mode & 0o022:
            # As sshd asks of its authorized_keys.
            _log.warn("not its owner alone can change {path}, and with it who is let in: chmod go-w", path=self.path)
        if mode & 0o004 and any(key.algorithm == "HS256" for key in keys):
            _log.warn("everybody on this machine can read the secret in {path}: chmod o-r", path=self.path)
        return keys


def _judge_times(claims: dict[str, Any], now: float) -> None:
    """RFC 7519, sections 4.1.4 to 4.1.6. Raises Unauthorized."""
    for name in ("exp", "nbf", "iat"):
        value = claims.get(name, now)
        # Python's JSON takes NaN and Infinity for numbers.
        if type(value) is not int and not (type(value) is float and isfinite(value)):
            raise Unauthorized(f"the {name} of this token is no time")
    if claims["exp"] <= now - LEEWAY:
        raise Unauthorized("this token has expired")
    if any(claims.get(name, now) > now + LEEWAY for name in ("nbf", "iat")):
        raise Unauthorized("this token is not valid yet")


# The file of keys.


@dataclass(frozen=True, slots=True)
class _Key:
    """What a signature is checked by; `name` is its `kid`, None where it has none."""

    name: str | None
    algorithm: str
    key: bytes | Ed25519PublicKey = field(repr=False)


class _Unusable(Exception):
    """Why a file of keys cannot be used, in words that hold nothing secret of what is in it."""


def _stamp_of(path: Path) -> tuple[int, ...] | None:
    """What changes with a file; None where there is none to be had."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    # Each alone can be missed: a copy may keep the old time, a new file may get the old number.
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def _content_of(path: Path) -> tuple[bytes, int]:
    """What is in a file, and what may be done with it by whom."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            # A pipe would keep the reactor waiting for whoever writes into it.
            raise _Unusable("it is no ordinary file")
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        # A ValueError is for a name that no file can have.
        raise _Unusable(getattr(error, "strerror", None) or "no file has such a name") from None
    if len(content) > _LARGEST_FILE:
        raise _Unusable(f"it has more than {_LARGEST_FILE} bytes")
    # Elsewhere these bits say nothing.
    return content.strip(), found.st_mode if os.name == "posix" else 0


def _keys_of(content: bytes) -> tuple[tuple[_Key, ...], int]:
    """The keys in the content of a file, and how many there are besides that are for something else."""
    if not content:
        raise _Unusable("it is empty")
    if content.startswith(b"{"):
        keys, others = _of_json(content)
    elif content.startswith(b"-----BEGIN "):
        keys, others = _of_pem(content), 0
    else:
        keys, others = [_of_line(content)], 0
    if not keys:
        raise _Unusable("it has no key for HS256 or EdDSA (Ed25519)")
    if len(keys) > _MOST_KEYS:
        raise _Unusable(f"it has {len(keys)} keys, and {_MOST_KEYS} are the most")
    return tuple(keys), others


def _of_json(content: bytes) -> tuple[list[_Key], int]:
    """A JWK Set, or a single JWK (RFC 7517)."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise _Unusable("it begins as JSON does, and is none") from None
    entries = found.get("keys", [found])
    if type(entries) is not list or not all(type(entry) is dict for entry in entries):
        raise _Unusable("the keys of a JWK Set are a list of objects")
    ours = [(entry, algorithm) for entry in entries if (algorithm := _algorithm_of(entry)) is not None]
    keys = [_of_jwk(entry, algorithm) for entry, algorithm in ours]
    names = [key.name for key in keys if key.name is not None]
    if len(set(names)) < len(names):
        raise _Unusable("two of its keys have the same kid")
    return keys, len(entries) - len(keys)


def _algorithm_of(entry: dict[str, Any]) -> str | None:
    """What signs by a key of this kind; None where it is for something else, and passed over (RFC 7517, section 5)."""
    kind = " ".join(str(entry[name]) for name in ("kty", "crv") if name in entry)
    algorithm = _ALGORITHMS.get(kind)
    uses = entry.get("key_ops", ["verify"])
    is_for_us = (
        entry.get("alg", algorithm) == algorithm
        and entry.get("use", "sig") == "sig"
        and type(uses) is list
        and "verify" in uses
    )
    return algorithm if is_for_us else None


def _of_jwk(entry: dict[str, Any], algorithm: str) -> _Key:
    name = entry.get("kid")
    if name is not None and type(name) is not str:
        raise _Unusable("a kid is text")
    said = "a key without a kid" if name is None else f"the key {name!r}"
    if algorithm == "HS256":
        return _Key(name, algorithm, _secret(_bytes_of(entry, "k", said), said))
    if "d" in entry:
        raise _Unusable(f"{said} is a private one, of which only the public half belongs here (without d)")
    try:
        return _Key(name, algorithm, Ed25519PublicKey.from_public_bytes(_bytes_of(entry, "x", said)))
    except ValueError:
        raise _Unusable(f"{said} has an x that is none of Ed25519") from None


def _bytes_of(entry: dict[str, Any], member: str, said: str) -> bytes:
    """A member of a JWK, which is base64url without padding (RFC 7515, section 2)."""
    text = entry.get(member)
    # Python's own decoder drops what is not in the alphabet.
    if type(text) is not str or not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        raise _Unusable(f"{said} has no {member} in base64url")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _of_pem(content: bytes) -> list[_Key]:
    """Public keys, one after the other."""
    keys = []
    *blocks, rest = content.split(_END)
    for block in blocks:
        key = None
        if block.strip().startswith(_BEGIN):
            with suppress(ValueError, UnsupportedAlgorithm):
                key = load_pem_public_key(block.strip() + b"\n" + _END)
        if not isinstance(key, Ed25519PublicKey):
            raise _Unusable("what it has in PEM is no public key of Ed25519")
        keys.append(_Key(None, "EdDSA", key))
    if rest:
        raise _Unusable("of PEM only public keys (BEGIN PUBLIC KEY) belong in it")
    return keys


def _of_line(content: bytes) -> _Key:
    """A secret, which is its characters."""
    if not all(0x21 <= byte <= 0x7E for byte in content):
        raise _Unusable("it is neither a JWK Set, nor PEM, nor one line of visible ASCII")
    try:
        load_der_public_key(base64.b64decode(content, validate=True))
    except (ValueError, UnsupportedAlgorithm):
        return _Key(None, "HS256", _secret(content, "its line"))
    # Everybody may know that, and so could sign.
    raise _Unusable("its line is a public key, which is to be in PEM")


def _secret(secret: bytes, said: str) -> bytes:
    """What may be a secret."""
    if len(secret) < SHORTEST_SECRET:
        raise _Unusable(f"{said} has {len(secret)} bytes, and a secret for HS256 needs {SHORTEST_SECRET}")
    try:
        # PyJWT's own guard against public keys in the place of secrets; it would stand in the way of every token.
        jwt.get_algorithm_by_name("HS256").prepare_key(secret)
    except jwt.InvalidKeyError:
        raise _Unusable(f"{said} is a public key, or a certificate, and so no secret") from None
    return secret
