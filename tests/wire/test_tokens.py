"""Signed tokens: who is let in by them and who is not, which key counts when, and what becomes of sessions.

Tokens are signed by hand here, so that they can be wrong in every way.
"""

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
from math import inf, nan

import pytest
from conftest import Recorder
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from peers import CONTINUATION, TEXT, frame
from twisted.internet.defer import Deferred
from twisted.logger import formatEvent
from twisted.python.usage import UsageError

from heartbeat import SettingError, Unauthorized
from heartbeat.auth import Credentials
from heartbeat.store import MemoryStore
from heartbeat.tap import Options
from heartbeat.tokens import LEEWAY, LONGEST_TOKEN, SignedTokens

#: When these tests begin, in seconds since 1970.
NOW = 1_790_000_000

KINDS = ("HS256", "EdDSA")


def encoded(data):
    """Bytes, or what is JSON, as a part of a token."""
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def put_together(header, claims, sign):
    """A token of these parts; `sign` makes the signature."""
    said = f"{encoded(header)}.{encoded(claims)}"
    return f"{said}.{encoded(sign(said.encode()))}"


def hmac_of(secret, hash_name="sha256"):
    """What signs by a secret."""
    return lambda said: hmac.digest(secret, said, hash_name)


def without(parts, absent=...):
    """The parts that are there."""
    return {name: value for name, value in parts.items() if value is not absent}


class Issuer:
    """Who signs tokens: for alice and ten minutes, unless it is said otherwise. `kid` is what its key is called."""

    def __init__(self, kind="HS256", kid=None, seed="ours"):
        self.kind, self.kid = kind, kid
        self.secret = hashlib.sha256(seed.encode()).digest()
        self.private = Ed25519PrivateKey.from_private_bytes(self.secret)
        self.public = self.private.public_key()
        self.sign = hmac_of(self.secret) if kind == "HS256" else self.private.sign

    @property
    def jwk(self):
        """Its key, as a server is to have it."""
        named = {} if self.kid is None else {"kid": self.kid}
        if self.kind == "HS256":
            return {"kty": "oct", "k": encoded(self.secret)} | named
        return {"kty": "OKP", "crv": "Ed25519", "x": encoded(self.public.public_bytes_raw())} | named

    @property
    def pem(self):
        """The public key."""
        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def token(self, header=None, **claims):
        """A token; what is `...` is left out of it."""
        header = without({"alg": self.kind, "typ": "JWT", "kid": self.kid or ...} | (header or {}))
        return put_together(header, without({"sub": "alice", "exp": NOW + 600} | claims), self.sign)


class Wall:
    """A clock on the wall."""

    now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def wall():
    return Wall()


@pytest.fixture
def keyfile(tmp_path):
    """Write a file of keys in the place of the one before, and return its path."""

    def keyfile(*contents, mode=0o600):
        """These issuers' keys as a JWK Set, or one content as it is."""
        content = contents[0] if isinstance(contents[0], bytes) else json.dumps({"keys": [one.jwk for one in contents]})
        new = tmp_path / "new"
        new.write_bytes(content if isinstance(content, bytes) else content.encode())
        new.chmod(mode)
        return new.replace(tmp_path / "keys")

    return keyfile


@pytest.fixture
def judged_by(keyfile, wall):
    """Who judges by these keys, on the clock on the wall."""
    return lambda *contents, **options: SignedTokens(keyfile(*contents), **{"clock": wall} | options)


def who(tokens, token):
    """Who is let in with this token."""
    return tokens.authenticate(Credentials(token, None, {}, {}, {}, "", None))


def refusal(tokens, token):
    """The sentence with which it is not."""
    with pytest.raises(Unauthorized) as refused:
        who(tokens, token)
    assert len(str(refused.value)) <= 123, "it does not fit into a close frame"
    return str(refused.value)


NOT_OURS = "this token is not signed by a key that is known here"
NO_TOKEN = "this is no signed token"
EXPIRED = "this token has expired"
NOT_YET = "this token is not valid yet"
TO_OTHERS = "this token is for somebody else (aud)"


# Who is let in.


@pytest.mark.parametrize("kind", KINDS)
def test_who_shows_a_token_that_a_key_of_ours_has_signed_is_whom_its_sub_says(judged_by, kind):
    issuer = Issuer(kind)
    tokens = judged_by(issuer)

    assert who(tokens, issuer.token()) == "alice"
    assert who(tokens, issuer.token(sub="!" * 64, role="anything else", iat=NOW, nbf=NOW, jti="1")) == "!" * 64


def test_whom_it_claims_to_be_counts_for_nothing(judged_by):
    tokens = judged_by(Issuer())

    assert tokens.authenticate(Credentials(Issuer().token(), "mallory", {}, {}, {}, "", None)) == "alice"


def test_without_a_token_nobody_is_let_in(judged_by):
    tokens = judged_by(Issuer())

    assert refusal(tokens, None) == "a token is needed here"
    assert refusal(tokens, "") == NO_TOKEN


