"""AWS credentials by botocore's standard chain: the environment, files, and roles of containers and machines."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from querylift.plugin.errors import MissingExtra, SettingsError

_log = logging.getLogger("querylift")
_FRESH_S = 60
"""After this time, credentials are fetched again in the background."""
_STALE_S = 540
"""After this time, requests wait for new credentials. botocore renews them ten minutes before their end at the latest."""
_PATIENCE_S = 5


class CredentialsUnavailable(aiohttp.ClientError):
    """There are no credentials to sign a request with. It is a failure to reach the engine, as others are."""


class AwsCredentials:
    """The credentials of a profile, or of the standard chain. botocore renews them. Raises MissingExtra.

    Fetching them may take seconds, so it happens in a thread. A request waits for that only when there are none yet, or
    when nobody has asked for minutes.
    """

    def __init__(self, profile: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._profile = profile
        self._clock = clock
        self._source: Any = None
        self._credentials: Any = None
        self._looked_at_s = 0.0
        self._refresh: asyncio.Task[None] | None = None
        _import_botocore()

    async def start(self) -> None:
        """Fetch the credentials. Raises SettingsError when there are none."""
        await asyncio.to_thread(self._fetch)

    async def get(self) -> Any:
        """Return credentials with `access_key`, `secret_key` and `token`. Raises CredentialsUnavailable."""
        age_s = self._clock() - self._looked_at_s
        if self._credentials is not None and age_s < _FRESH_S:
            return self._credentials
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.create_task(self._refresh_credentials())
        if self._credentials is None or age_s > _STALE_S:
            await asyncio.wait([self._refresh], timeout=_PATIENCE_S)
        if self._credentials is None:
            raise CredentialsUnavailable("no AWS credentials")
        return self._credentials

    async def _refresh_credentials(self) -> None:
        try:
            await asyncio.to_thread(self._fetch)
        except SettingsError as error:
            if self._credentials is not None:  # the engine says when they are too old
                self._looked_at_s = self._clock()
            _log.warning("%s", error)

    def _fetch(self) -> None:
        """Take the credentials, renewed where they end soon. Raises SettingsError."""
        if self._source is None:
            self._source = load_credentials(self._profile)
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._credentials = self._source.get_frozen_credentials()
        except (BotoCoreError, ClientError, OSError) as error:
            raise SettingsError(_describe_failure(error)) from None
        self._looked_at_s = self._clock()


def load_credentials(profile: str | None) -> Any:
    """Return botocore's own credentials, which renew themselves. Raises SettingsError, MissingExtra."""
    _import_botocore()
    from botocore.exceptions import BotoCoreError, ClientError, ProfileNotFound
    from botocore.session import Session

    try:
        credentials = Session(profile=profile).get_credentials()
    except ProfileNotFound:
        raise SettingsError(
            f"aws.profile is {profile!r}, which the configuration of AWS on this machine does not have; correct the name"
        ) from None
    except (BotoCoreError, ClientError, OSError) as error:
        raise SettingsError(_describe_failure(error)) from None
    if credentials is None:
        raise SettingsError(
            "aws.region is set, and there are no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or give this machine or container a role"
        )
    return credentials


def _describe_failure(error: Exception) -> str:
    reason = " ".join(str(error).split()).rstrip(".")
    return f"the AWS credentials cannot be fetched ({reason}); correct them, or the role that gives them"


def _import_botocore() -> None:
    try:
        import botocore.session  # noqa: F401
    except ImportError:
        raise MissingExtra("botocore", "aws") from None
