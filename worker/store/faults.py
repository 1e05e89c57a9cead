"""What faults of S3 mean: which may heal, and one clear line for each."""

import http.client
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.exceptions as boto_errors
import botocore.parsers
import urllib3.exceptions

from worker.errors import ConfigurationError, InfrastructureError, first_line
from worker.store.base import ObjectMissing
from worker.store.limits import TooSlow

LOST_RACE = {409, 412}
_CONNECTION_ERRORS = (
    boto_errors.HTTPClientError,
    boto_errors.ConnectionError,
    boto_errors.IncompleteReadError,
    boto_errors.ResponseStreamingError,
    botocore.parsers.ResponseParserError,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
)
# Short-lived credentials that are a moment late: whoever renews them is given the time.
_RENEWED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
# Of the line to the store, though the status is one of the client's.
_HICCUPS = {"RequestTimeout", "IncompleteBody", "BadDigest", "OperationAborted"}
_PASSING = {408, 429}
_NOT_IMPLEMENTED = 501
_REDIRECTS = {301, 302, 303, 307, 308}
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
    status = status_of(error)
    passing = status in _PASSING or (status >= 500 and status != _NOT_IMPLEMENTED)
    return passing or code_of(error) in _RENEWED | _HICCUPS


def needs_renewal(error: BaseException) -> bool:
    """Whether the credentials were good once, and newer ones may be there by now."""
    return code_of(error) in _RENEWED


def code_of(error: BaseException) -> str:
    """The code of an S3 error, such as `NoSuchKey`; empty for any other."""
    if isinstance(error, boto_errors.ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return ""


class NotS3(ConnectionError):
    """An answer that no S3 server gives, as of a proxy or a web console."""


def refuse_redirect(response: Any = None, **_: Any) -> None:
    """Raise `ConfigurationError` for a redirect, which botocore would follow round in circles.

    But for those of AWS itself, which name the bucket's region.
    """
    answer = response[0] if response else None
    if answer is None or answer.status_code not in _REDIRECTS:
        return
    headers = {name.lower(): value for name, value in answer.headers.items()}
    if "x-amz-bucket-region" in headers:
        return
    target = urlsplit(str(headers.get("location", "")))
    where = f"{target.scheme}://{target.netloc.rpartition('@')[2]}" if target.netloc else "nowhere"
    raise ConfigurationError(
        f"the endpoint {endpoint()} redirects to {where}; give that in AWS_ENDPOINT_URL"
    )


def translate(error: Exception, uri: str) -> Exception:
    """One clear line for whoever reads the log; never the response's or the request's headers."""
    if isinstance(error, _CREDENTIAL_ERRORS):
        return ConfigurationError(f"{uri}: {_missing_credentials()}")
    if isinstance(error, boto_errors.ClientError):
        return _translate_refusal(error, uri)
    if isinstance(error, TooSlow):
        return InfrastructureError(f"{uri}: {endpoint()} gives {error}; check the network")
    if isinstance(error, NotS3 | botocore.parsers.ResponseParserError):
        return InfrastructureError(
            f"{uri}: {endpoint()} answers, but not as S3 does; check AWS_ENDPOINT_URL and proxies"
        )
    if is_transient(error):
        return InfrastructureError(
            f"{uri}: {endpoint()} cannot be reached ({type(error).__name__}); "
            "check AWS_ENDPOINT_URL and the network"
        )
    if isinstance(error, boto_errors.ParamValidationError):
        return ConfigurationError(f"{uri}: not a valid S3 address; check the bucket's name")
    return ConfigurationError(f"{uri}: {first_line(error)}")


def _translate_refusal(error: boto_errors.ClientError, uri: str) -> Exception:
    """What the store has answered, in one line."""
    code, status = code_of(error), status_of(error)
    if needs_renewal(error):
        return ConfigurationError(f"{uri}: the credentials have expired ({code}); renew them")
    if is_transient(error):
        return InfrastructureError(f"{uri}: the store answers {status} {code}")
    if code == "NoSuchBucket":
        return ConfigurationError(f"{uri}: no such bucket; create it or correct the name")
    if status == 404:
        return ObjectMissing(f"{uri}: no such object")
    if status in {401, 403} or code == "InvalidToken":
        return ConfigurationError(f"{uri}: access denied ({code}); check the credentials")
    return ConfigurationError(f"{uri}: the store refuses the request ({status} {code})")


def _missing_credentials() -> str:
    file = os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    if file and not Path(file).exists():
        return f"AWS_SHARED_CREDENTIALS_FILE: {file} does not exist"
    return (
        "no usable S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "a profile or a workload identity"
    )


def endpoint() -> str:
    """The endpoint's address without the credentials that it may hold."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not url:
        return "the S3 endpoint"
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('/')[0]}"