FORMS = {
    "a JWK Set": lambda secret, public: json.dumps({"keys": [secret.jwk, public.jwk]}).encode(),
    "a JWK with a secret": lambda secret, public: json.dumps(secret.jwk).encode(),
    "a JWK with a public key": lambda secret, public: json.dumps(public.jwk, indent=4).encode() + b"\n",
    "PEM": lambda secret, public: public.pem,
    "PEM twice": lambda secret, public: b"\n" + Issuer(seed="another").pem + public.pem,
    "PEM of Windows": lambda secret, public: public.pem.replace(b"\n", b"\r\n"),
    "a line": lambda secret, public: secret.secret.hex().encode() + b"\n",
    "a line without an end": lambda secret, public: secret.secret.hex().encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_file_of_keys_has_one_of_four_forms(judged_by, form):
    """The secret in a line is its characters, as for whoever signs with them."""
    secret, public = Issuer("HS256"), Issuer("EdDSA")
    tokens = judged_by(FORMS[form](secret, public))
    if "line" in form:
        secret.sign = hmac_of(secret.secret.hex().encode())
    has_secret, has_public = (
        "PEM" not in form and "public" not in form,
        "Set" in form or "PEM" in form or "public" in form,
    )

    assert (who(tokens, secret.token()) if has_secret else refusal(tokens, secret.token())) in ("alice", NOT_OURS)
    assert (who(tokens, public.token()) if has_public else refusal(tokens, public.token())) in ("alice", NOT_OURS)
    assert has_secret or has_public


# Who is not: the algorithm.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, 0, ["HS256"], {}, ...])
@pytest.mark.parametrize("signed", ["not", "by the right key"])
def test_none_is_no_algorithm_nor_is_what_is_none(judged_by, kind, alg, signed):
    """The signature may be missing, or be the right one."""
    issuer = Issuer(kind)
    tokens = judged_by(issuer)
    token = issuer.token({"alg": alg})

    assert refusal(tokens, token if signed != "not" else token.rpartition(".")[0] + ".") == NOT_OURS


PUBLIC = {
    "its PEM": lambda issuer: issuer.pem,
    "its PEM without an end": lambda issuer: issuer.pem.strip(),
    "its DER": lambda issuer: issuer.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    "its bytes": lambda issuer: issuer.public.public_bytes_raw(),
    "its x": lambda issuer: issuer.jwk["x"].encode(),
    "its JWK": lambda issuer: json.dumps(issuer.jwk).encode(),
    "its line for ssh": lambda issuer: issuer.public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
    "nothing": lambda issuer: b"",
}


@pytest.mark.parametrize("form", PUBLIC)
@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512", "EdDSA"])
def test_a_public_key_is_never_taken_for_a_secret(judged_by, form, alg):
    """The classic confusion: everybody knows the public key, and signs with it as if it were a secret."""
    issuer = Issuer("EdDSA")
    content = issuer.pem if "PEM" in form else json.dumps(issuer.jwk).encode()
    tokens = judged_by(content)
    issuer.sign = hmac_of(PUBLIC[form](issuer), alg.replace("HS", "sha") if alg.startswith("HS") else "sha256")

    assert refusal(tokens, issuer.token({"alg": alg})) == NOT_OURS


def test_a_secret_is_never_taken_for_a_key_pair(judged_by):
    """Nor does a token choose by its `alg`: a secret checks HS256 alone."""
    issuer = Issuer("HS256")
    tokens = judged_by(issuer)
    attempts = {
        "EdDSA": Issuer("EdDSA").private.sign,
        "HS384": hmac_of(issuer.secret, "sha384"),
        "HS512": hmac_of(issuer.secret, "sha512"),
        "hs256": hmac_of(issuer.secret),
        "RS256": hmac_of(issuer.secret),
    }
    for alg, sign in attempts.items():
        issuer.sign = sign
        assert refusal(tokens, issuer.token({"alg": alg})) == NOT_OURS, alg


@pytest.mark.parametrize("kind", KINDS)
def test_where_both_kinds_are_known_each_is_checked_as_what_it_is(judged_by, kind):
    secret, public = Issuer("HS256", "same"), Issuer("EdDSA", "other")
    tokens = judged_by(secret, public)
    issuer, other = (secret, public) if kind == "HS256" else (public, secret)

    assert who(tokens, issuer.token()) == "alice"
    assert refusal(tokens, issuer.token({"alg": other.kind})) == NOT_OURS
    assert refusal(tokens, issuer.token({"kid": other.kid})) == NOT_OURS


# The name of the key.


def test_the_name_of_a_key_chooses_it(judged_by):
    first, second, stranger = Issuer("HS256", "1", "one"), Issuer("HS256", "2", "two"), Issuer("HS256", "1", "three")
    tokens = judged_by(first, second)

    assert who(tokens, first.token()) == who(tokens, second.token()) == "alice"
    assert who(tokens, second.token({"kid": ...})) == "alice"
    assert refusal(tokens, first.token({"kid": "2"})) == NOT_OURS
    assert refusal(tokens, first.token({"kid": "3"})) == NOT_OURS
    assert refusal(tokens, stranger.token()) == NOT_OURS
    assert refusal(tokens, stranger.token({"kid": ...})) == NOT_OURS


def test_a_key_without_a_name_stands_for_any(judged_by):
    tokens = judged_by(Issuer())

    assert who(tokens, Issuer().token({"kid": "whatever the issuer calls it"})) == "alice"


INJECTED = [
    "../../../../../../dev/null",
    "/dev/null",
    "/proc/sys/kernel/randomize_va_space",
    "keys",
    "' UNION SELECT 'k",
    "|id",
    "{0.__class__}",
    "%s%n",
    "file:///dev/null",
    "\x00",
    "\u2028",
    "k" * 4000,
    "",
]


@pytest.mark.parametrize("kid", INJECTED)
def test_a_name_of_a_key_leads_nowhere_but_to_the_keys_of_the_file(judged_by, kid):
    """With `/dev/null` for a key, say, or `keys`, the secret would be what is in that file: known to whoever asks."""
    tokens = judged_by(Issuer("HS256", "1"))
    for known in (b"", b"\x00", b"2", b"2\n", b"k"):
        stranger = Issuer()
        stranger.sign = hmac_of(known)
        assert refusal(tokens, stranger.token({"kid": kid})) == NOT_OURS


@pytest.mark.parametrize("kid", [1, 1.5, True, [], ["1"], {}, {"1": 1}])
def test_a_name_that_is_no_text_is_none_of_a_key(judged_by, kid):
    assert refusal(judged_by(Issuer("HS256", "1")), Issuer().token({"kid": kid})) == NO_TOKEN


def test_a_key_that_a_token_brings_along_or_points_to_is_not_looked_at(judged_by):
    ours, stranger = Issuer("EdDSA"), Issuer("EdDSA", seed="another")
    tokens = judged_by(ours)
    brought = {"jwk": stranger.jwk, "jku": "http://127.0.0.1:9/", "x5u": "file:///dev/null", "x5c": ["AAAA"]}

    assert refusal(tokens, stranger.token(brought)) == NOT_OURS
    assert who(tokens, ours.token(brought)) == "alice"


# What a token says.

TIMES = {
    "good for a moment yet": ({"exp": NOW - LEEWAY + 1}, None),
    "its end, by a clock that is late": ({"exp": NOW - LEEWAY}, EXPIRED),
    "long gone": ({"exp": 0}, EXPIRED),
    "before 1970": ({"exp": -1e300}, EXPIRED),
    "for ever, nearly": ({"exp": 10**400}, None),
    "a fraction": ({"exp": NOW + 0.5}, None),
    "text": ({"exp": str(NOW + 600)}, "the exp of this token is no time"),
    "true": ({"exp": True}, "the exp of this token is no time"),
    "a list": ({"exp": [NOW + 600]}, "the exp of this token is no time"),
    "no number": ({"exp": nan}, "the exp of this token is no time"),
    "infinite": ({"exp": inf}, "the exp of this token is no time"),
    "null": ({"exp": None}, "this token has no exp"),
    "no end": ({"exp": ...}, "this token has no exp"),
    "from now on": ({"nbf": NOW}, None),
    "by a clock that is ahead": ({"nbf": NOW + LEEWAY, "iat": NOW + LEEWAY}, None),
    "too early": ({"nbf": NOW + LEEWAY + 1}, NOT_YET),
    "signed tomorrow": ({"iat": NOW + 86_400}, NOT_YET),
    "a beginning that is text": ({"nbf": "now"}, "the nbf of this token is no time"),
    "a beginning that is null": ({"nbf": None}, "the nbf of this token is no time"),
    "a beginning that is no number": ({"nbf": nan}, "the nbf of this token is no time"),
    "signed at minus infinity": ({"iat": -inf}, "the iat of this token is no time"),
    "signed at false": ({"iat": False}, "the iat of this token is no time"),
}


@pytest.mark.parametrize("case", TIMES)
def test_a_token_holds_in_its_time_and_must_have_an_end(judged_by, case):
    claims, sentence = TIMES[case]
    tokens, token = judged_by(Issuer()), Issuer().token(**claims)

    if sentence is None:
        assert who(tokens, token) == "alice"
    else:
        assert refusal(tokens, token) == sentence


def test_the_time_is_that_of_the_clock_it_was_given(judged_by, wall):
    tokens, token = judged_by(Issuer()), Issuer().token(exp=NOW + 60, nbf=NOW - 60)
    assert who(tokens, token) == "alice"

    wall.now = NOW + 60 + LEEWAY
    assert refusal(tokens, token) == EXPIRED
    wall.now = NOW - 61 - LEEWAY
    assert refusal(tokens, token) == NOT_YET


AUDIENCES = [
    # What is configured, what the token says, what follows.
    (None, ..., None),
    (None, "shop", TO_OTHERS),
    (None, ["shop"], TO_OTHERS),
    (None, "", TO_OTHERS),
    (None, [], TO_OTHERS),
    (None, None, TO_OTHERS),
    ("shop", "shop", None),
    ("shop", ["forge", "shop"], None),
    ("shop", ..., "this token has no aud"),
    ("shop", "", "this token has no aud"),
    ("shop", "forge", TO_OTHERS),
    ("shop", "shopping", TO_OTHERS),
    ("shop", "sho", TO_OTHERS),
    ("shop", ["forge"], TO_OTHERS),
    ("shop", {"shop": 1}, TO_OTHERS),
    ("shop", ["shop", 1], TO_OTHERS),
    ("shop", 7, TO_OTHERS),
]


@pytest.mark.parametrize(("configured", "said", "sentence"), AUDIENCES)
def test_a_token_is_for_us_or_for_nobody_in_particular(judged_by, configured, said, sentence):
    tokens, token = judged_by(Issuer(), audience=configured), Issuer().token(aud=said)

    if sentence is None:
        assert who(tokens, token) == "alice"
    else:
        assert refusal(tokens, token) == sentence


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("https://issuer.test", None),
        ("https://issuer.test.evil.test", "this token is from somebody else (iss)"),
        ("https://issuer", "this token is from somebody else (iss)"),
        (["https://issuer.test"], "this token is from somebody else (iss)"),
        (..., "this token has no iss"),
    ],
)
def test_where_an_issuer_is_named_a_token_must_be_of_it(judged_by, said, sentence):
    tokens, token = judged_by(Issuer(), issuer="https://issuer.test"), Issuer().token(iss=said)

    if sentence is None:
        assert who(tokens, token) == "alice"
    else:
        assert refusal(tokens, token) == sentence


