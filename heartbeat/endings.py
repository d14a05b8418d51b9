"""Why a connection ended: in a sentence for people, and whether another attempt would only end the same way."""

from __future__ import annotations

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

__all__ = ["is_of_tls", "is_refused_certificate", "reason_of"]


def is_of_tls(failure: Failure) -> bool:
    """Whether TLS failed, and not what it carries."""
    return failure.check(SSL.Error, VerificationError) is not None


def is_refused_certificate(failure: Failure) -> bool:
    """Whether TLS failed for a reason that another attempt would only meet again."""
    if failure.check(VerificationError) is not None:
        return True
    return failure.check(SSL.Error) is not None and "certificate verify failed" in str(failure.value)


def reason_of(failure: Failure) -> str:
    """A failure in a sentence, for people."""
    if failure.check(VerificationError) is not None:
        return "the certificate is for another host"
    if failure.check(SSL.Error) is not None:
        parts = failure.value.args[0] if failure.value is not None and failure.value.args else ()
        words = {part[-1] for part in parts if part}
        return "TLS failed: " + (", ".join(sorted(words)) or "the connection was cut")
    if failure.check(ConnectionDone) is not None:
        return "the other end closed the connection"
    return str(failure.getErrorMessage()).rstrip(".")
