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
from botocore.credentials import Credentials

from worker.errors import ConfigurationError, InfrastructureError, first_line
from worker.store.aws_settings import (
    IDENTITY_FILE,
    ROLE,
    STS_ENDPOINT,
    address_in,
    refused_setting,
)
from worker.store.error_kinds import (
    CONTAINER,
    REFUSED_BY_AGENT,
    IdentityError,
    code_of,
    needs_renewal,
    status_of,
    tls_fault,
)

_WEB = "assume-role-with-web-identity"
_AGENTS = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")


def find_credentials(session: Any) -> Any:
    """Return the credentials that a boto3 session finds, or None.

    Failures to fetch them, now or later, raise `IdentityError`. Raises `ConfigurationError` for a
    key without a secret.
    """
    try:
        credentials = session.get_credentials()
    except boto_errors.CredentialRetrievalError as error:
        raise IdentityError(error.kwargs["provider"]) from error
    except ValueError as error:
        raise refused_setting(error, os.environ) from None
    except boto_errors.InvalidConfigError:
        # A profile may set the role, too, so only botocore knows that there is none.
        if os.environ.get(IDENTITY_FILE) and not os.environ.get(ROLE):
            raise ConfigurationError(
                f"{ROLE}: not set, though {IDENTITY_FILE} is; set both"
            ) from None
        raise
    _require_secret(credentials)
    _mark_failures(credentials)
    return credentials


def _mark_failures(credentials: Any) -> None:
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


def _require_secret(credentials: Any) -> None:
    """Raise `ConfigurationError` for a key without a secret, as from a file with an empty line.

    `credentials` are botocore's, or None; those that are fetched are left alone.
    """
    if type(credentials) is Credentials and not credentials.secret_key:
        raise ConfigurationError(
            f"the credentials from {credentials.method}: aws_secret_access_key is empty; set it"
        )


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
    if cause and needs_renewal(cause):
        return ConfigurationError(f"{what}: it has expired ({code_of(cause)}); renew it")
    kind = InfrastructureError if transient else ConfigurationError
    if method == CONTAINER:
        return kind(f"{what}: {_agent_fault(cause, os.environ)}")
    if isinstance(cause, boto_errors.ParamValidationError) and _is_empty(os.environ):
        return kind(f"{uri}: {IDENTITY_FILE}: {os.environ[IDENTITY_FILE]} is empty")
    return kind(f"{what}: {_sts_fault(cause or error, reason, transient=transient)}")


def _sts_fault(cause: BaseException, reason: str, *, transient: bool) -> str:
    """Describe why AWS STS, or a server in its place, gave no credentials."""
    sts = sts_endpoint(os.environ)
    if isinstance(cause, boto_errors.ClientError):
        words = f"{status_of(cause)} {code_of(cause)}"
        if code_of(cause) in ("", str(status_of(cause))):  # the body does not come from STS
            return f"{sts} responds with {status_of(cause)}; check {STS_ENDPOINT}"
        if transient:
            return f"{sts} responds with {words}"
        return f"{sts} refuses it ({words}); check {ROLE} and who may assume it"
    if isinstance(cause, botocore.parsers.ResponseParserError):
        return f"{sts} responds, but not like AWS STS; check {STS_ENDPOINT}"
    if isinstance(cause, boto_errors.SSLError) and tls_fault(cause, STS_ENDPOINT):
        return f"{sts} {tls_fault(cause, STS_ENDPOINT)}"
    if transient:
        return f"{sts} cannot be reached ({reason}); check {STS_ENDPOINT} and the network"
    return first_line(cause)


def sts_endpoint(env: Mapping[str, str]) -> str:
    """Return the address of the server that gives out credentials, without a login."""
    for name in (STS_ENDPOINT, "AWS_ENDPOINT_URL"):
        if env.get(name):
            return address_in(env[name])
    return f"AWS's own STS ({STS_ENDPOINT} is not set)"


def _agent_fault(cause: BaseException | None, env: Mapping[str, str]) -> str:
    """Describe why the agent that gives credentials to containers, as in EKS, gave none."""
    name = next(name for name in _AGENTS if name in env)
    refused = REFUSED_BY_AGENT.search(str(cause))
    if refused:
        return f"the agent in {name} refuses them ({refused[1]}); check the role of the pod or task"
    return f"the agent in {name} does not respond; check the variable, and the agent on the node"


def _is_empty(env: Mapping[str, str]) -> bool:
    path = Path(env.get(IDENTITY_FILE, "")).expanduser()
    return path.is_file() and not path.read_bytes().strip()