def test_without_one_any_will_do(judged_by):
    assert who(judged_by(Issuer()), Issuer().token(iss="anybody")) == "alice"


NO_CLIENT_ID = "the sub of this token can be no client id"


@pytest.mark.parametrize(
    ("sub", "sentence"),
    [
        (..., "this token has no sub"),
        (None, "this token has no sub"),
        ("", NO_CLIENT_ID),
        ("x" * 65, NO_CLIENT_ID),
        ("a b", NO_CLIENT_ID),
        ("alice\n2026-11-28T00:00:00+0000 [-] somebody else", NO_CLIENT_ID),
        ("alice\x00", NO_CLIENT_ID),
        ("alice\x7f", NO_CLIENT_ID),
        ("\x1b[2Jalice", NO_CLIENT_ID),
        ("älice", NO_CLIENT_ID),
        ("\u0430lice", NO_CLIENT_ID),
        ("alice\u202e", NO_CLIENT_ID),
        ("\ud800", NO_CLIENT_ID),
        (7, NO_CLIENT_ID),
        (True, NO_CLIENT_ID),
        (["alice"], NO_CLIENT_ID),
        ({"name": "alice"}, NO_CLIENT_ID),
        ("c-5f3a90c1d2e4b678", "the sub of this token begins with c-, which is nobody's to claim"),
        ("c-", "the sub of this token begins with c-, which is nobody's to claim"),
    ],
)
def test_a_sub_is_a_client_id_and_none_of_our_own_giving(judged_by, sub, sentence):
    assert refusal(judged_by(Issuer()), Issuer().token(sub=sub)) == sentence


def test_of_a_member_that_is_there_twice_the_last_counts_as_everywhere_on_the_wire(judged_by):
    claims = b'{"sub": "bob", "exp": %d, "sub": "alice", "exp": %d}'
    header, sign = {"alg": "HS256"}, Issuer().sign

    assert who(judged_by(Issuer()), put_together(header, claims % (0, NOW + 60), sign)) == "alice"
    assert refusal(judged_by(Issuer()), put_together(header, claims % (NOW + 60, 0), sign)) == EXPIRED


# What is no token.


def nested(depth):
    return b"[" * depth + b"]" * depth


