"""Certificates: the one that clients see, and the one that Querylift shows to the engine."""

from __future__ import annotations

import ssl
from pathlib import Path

from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import Settings


class ServerCertificate:
    """The certificate of `listen` and `admin`. `context` is for the next handshake.

    Connections keep the context of their own handshake, so reading the files again loses none.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises SettingsError when the files cannot be used."""
        self._certificate = certificate
        self._key = key
        self.context = self._build_context()

    def reload(self) -> None:
        """Read the files again. Raises SettingsError, and then the certificate stays what it was."""
        self.context = self._build_context()

    def _build_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        load_certificate(context, self._certificate, self._key, keys=("tls_cert", "tls_key"))
        return context


def open_server_certificate(settings: Settings) -> ServerCertificate | None:
    """Return the certificate that the settings name, or None when they name none. Raises SettingsError."""
    files = pair_files(settings.tls_cert, settings.tls_key, keys=("tls_cert", "tls_key"))
    return ServerCertificate(*files) if files else None


def pair_files(certificate: Path | None, key: Path | None, *, keys: tuple[str, str]) -> tuple[Path, Path] | None:
    """Return both files, or None when neither is set. Raises SettingsError when one is. `keys` are their settings."""
    if certificate is not None and key is not None:
        return certificate, key
    if certificate is None and key is None:
        return None
    set_key, missing_key = keys if key is None else keys[::-1]
    raise SettingsError(f"{set_key} is {str(certificate or key)!r}, and {missing_key} is not set; set both or neither")


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path, *, keys: tuple[str, str]) -> None:
    """Let `context` show the certificate. Raises SettingsError. `keys` are the settings that name the two files."""
    for name, path in zip(keys, (certificate, key), strict=True):
        try:
            path.read_bytes()
        except OSError as error:
            raise SettingsError(
                f"{name} is {str(path)!r}, which cannot be read ({error.strerror}); name another file"
            ) from None
    try:
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except _KeyHasPassword:
        raise SettingsError(f"{keys[1]} is {str(key)!r}, a key with a password; name a key without one") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"{keys[1]} is {str(key)!r}, which is not the key of {keys[0]} {str(certificate)!r}"
            raise SettingsError(f"{problem}; name the files of one certificate") from None
        raise SettingsError(
            f"{keys[0]} is {str(certificate)!r} and {keys[1]} is {str(key)!r}, which are no certificate and key; "
            "name PEM files"
        ) from None


class _KeyHasPassword(Exception):
    pass


def _refuse_password() -> str:
    """Stand in for the question on the terminal that OpenSSL would ask."""
    raise _KeyHasPassword
