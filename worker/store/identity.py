"""Credentials that are fetched in exchange for an identity, such as a Kubernetes token.

Fetching them is a request to another server, AWS STS or one like it, made by botocore within the
first request to S3. A failure of it would look like one of S3.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import botocore.exceptions as boto_errors
import botocore.parsers

from worker.errors import ConfigurationError, InfrastructureError, first_line
from worker.store.aws_settings import IDENTITY_FILE, STS_ENDPOINT, address_in
from worker.store.error_kinds import IdentityError, code_of, needs_renewal, status_of, tls_fault

_WEB = "assume-role-with-web-identity"


def mark_failures(credentials: Any) -> None:
    """Make failures to fetch these credentials, now or later, raise `IdentityError`.

    `credentials` are botocore's, or None; static ones are left alone.
    """
    fetch = getattr(credentials, "_refresh_using", None)
    if fetch is None:
        return

    def marked() -> Any:
        try:
            return fetch()
        except Exception as error:
            raise IdentityError(credentials.method) from error

    credentials._refresh_using = marked


def translate_identity(
    error: IdentityError, uri: str, reason: str, *, transient: bool
) -> Exception:
    """Return an error with a clear one-line message for credentials that could not be fetched.

    Args:
        error: The error.
        uri: The address that they were needed for.
        reason: Why a server could not be reached, if that is the cause.
        transient: Whether the same request may succeed a moment later.
    """
    method, cause = str(error), error.__cause__
    what = f"{uri}: the credentials ({method}) cannot be fetched"
    if method == _WEB:
        what = f"{uri}: {IDENTITY_FILE}: its token cannot be exchanged for credentials"
    sts = sts_endpoint(os.environ)
    if cause and needs_renewal(cause):
        return ConfigurationError(f"{what}: it has expired ({code_of(cause)}); renew it")
    kind = InfrastructureError if transient else ConfigurationError
    if isinstance(cause, boto_errors.ClientError):
        words = f"{status_of(cause)} {code_of(cause)}"
        if code_of(cause) in ("", str(status_of(cause))):  # the body does not come from STS
            return kind(f"{what}: {sts} responds with {status_of(cause)}; check {STS_ENDPOINT}")
        if transient:
            return kind(f"{what}: {sts} responds with {words}")
        return kind(f"{what}: {sts} refuses it ({words}); check AWS_ROLE_ARN and who may assume it")
    if isinstance(cause, botocore.parsers.ResponseParserError):
        return kind(f"{what}: {sts} responds, but not like AWS STS; check {STS_ENDPOINT}")
    if isinstance(cause, boto_errors.SSLError) and tls_fault(cause):
        return kind(f"{what}: {sts} {tls_fault(cause)}".replace("AWS_ENDPOINT_URL", STS_ENDPOINT))
    if transient:
        return kind(
            f"{what}: {sts} cannot be reached ({reason}); check {STS_ENDPOINT} and the network"
        )
    if isinstance(cause, boto_errors.ParamValidationError) and _is_empty(os.environ):
        return kind(f"{uri}: {IDENTITY_FILE}: {os.environ[IDENTITY_FILE]} is empty")
    return kind(f"{what}: {first_line(cause or error)}")


def sts_endpoint(env: Mapping[str, str]) -> str:
    """Return the address of the server that gives out credentials, without a login."""
    for name in (STS_ENDPOINT, "AWS_ENDPOINT_URL"):
        if env.get(name):
            return address_in(env[name])
    return f"AWS's own STS ({STS_ENDPOINT} is not set)"


def _is_empty(env: Mapping[str, str]) -> bool:
    path = Path(env.get(IDENTITY_FILE, "")).expanduser()
    return path.is_file() and not path.read_bytes().strip()