GOOD = {"sub": "alice", "exp": NOW + 600}
MALFORMED = {
    "words": "open sesame",
    "dots": "....",
    "two parts": Issuer().token().rpartition(".")[0],
    "four parts": Issuer().token() + ".AAAA",
    "five parts": "e30.AAAA.AAAA.AAAA.AAAA",
    "a space after it": Issuer().token() + " ",
    "a line after it": Issuer().token() + "\n",
    "a word before it": "Bearer " + Issuer().token(),
    "not ASCII": "ä" + Issuer().token(),
    "a lone surrogate": "\ud800" + Issuer().token(),
    "NUL": "\x00",
    "a header that is no JSON": put_together(b"{", GOOD, Issuer().sign),
    "a header that is no object": put_together([], GOOD, Issuer().sign),
    "a header that is not UTF-8": put_together(b'{"alg":"HS256","x":"\xff"}', GOOD, Issuer().sign),
    "a header that is nested": put_together(nested(2500), {}, Issuer().sign),
    "claims that are no JSON": put_together({"alg": "HS256"}, b"{", Issuer().sign),
    "claims that are no object": put_together({"alg": "HS256"}, ["sub", "exp"], Issuer().sign),
    "claims that are nested": put_together({"alg": "HS256"}, nested(2500), Issuer().sign),
    "a number of 5000 digits": put_together({"alg": "HS256"}, b'{"exp":%s}' % (b"9" * 5000), Issuer().sign),
    "a part that is critical and unknown": Issuer().token({"crit": ["exp"], "exp": 1}),
    "a critical part that is not there": Issuer().token({"crit": ["b64"]}),
    "claims that are elsewhere": Issuer().token({"crit": ["b64"], "b64": False}),
    "a jti that is no text": Issuer().token(jti=7),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_token_is_refused_in_a_sentence_and_is_nobodys_bug(judged_by, case):
    """Also where it carries a good signature."""
    assert refusal(judged_by(Issuer()), MALFORMED[case]) == NO_TOKEN


def test_a_token_that_is_too_long_is_not_even_looked_at(judged_by):
    """What it costs to refuse a stranger is bounded."""
    tokens, issuer = judged_by(Issuer()), Issuer()
    # Three bytes more are four characters.
    longer = 3 * (LONGEST_TOKEN - len(issuer.token(x=""))) // 4
    most, beyond = issuer.token(x="x" * longer), issuer.token(x="x" * (longer + 3))

    assert LONGEST_TOKEN - 4 < len(most) <= LONGEST_TOKEN < len(beyond)
    assert who(tokens, most) == "alice"
    assert refusal(tokens, beyond) == f"a token has at most {LONGEST_TOKEN} characters"
    assert refusal(tokens, "a" * 10_000_000) == f"a token has at most {LONGEST_TOKEN} characters"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Who judges by a key of either kind."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(json.dumps({"keys": [Issuer("HS256").jwk, Issuer("EdDSA").jwk]}))
    return SignedTokens(path, clock=lambda: NOW)


def is_let_in(tokens, token):
    try:
        who(tokens, token)
    except Unauthorized:
        return False
    return True


PART = st.one_of(
    st.text(max_size=30),
    st.binary(max_size=60).map(encoded),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "alg", "kid", "x"]), inner),
        max_leaves=6,
    ).map(encoded),
)


@given(st.lists(PART, max_size=5).map(".".join))
def test_no_text_breaks_it_and_none_without_a_signature_is_a_token(both, text):
    assert not is_let_in(both, text)


