"""What requests to the engine need besides its URL: Querylift's account, certificates, and the signature for AWS."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from querylift.plugin.engine.aws_signing import AwsSigner
from querylift.plugin.engine.session import make_engine_session
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import Settings
from querylift.plugin.tls import load_certificate, pair_files

_CLIENT_KEYS = ("engine_client_cert", "engine_client_key")


@dataclass(frozen=True, slots=True)
class EngineAccess:
    """How Querylift's own requests reach the engine. `headers` hold its account, and are empty without one.

    `ssl` is what aiohttp takes: an SSL context, or True for the CAs of the system. `signer` signs for AWS.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    ssl: Any = True
    signer: AwsSigner | None = None

    def open_session(self, **options: Any) -> aiohttp.ClientSession:
        """Return a session for requests to the engine. `options` are those of aiohttp.ClientSession.

        `headers` among them are sent besides the account.
        """
        headers = {**self.headers, **options.pop("headers", {})}
        connector = aiohttp.TCPConnector(ssl=self.ssl)
        middlewares = () if self.signer is None else (self.signer,)
        return make_engine_session(headers=headers, connector=connector, middlewares=middlewares, **options)


ANONYMOUS_ACCESS = EngineAccess()


def build_engine_access(settings: Settings) -> EngineAccess:
    """Return the access that the settings describe. Raises SettingsError, MissingExtra."""
    return EngineAccess(build_account_headers(settings), build_ssl_context(settings), build_signer(settings))


def build_signer(settings: Settings) -> AwsSigner | None:
    """Return what signs every request to the engine, or None when the engine is not at AWS. Raises SettingsError."""
    if settings.aws.region is None:
        return None
    if settings.engine_username is not None:
        raise SettingsError(
            f"engine_username is {settings.engine_username!r}, and [aws] is set; remove one of them, "
            "because a request has one account only"
        )
    return AwsSigner(settings.aws)


def build_account_headers(settings: Settings) -> dict[str, str]:
    """Return the header with the account for Querylift's own requests to the engine; empty when the settings name none."""
    if settings.engine_username is None:
        return {}
    password = settings.engine_password.get_secret_value() if settings.engine_password else ""
    account = base64.b64encode(f"{settings.engine_username}:{password}".encode()).decode()
    return {"Authorization": f"Basic {account}"}


def build_ssl_context(settings: Settings) -> Any:
    """Return the SSL context for the engine, or True, with which clients trust the system's CAs. Raises SettingsError.

    The context trusts `engine_ca_file`, and shows `engine_client_cert`.
    """
    client_files = pair_files(settings.engine_client_cert, settings.engine_client_key, keys=_CLIENT_KEYS)
    if settings.engine_ca_file is None and client_files is None:
        return True
    try:
        context = ssl.create_default_context(cafile=str(settings.engine_ca_file) if settings.engine_ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"engine_ca_file is {settings.engine_ca_file}, which cannot be read as certificates ({error}); "
            "name a file of PEM certificates"
        ) from None
    if client_files is not None:
        load_certificate(context, *client_files, keys=_CLIENT_KEYS)
    return context
