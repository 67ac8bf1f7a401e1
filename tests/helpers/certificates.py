"""Real certificates, made for one test."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class CertificateFiles:
    """A certificate and its key as PEM files, and the file of the authority that signed it."""

    certificate: Path
    key: Path
    authority: Path

    @property
    def client_context(self) -> ssl.SSLContext:
        """The context of a client that trusts the authority."""
        context = ssl.create_default_context(cafile=self.authority)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context


def make_certificate(folder: Path, *, authority: trustme.CA | None = None, name: str = "127.0.0.1") -> CertificateFiles:
    """Write a certificate for `name` into `folder`, which is made. Without `authority` it has one of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = authority or trustme.CA()
    issued = authority.issue_cert(name)
    files = CertificateFiles(folder / "cert.pem", folder / "key.pem", folder / "authority.pem")
    files.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    files.key.write_bytes(issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(files.authority)
    return files