@given(
    st.sampled_from(KINDS),
    st.dictionaries(st.sampled_from(["exp", "nbf", "iat", "sub", "aud", "iss", "jti"]), st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=2)
    )),
)  # fmt: skip
def test_nothing_that_a_signed_token_may_say_breaks_it(both, kind, claims):
    """Whoever has the key may still have a bug."""
    token = Issuer(kind).token(**claims)

    assert is_let_in(both, token) in (True, False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_with_any_one_character_changed_is_none(both, kind):
    token = Issuer(kind).token()
    assert is_let_in(both, token)
    for at, was in enumerate(token):
        for other in "Ax_.=":
            if other != was:
                assert not is_let_in(both, token[:at] + other + token[at + 1 :]), (at, other)


# The file of keys.

SECRET = Issuer().secret
RSA_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
PRIVATE_PEM = Issuer().private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(private):
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def jwks(*entries):
    return json.dumps({"keys": entries}).encode()


UNUSABLE = {
    "nothing": (b"", "it is empty"),
    "only space": (b" \n\n", "it is empty"),
    "a short secret": (SECRET.hex()[:31].encode(), "its line has 31 bytes, and a secret for HS256 needs 32"),
    "two lines": (SECRET.hex().encode() + b"\n" + SECRET.hex().encode(), "it is neither a JWK Set, nor PEM, nor one"),
    "a line for ssh": (Issuer().public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH), "it is neither a JWK Set"),
    "bytes": (SECRET, "it is neither a JWK Set, nor PEM, nor one line of visible ASCII"),
    "a public key in a line": (b"".join(Issuer().pem.splitlines()[1:-1]), "its line is a public key, which is to be"),
    "a private key in PEM": (PRIVATE_PEM, "of PEM only public keys (BEGIN PUBLIC KEY) belong in it"),
    "a private key after a public one": (Issuer().pem + PRIVATE_PEM, "of PEM only public keys (BEGIN PUBLIC KEY)"),
    "a private key before a public one": (PRIVATE_PEM + Issuer().pem, "what it has in PEM is no public key of Ed25519"),
    "words between public keys": (Issuer().pem + b"and\n" + Issuer().pem, "what it has in PEM is no public key of"),
    "half a public key": (Issuer().pem[:60], "of PEM only public keys (BEGIN PUBLIC KEY) belong in it"),
    "an RSA key": (public_pem(RSA_KEY), "what it has in PEM is no public key of Ed25519"),
    "an Ed448 key": (public_pem(Ed448PrivateKey.generate()), "what it has in PEM is no public key of Ed25519"),
    "nonsense in PEM": (
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        "what it has in PEM is no public key of Ed25519",
    ),
    "no JSON": (b'{"keys": [', "it begins as JSON does, and is none"),
    "nested JSON": (b'{"keys":' + nested(30_000) + b"}", "it begins as JSON does, and is none"),
    "JSON that is not UTF-8": (b'{"keys": "\xff"}', "it begins as JSON does, and is none"),
    "keys that are no list": (b'{"keys": {}}', "the keys of a JWK Set are a list of objects"),
    "a key that is no object": (jwks(Issuer().jwk, "k"), "the keys of a JWK Set are a list of objects"),
    "no keys": (jwks(), "it has no key for HS256 or EdDSA (Ed25519)"),
    "an object of something else": (b'{"a": 1}', "it has no key for HS256 or EdDSA (Ed25519)"),
    "only others' keys": (jwks({"kty": "RSA", "n": "AQ", "e": "AQAB"}), "it has no key for HS256 or EdDSA (Ed25519)"),
    "a kty that is none": (jwks({"kty": ["oct"], "k": encoded(SECRET)}), "it has no key for HS256 or EdDSA"),
    "a key that encrypts": (jwks(Issuer().jwk | {"use": "enc"}), "it has no key for HS256 or EdDSA"),
    "a key that only signs": (jwks(Issuer().jwk | {"key_ops": ["sign"]}), "it has no key for HS256 or EdDSA"),
    "a key whose uses are no list": (jwks(Issuer().jwk | {"key_ops": 7}), "it has no key for HS256 or EdDSA"),
    "a key whose use is no list": (jwks(Issuer().jwk | {"key_ops": "verify"}), "it has no key for HS256 or EdDSA"),
    "a key for HS512": (jwks(Issuer().jwk | {"alg": "HS512"}), "it has no key for HS256 or EdDSA"),
    "a short secret in a JWK": (
        jwks({"kty": "oct", "kid": "a", "k": encoded(SECRET[:31])}),
        "the key 'a' has 31 bytes, and a secret for HS256 needs 32",
    ),
    "no secret": (jwks({"kty": "oct"}), "a key without a kid has no k in base64url"),
    "a secret in another alphabet": (jwks({"kty": "oct", "k": "+/" * 30}), "a key without a kid has no k in base64url"),
    "a secret with padding": (jwks({"kty": "oct", "k": "A" * 43 + "="}), "a key without a kid has no k in base64url"),
    "a secret of a wrong length": (jwks({"kty": "oct", "k": "A" * 45}), "a key without a kid has no k in base64url"),
    "a public key for a secret": (
        jwks({"kty": "oct", "kid": "a", "k": encoded(Issuer().pem)}),
        "the key 'a' is a public key, or a certificate, and so no secret",
    ),
    "a JWK for a secret": (
        jwks({"kty": "oct", "k": encoded(Issuer("EdDSA").jwk)}),
        "a key without a kid is a public key, or a certificate, and so no secret",
    ),
    "a private JWK": (
        jwks(Issuer("EdDSA", "a").jwk | {"d": encoded(SECRET)}),
        "the key 'a' is a private one, of which only the public half belongs here (without d)",
    ),
    "a short x": (jwks(Issuer("EdDSA").jwk | {"x": "AAAA"}), "a key without a kid has an x that is none of Ed25519"),
    "no x": (jwks({"kty": "OKP", "crv": "Ed25519"}), "a key without a kid has no x in base64url"),
    "a kid that is no text": (jwks(Issuer().jwk | {"kid": 1}), "a kid is text"),
    "the same kid twice": (jwks(*(Issuer(kind, "a").jwk for kind in KINDS)), "two of its keys have the same kid"),
    "too many": (jwks(*(Issuer("HS256", str(n)).jwk for n in range(17))), "it has 17 keys, and 16 are the most"),
    "too long": (b'{"keys":[]' + b" " * 65_536 + b"}", "it has more than 65536 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_file_that_cannot_be_used_is_one_sentence_and_none_of_its_secrets(keyfile, case, log):
    content, sentence = UNUSABLE[case]
    path = keyfile(content)

    with pytest.raises(SettingError) as error:
        SignedTokens(path, clock=lambda: NOW)

    said = str(error.value)
    assert said.startswith(f"keyfile must be a file of keys for tokens ({sentence}")
    assert said.endswith(f"), not {str(path)!r}")
    assert "\n" not in said
    for hidden in (SECRET.hex()[:31], encoded(SECRET)[:31], PRIVATE_PEM.decode().split()[3]):
        assert hidden not in said
    assert log == []


def test_what_is_no_file_is_a_sentence_too(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    locked = tmp_path / "locked"
    locked.mkdir()
    found = {}
    for name in ("nowhere", "pipe", "locked", "\ud800"):
        with pytest.raises(SettingError) as error:
            SignedTokens(tmp_path / name)
        found[name] = str(error.value).partition("(")[2].partition(")")[0]

    assert found == {
        "nowhere": "No such file or directory",
        "pipe": "it is no ordinary file",
        "locked": "it is no ordinary file",
        "\ud800": "no file has such a name",
    }


@pytest.mark.parametrize("name", ["audience", "issuer"])
def test_nobody_is_no_audience_and_no_issuer(keyfile, name):
    with pytest.raises(SettingError, match=f"^{name} must be text, and not empty, not ''$"):
        SignedTokens(keyfile(Issuer()), **{name: ""})


def test_keys_for_something_else_are_passed_over_and_told(judged_by, log):
    """RFC 7517, section 5; an issuer's own set may hold what is not ours."""
    others = [{"kty": "RSA", "n": "AQ", "e": "AQAB"}, Issuer().jwk | {"use": "enc"}, {"crv": "Ed448", "kty": "OKP"}, {}]
    tokens = judged_by(
        jwks(*others, Issuer("EdDSA", "ours").jwk | {"alg": "EdDSA", "use": "sig", "key_ops": ["verify"]})
    )

    assert who(tokens, Issuer("EdDSA", "ours").token()) == "alice"
    said = [formatEvent(event) for event in log]
    assert said == [
        f"tokens are judged by the keys in {tokens.path}: 'ours' (EdDSA)",
        f"4 key(s) in {tokens.path} are for something else, and passed over",
    ]


def test_whoever_prints_what_judges_sees_no_secret(judged_by):
    issuer = Issuer("HS256", "a")
    shown = repr(vars(judged_by(issuer)))

    assert "'a'" in shown
    assert repr(issuer.secret) not in shown


OPENNESS = {
    ("HS256", 0o600): [],
    ("HS256", 0o400): [],
    ("HS256", 0o640): [],
    ("HS256", 0o644): ["read"],
    ("HS256", 0o660): ["change"],
    ("HS256", 0o666): ["change", "read"],
    ("EdDSA", 0o644): [],
    ("EdDSA", 0o664): ["change"],
    ("EdDSA", 0o602): ["change"],
}


@pytest.mark.parametrize(("kind", "mode"), OPENNESS)
def test_a_file_that_others_may_change_or_a_secret_that_all_may_read_is_warned_of(keyfile, log, kind, mode):
    path = keyfile(Issuer(kind), mode=mode)
    SignedTokens(path)

    warnings = {
        "change": f"not its owner alone can change {path}, and with it who is let in: chmod go-w",
        "read": f"everybody on this machine can read the secret in {path}: chmod o-r",
    }
    told = [formatEvent(event) for event in log if event["log_level"].name == "warn"]
    assert told == [warnings[word] for word in OPENNESS[kind, mode]]


# Keys that come and go.


def test_new_keys_count_within_a_second_and_what_was_taken_out_no_more(judged_by, keyfile, wall):
    old, new = Issuer("EdDSA", "2026-10", "old"), Issuer("EdDSA", "2026-11", "new")
    tokens = judged_by(old)
    assert refusal(tokens, new.token()) == NOT_OURS

    keyfile(old, new)
    wall.now += 0.9
    assert refusal(tokens, new.token()) == NOT_OURS
    wall.now += 0.1
    assert who(tokens, new.token()) == who(tokens, old.token()) == "alice"

    keyfile(new)
    wall.now += 0.9
    assert who(tokens, old.token()) == "alice"
    wall.now += 0.1
    assert refusal(tokens, old.token()) == NOT_OURS
    assert who(tokens, new.token()) == "alice"


def test_a_clock_that_steps_back_an_hour_hides_no_change(judged_by, keyfile, wall):
    tokens = judged_by(Issuer(seed="old"))
    keyfile(Issuer(seed="new"))

    wall.now -= 3600

    assert who(tokens, Issuer(seed="new").token()) == "alice"


def test_a_change_is_seen_however_it_was_made(tmp_path, wall):
    """In place with the same size and the old time, by a link to another file, and by a file moved over it."""
    old, new = Issuer(seed="old").secret.hex(), Issuer(seed="new").secret.hex()
    for number, change in enumerate(("in place", "link", "move")):
        files = [tmp_path / f"{name}{number}" for name in ("one", "two")]
        for file, content in zip(files, (old, new), strict=True):
            file.write_text(content)
            os.utime(file, (NOW, NOW))
        path = tmp_path / f"keys{number}"
        path.symlink_to(files[0])
        tokens = SignedTokens(path, clock=wall)
        before = files[0].stat()
        if change == "in place":
            # As `cp --preserve` does; again, until the clock of the file system has moved on.
            while files[0].stat().st_ctime_ns == before.st_ctime_ns:
                files[0].write_text(new)
                os.utime(files[0], (NOW, NOW))
            after = files[0].stat()
            assert (after.st_mtime_ns, after.st_size, after.st_ino) == (
                before.st_mtime_ns,
                before.st_size,
                before.st_ino,
            )
        elif change == "link":
            (tmp_path / "link").symlink_to(files[1])
            (tmp_path / "link").replace(path)
        else:
            files[1].replace(files[0])
        wall.now += 1
        issuer = Issuer()
        issuer.sign = hmac_of(new.encode())
        assert who(tokens, issuer.token()) == "alice", change


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "short": lambda path: path.write_bytes(b"secret"),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_was_broken_leaves_the_keys_as_they_were_and_is_told_once(judged_by, keyfile, wall, log, how):
    tokens = judged_by(Issuer(seed="old"))
    log.clear()
    BROKEN[how](tokens.path)
    for _ in range(5):
        wall.now += 1
        assert who(tokens, Issuer(seed="old").token()) == "alice"
    (event,) = log
    said = formatEvent(event)
    assert event["log_level"].name == "error"
    assert said.startswith(f"the key file {tokens.path} cannot be used (")
    assert said.endswith("); what it held before still holds")
    assert "\n" not in said

    if how == "a folder":
        tokens.path.rmdir()
    keyfile(Issuer(seed="new"))
    wall.now += 1
    assert who(tokens, Issuer(seed="new").token()) == "alice"
    assert refusal(tokens, Issuer(seed="old").token()) == NOT_OURS


def test_the_file_is_that_of_the_folder_in_which_the_server_was_started(tmp_path, keyfile, wall, monkeypatch):
    """`twistd` goes elsewhere after."""
    keyfile(Issuer(seed="old"))
    monkeypatch.chdir(tmp_path)
    tokens = SignedTokens("keys", clock=wall)
    monkeypatch.chdir("/")

    keyfile(Issuer(seed="new"))
    wall.now += 1

    assert who(tokens, Issuer(seed="new").token()) == "alice"


# The options.


def parsed(*arguments):
    options = Options()
    options.parseOptions(list(arguments))
    return options


def test_every_option_reaches_the_judge(keyfile):
    path = keyfile(Issuer())
    options = parsed(f"--auth-jwt={path}", "--auth-audience=shop", "--auth-issuer=https://issuer.test")
    tokens = options.service().factory.heartbeat.admission.authenticator
    far = 10**10

    assert isinstance(tokens, SignedTokens)
    assert tokens.path == path
    assert who(tokens, Issuer().token(exp=far, aud="shop", iss="https://issuer.test")) == "alice"
    assert refusal(tokens, Issuer().token(exp=far, aud="forge", iss="https://issuer.test")) == TO_OTHERS
    assert refusal(tokens, Issuer().token(exp=far, aud="shop")) == "this token has no iss"
    assert refusal(tokens, Issuer().token(exp=1, aud="shop", iss="https://issuer.test")) == EXPIRED


def test_the_file_is_read_and_told_of_once_though_twistd_makes_the_service_twice(keyfile, log):
    options = parsed("--auth-jwt", str(keyfile(Issuer(), mode=0o644)))
    options.service()

    assert len(log) == 2


def test_without_the_option_nobody_is_asked():
    assert parsed().service().factory.heartbeat.admission.authenticator is None


WRONG = {
    "--auth-jwt=/no/keys": "--auth-jwt must be a file of keys for tokens (No such file or directory), not '/no/keys'",
    "--auth-jwt=": "--auth-jwt must be a file of keys for tokens (it is no ordinary file), not ''",
    "--auth-jwt=/dev/null": "--auth-jwt must be a file of keys for tokens (it is no ordinary file), not '/dev/null'",
    "--auth-audience=shop": "--auth-audience must be left out where there is no --auth-jwt, not 'shop'",
    "--auth-issuer=": "--auth-issuer must be left out where there is no --auth-jwt, not ''",
    "--auth-jwt=KEYS --auth-audience=": "--auth-audience must be text, and not empty, not ''",
    "--auth-jwt=KEYS --auth-issuer=": "--auth-issuer must be text, and not empty, not ''",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_a_wrong_option_is_one_sentence_that_names_it(keyfile, arguments):
    path = str(keyfile(Issuer()))

    with pytest.raises(UsageError) as error:
        parsed(*arguments.replace("KEYS", path).split(" "))

    assert str(error.value).startswith(WRONG[arguments])
    assert "\n" not in str(error.value)


def test_without_pyjwt_the_option_says_how_to_get_it(keyfile, monkeypatch):
    path = str(keyfile(Issuer()))
    monkeypatch.setattr("heartbeat.tokens.jwt", None)

    with pytest.raises(UsageError) as error:
        parsed("--auth-jwt", path)

    hint = "left out where PyJWT is not installed (pip install 'txheartbeat[auth]')"
    assert str(error.value) == f"--auth-jwt must be {hint}, not {path!r}"


def test_without_pyjwt_the_module_can_be_imported_all_the_same():
    code = "import sys\nsys.modules['jwt'] = None\nimport heartbeat.tokens\nprint(heartbeat.tokens.jwt)"

    assert subprocess.check_output([sys.executable, "-c", code], timeout=60) == b"None\n"


# Sessions. A token is judged when a connection opens, and at no other time.


@pytest.fixture
def door(serve, keyfile, world):
    """A server that judges by these keys, and keeps the notes that it is sent."""

    def door(*contents, **settings):
        factory = serve(**settings)
        tokens = SignedTokens(keyfile(*contents or [Issuer()]), clock=lambda: NOW + world.now)
        factory.heartbeat.admission.authenticator = tokens
        factory.notes = []
        factory.register("note", lambda protocol, message: factory.notes.append(message["text"]))
        return factory

    return door


@pytest.fixture
def enter(connect):
    """Connect, and open at level 1."""

    def enter(token, path="/ws", **members):
        peer = connect().open(path)
        peer.say({"type": "onopen", "v": 1, "token": token} | members)
        return peer

    return enter


def good_for(seconds, world, **claims):
    """A token that is accepted for so long."""
    return Issuer().token(exp=NOW + world.now + seconds - LEEWAY, **claims)


def session_of(peer, attempt=1, last=0, sent=0):
    answer = peer.messages[0]
    return {"sid": answer["sid"], "epoch": answer["epoch"], "last": last, "sent": sent, "try": attempt}


def beat(peer, world, seconds):
    """Let time pass, with a ping every five seconds."""
    end = world.now + seconds
    while world.now < end:
        world.advance(min(5.0, end - world.now))
        peer.say({"type": "ping"})
        assert peer.messages[-1]["status"] == "pong"


def gone(peer, world):
    peer.transport.abortConnection()
    world.advance(0.1)


def state_of(factory, peer):
    """All that a session is, as far as a refusal could change it."""
    channel = factory.heartbeat.sessions.channels[peer.messages[0]["sid"]]
    session = channel.session
    names = ("sid", "client_id", "attempt", "fence", "received", "handled", "confirmed", "sent")
    return {name: getattr(session, name) for name in names} | {"connected": channel.connection is not None}


def test_a_connection_lives_on_when_its_token_has_expired(door, enter, world):
    """It beats, and its messages are handled, for as long as it stays."""
    factory = door()
    page = enter(good_for(30, world))

    beat(page, world, 300)
    page.say({"type": "note", "text": "still here", "seq": 1})

    assert factory.notes == ["still here"]
    assert page.closed_with is None


def test_a_token_that_expires_in_the_middle_of_a_message_changes_nothing(door, enter, world):
    """Not between its fragments, and not while its handler works."""
    factory = door()
    handled = Deferred()
    factory.register("slow", lambda protocol, message: handled)
    page = enter(good_for(2, world))
    text = json.dumps({"type": "note", "text": "in two parts", "seq": 1}).encode()
    page.write(frame(text[:20], TEXT, fin=False))
    world.advance(3)
    assert enter(good_for(-1, world)).close_reason == EXPIRED
    page.write(frame(text[20:], CONTINUATION))
    assert factory.notes == ["in two parts"]

    other = enter(good_for(2, world))
    other.say({"type": "slow", "seq": 1})
    world.advance(3)
    handled.callback(None)
    world.advance(0.1)
    assert other.messages[-1] == {"type": "ack", "ack": 1}
    assert (page.closed_with, other.closed_with) == (None, None)


def test_who_comes_back_with_an_expired_token_is_closed_4401_and_his_session_waits_for_a_fresh_one(door, enter, world):
    """As it was: nothing of it is lost in either direction."""
    factory = door()
    token = good_for(30, world)
    page = enter(token)
    page.say({"type": "note", "text": "before", "seq": 1})
    beat(page, world, 60)
    gone(page, world)
    channel = factory.heartbeat.sessions.channels[page.messages[0]["sid"]]
    channel.send({"type": "letter", "text": "while away"})
    before = state_of(factory, page)

    for attempt in (1, 2):
        back = enter(token, session=session_of(page, attempt, sent=2))
        assert (back.messages, back.closed_with, back.close_reason) == ([], 4401, EXPIRED)
        assert state_of(factory, page) == before

    fresh = enter(good_for(30, world), session=session_of(page, 3, sent=2))
    answer = fresh.messages[0]
    assert (answer["client_id"], answer["resumed"], answer["last"], answer["sent"]) == ("alice", True, 1, 1)
    assert [one["text"] for one in fresh.messages if one["type"] == "letter"] == ["while away"]
    fresh.say({"type": "note", "text": "after", "seq": 2, "ack": 1})
    assert factory.notes == ["before", "after"]
    # Those that were refused are gone.
    world.advance(2)
    assert factory.presence.client_ids() == ("alice",)


def test_a_refused_return_does_not_put_off_the_end_of_the_session(door, enter, world):
    factory = door(window=60.0)
    token = good_for(10, world)
    page = enter(token)
    page.say({"type": "ping"})
    gone(page, world)
    world.advance(50)
    assert enter(token, session=session_of(page)).closed_with == 4401
    world.advance(11)

    assert factory.heartbeat.sessions.channels == {}
    assert enter(good_for(30, world), session=session_of(page, 2)).messages[0]["reason"] == "expired"


def test_a_refused_return_does_not_cut_off_the_connection_that_is_there(door, enter, world):
    """Whoever knows the name of a session, and has an old token, can take it from nobody."""
    door()
    token = good_for(10, world)
    page = enter(token)
    beat(page, world, 20)

    assert enter(token, session=session_of(page)).closed_with == 4401

    beat(page, world, 20)
    assert page.closed_with is None


def test_a_good_token_of_somebody_else_does_not_open_the_session(door, enter, world):
    factory = door()
    page = enter(good_for(30, world))
    page.say({"type": "note", "text": "one", "seq": 1})
    gone(page, world)
    before = state_of(factory, page)

    thief = enter(good_for(30, world, sub="bob"), client_id="alice", session=session_of(page, sent=1))

    answer = thief.messages[0]
    assert (answer["client_id"], answer["resumed"], answer["reason"]) == ("bob", False, "auth")
    assert state_of(factory, page) == before
    back = enter(good_for(30, world), session=session_of(page, 1, sent=1))
    assert (back.messages[0]["resumed"], back.messages[0]["last"]) == (True, 1)


def test_a_key_that_is_taken_out_closes_nobody_and_opens_to_nobody(door, enter, world, keyfile):
    old, new = Issuer("HS256", "old", "old"), Issuer("EdDSA", "new", "new")
    door(old)
    page = enter(old.token())
    keyfile(new)
    beat(page, world, 30)
    gone(page, world)

    back = enter(old.token(), session=session_of(page))
    assert (back.closed_with, back.close_reason) == (4401, NOT_OURS)
    fresh = enter(new.token(), session=session_of(page, 2))
    assert (fresh.messages[0]["resumed"], fresh.messages[0]["client_id"]) == (True, "alice")


def test_a_client_that_is_closed_4401_keeps_its_session_and_goes_on_in_it_with_a_fresh_token(door, make_client, world):
    """The token is final, and what was sent meanwhile is not lost: it is handled once, in order, under the next one."""
    factory, kept = door(), MemoryStore()

    def start(token):
        client = make_client(cls=lambda *given, **named: Recorder(*given, session=kept, **named), token=lambda: token)
        client.startService()
        return client

    first = start(good_for(60, world))
    first.send({"type": "note", "text": "one"})
    world.advance(120)
    assert first.status.event == "acknowledged" or first.events == ["open"]
    world.drop()
    first.send({"type": "note", "text": "two"})
    world.advance(30)
    assert first.events[-1] == "unreachable"
    assert "closed by the server (4401: this token has expired)" in first.told[-1].detail
    assert [status.code for status in first.all("closed")][-1] == 4401
    assert first.all("unreachable")[-1].attempt == 1
    world.advance(20)
    first.retry()
    world.advance(5)
    assert first.events[-1] == "unreachable"
    first.stopService()

    second = start(good_for(60, world))
    second.send({"type": "note", "text": "three"})
    world.advance(5)

    assert second.events == ["open"]
    assert factory.notes == ["one", "two", "three"]
    assert len(factory.heartbeat.sessions.channels) == 1


def test_a_client_that_is_asked_for_its_token_each_time_never_shows_an_old_one(door, make_client, world):
    """Its connection outlives every token, and every time it comes back it is let in to its session."""
    factory, given = door(), []

    def fresh():
        given.append(good_for(30, world))
        return given[-1]

    client = make_client(token=fresh)
    client.startService()
    for number in range(3):
        client.send({"type": "note", "text": str(number)})
        world.advance(60)
        assert client.events[-1] == "open"
        world.drop()
        world.advance(3)

    assert factory.notes == ["0", "1", "2"]
    assert client.events == ["open", *["closed", "reconnecting", "open"] * 3]
    assert len(given) == 4
    assert [channel.session.attempt for channel in factory.heartbeat.sessions.channels.values()] == [3]


def test_where_pages_without_a_session_are_allowed_they_show_it_in_the_query_or_a_cookie(door, connect, world):
    factory = door(level0="allow")
    good, old = good_for(30, world), good_for(-1, world)
    by_query, by_cookie, late = (
        connect().open(f"/ws?token={good}"),
        connect().open(cookie=f"token={good}"),
        connect().open(f"/ws?token={old}"),
    )
    for page in (by_query, by_cookie, late):
        page.say({"type": "onopen"})

    assert [page.messages[0]["client_id"] for page in (by_query, by_cookie)] == ["alice", "alice"]
    assert (late.closed_with, late.close_reason) == (4401, EXPIRED)
    world.advance(2)
    assert factory.presence.client_ids() == ("alice",)


def test_no_secret_and_no_token_is_ever_logged(door, enter, start_client, world, keyfile, log):
    """Not in a sentence, and not in a field of one."""
    issuer, late = Issuer("HS256", "a"), NOW + 10_000
    shown = [
        issuer.token(exp=late),
        issuer.token(exp=1),
        issuer.token({"alg": "none"}, exp=late),
        Issuer(seed="another").token(exp=late),
        issuer.token(exp=late, sub="sub\nof nobody"),
        "no token at all",
    ]
    door(issuer)
    # What happens again within a minute may be counted only, for as long as anybody is there; so somebody is.
    start_client(token=lambda: shown[0])
    for token in shown:
        enter(token)
        world.advance(130)
    keyfile(b"a secret that is too short")
    for token in shown:
        enter(None, path=f"/ws?token={token.replace(' ', '+')}")

    sentences = [formatEvent(event) for event in log]
    for told in ("'a' (HS256)", "cannot be used", EXPIRED, NOT_OURS, NO_CLIENT_ID, NO_TOKEN):
        assert any(told in sentence for sentence in sentences), told
    everything = "\n".join([*sentences, *map(repr, log)])
    for hidden in (issuer.jwk["k"], issuer.secret.hex(), repr(issuer.secret), "a secret that", "of nobody", *shown):
        assert hidden not in everything
