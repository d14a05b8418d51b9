"""Certificates for 127.0.0.1 and localhost, made for one test and trusted by nobody else."""

from dataclasses import dataclass
from pathlib import Path

import trustme
from twisted.internet.endpoints import quoteStringArgument

__all__ = ["Certificates"]


@dataclass(frozen=True)
class Certificates:
    """PEM files: a server's `key` and `chain`, and the `authority` that a client is to trust."""

    key: Path
    chain: Path
    authority: Path

    @classmethod
    def issued_in(cls, folder: Path, *names: str) -> "Certificates":
        """Fresh ones for `names`, in this folder."""
        authority = trustme.CA()
        server = authority.issue_cert(*(names or ("127.0.0.1", "localhost")))
        issued = cls(folder / "key.pem", folder / "chain.pem", folder / "authority.pem")
        server.private_key_pem.write_to_path(issued.key)
        for pem in server.cert_chain_pems:
            pem.write_to_path(issued.chain, append=True)
        authority.cert_pem.write_to_path(issued.authority)
        return issued

    @property
    def listen(self) -> str:
        """An endpoint description for any free port of 127.0.0.1 over TLS."""
        key, chain = (quoteStringArgument(str(path)) for path in (self.key, self.chain))
        return f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={chain}"
