"""What faults of S3 mean: which may heal, and one clear line for each."""

import os
from pathlib import Path

import botocore.exceptions as boto_errors
import urllib3.exceptions

from worker.errors import ConfigurationError, InfrastructureError, first_line
from worker.store.base import ObjectMissing

LOST_RACE = {409, 412}
_CONNECTION_ERRORS = (
    boto_errors.HTTPClientError,
    boto_errors.ConnectionError,
    boto_errors.IncompleteReadError,
    boto_errors.ResponseStreamingError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)
# Short-lived credentials that are a moment late: whoever renews them is given the time.
_RENEWED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
# Of the line to the store, though the status is one of the client's.
_HICCUPS = {"RequestTimeout", "IncompleteBody", "BadDigest", "OperationAborted"}
_PASSING = {408, 429, 500, 502, 503, 504}
_CREDENTIAL_ERRORS = (
    boto_errors.NoCredentialsError,
    boto_errors.PartialCredentialsError,
    boto_errors.CredentialRetrievalError,
    boto_errors.TokenRetrievalError,
)


def status_of(error: BaseException) -> int:
    if isinstance(error, boto_errors.ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return 0


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, _CONNECTION_ERRORS):
        return True
    return status_of(error) in _PASSING or _code(error) in _RENEWED | _HICCUPS


def needs_renewal(error: BaseException) -> bool:
    """Whether the credentials were good once, and newer ones may be there by now."""
    return _code(error) in _RENEWED


def _code(error: BaseException) -> str:
    if isinstance(error, boto_errors.ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return ""


def translate(error: Exception, uri: str) -> Exception:
    """One clear line for whoever reads the log; never the response's or the request's headers."""
    if isinstance(error, _CREDENTIAL_ERRORS):
        return ConfigurationError(f"{uri}: {_missing_credentials()}")
    if isinstance(error, boto_errors.ClientError):
        code = _code(error)
        if needs_renewal(error):
            return ConfigurationError(f"{uri}: the credentials have expired ({code}); renew them")
        if is_transient(error):
            return InfrastructureError(f"{uri}: the store answers {status_of(error)} {code}")
        if code == "NoSuchBucket":
            return ConfigurationError(f"{uri}: no such bucket; create it or correct the name")
        if status_of(error) == 404:
            return ObjectMissing(f"{uri}: no such object")
        if status_of(error) in {401, 403} or code == "InvalidToken":
            return ConfigurationError(f"{uri}: access denied ({code}); check the credentials")
        return ConfigurationError(
            f"{uri}: the store refuses the request ({status_of(error)} {code})"
        )
    if is_transient(error):
        return InfrastructureError(
            f"{uri}: {_endpoint()} cannot be reached ({type(error).__name__}); "
            "check AWS_ENDPOINT_URL and the network"
        )
    if isinstance(error, boto_errors.ParamValidationError):
        return ConfigurationError(f"{uri}: not a valid S3 address; check the bucket's name")
    return ConfigurationError(f"{uri}: {first_line(error)}")


def _missing_credentials() -> str:
    file = os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    if file and not Path(file).exists():
        return f"AWS_SHARED_CREDENTIALS_FILE: {file} does not exist"
    return (
        "no usable S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "a profile or a workload identity"
    )


def _endpoint() -> str:
    """The endpoint's address without the credentials that it may hold."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not url:
        return "the S3 endpoint"
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('/')[0]}"
