"""Messages for S3 errors: the cause, as far as it is known, and the remedy."""

import datetime
import email.utils
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import botocore.exceptions as boto_errors
import botocore.parsers
import urllib3.exceptions

from worker.errors import ConfigurationError, InfrastructureError, first_line
from worker.store.aws_profile import PROFILES, profile_names
from worker.store.aws_settings import IGNORE_ENDPOINTS, address_in, endpoint_setting, proxy_in
from worker.store.error_kinds import (
    IdentityError,
    NotS3,
    code_of,
    is_transient,
    needs_renewal,
    status_of,
    tls_fault,
)
from worker.store.identity import translate_identity
from worker.store.interface import ObjectMissing
from worker.store.request_deadline import TooSlow
from worker.text import printable

_CREDENTIAL_ERRORS = (
    boto_errors.NoCredentialsError,
    boto_errors.PartialCredentialsError,
    boto_errors.CredentialRetrievalError,
    boto_errors.TokenRetrievalError,
)
_CONSOLE = "must be made to API port"  # from MinIO's error message
_MAX_WORDS = 200
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
NO_BUCKET = "no such bucket"
_PROXY_LOGIN = 407
_REFUSALS = {
    "NoSuchBucket": (
        f"{NO_BUCKET}; correct the name, or create the bucket if it is to be written to "
        "(--create-bucket of `worker pack` or `worker put`)"
    ),
    "InvalidAccessKeyId": (
        "access denied (InvalidAccessKeyId); AWS_ACCESS_KEY_ID is unknown to the store"
    ),
    **dict.fromkeys(
        ("InvalidToken", "InvalidTokenId"),
        "access denied; AWS_SESSION_TOKEN does not belong to the keys: unset it, or renew all",
    ),
    "SignatureDoesNotMatch": (
        "access denied (SignatureDoesNotMatch); AWS_SECRET_ACCESS_KEY does not match "
        "AWS_ACCESS_KEY_ID"
    ),
}


def endpoint() -> str:
    """Return the endpoint's address, without any credentials in it."""
    name, url = endpoint_setting(os.environ)
    state = "is" if name == IGNORE_ENDPOINTS else "is not"
    return address_in(url) if url else f"AWS's own S3 ({name} {state} set)"


def _setting() -> str:
    """Return the name of the setting that leads to the store."""
    return endpoint_setting(os.environ)[0]


def translate(error: Exception, uri: str) -> Exception:
    """Return an error with a clear one-line message, without request or response headers."""
    # From the specific to the general: `TooSlow`, for one, counts as transient, too.
    if isinstance(error, IdentityError):
        reason = _reason(error.__cause__ or error)
        return translate_identity(error, uri, reason, transient=is_transient(error))
    if isinstance(error, _CREDENTIAL_ERRORS):
        return ConfigurationError(f"{uri}: {_missing_credentials()}")
    if isinstance(error, boto_errors.ClientError):
        return _translate_refusal(error, uri)
    if isinstance(error, TooSlow):
        return InfrastructureError(f"{uri}: {endpoint()} sent {error}; check the network")
    if isinstance(error, boto_errors.SSLError) and tls_fault(error, _setting()):
        return ConfigurationError(f"{uri}: {endpoint()} {tls_fault(error, _setting())}")
    if is_transient(error):
        return InfrastructureError(f"{uri}: {_lost_connection(error)}")
    # Only a bare HTTPClientError gets here, for a request that could not be sent at all; see
    # `is_transient`.
    if isinstance(error, boto_errors.HTTPClientError):
        return ConfigurationError(
            f"{uri}: the credentials or the region contain characters that cannot be sent "
            "in a request; set them again, without a line break at the end"
        )
    if isinstance(error, boto_errors.ParamValidationError):
        return ConfigurationError(f"{uri}: not a valid S3 address; check the bucket's name")
    return ConfigurationError(f"{uri}: {first_line(error)}")


def _lost_connection(error: Exception) -> str:
    """Return the reason why S3 did not respond, and what to do about it."""
    if isinstance(error, NotS3 | botocore.parsers.ResponseParserError):
        return (
            f"{endpoint()} responds, but not like an S3 server; check the port in "
            f"{_setting()} (a web console has a different one) and any proxies"
        )
    if isinstance(error, boto_errors.ProxyConnectionError):
        name, proxy = proxy_in(os.environ)
        return (
            f"the proxy {proxy} cannot be reached ({_reason(error)}); correct {name}, or add the "
            "endpoint's host to NO_PROXY"
        )
    return f"{endpoint()} cannot be reached ({_reason(error)}); check {_setting()} and the network"


def _translate_refusal(error: boto_errors.ClientError, uri: str) -> Exception:
    """Return an error with the reason for the store's refusal, in one line."""
    code, status = code_of(error), status_of(error)
    # The order matters: expired credentials count as transient, too, and the codes of the next
    # two errors come with a 403 and a 400, like refusals that have other remedies.
    if needs_renewal(error):
        return ConfigurationError(f"{uri}: the credentials have expired ({code}); renew them")
    if code == "RequestTimeTooSkewed":
        return InfrastructureError(f"{uri}: {_skew(error)}")
    if code == "AuthorizationHeaderMalformed" or "region" in code.lower():
        return ConfigurationError(f"{uri}: {_wrong_region(error)}")
    if status == _PROXY_LOGIN:
        name, proxy = proxy_in(os.environ)
        return ConfigurationError(
            f"{uri}: the proxy {proxy} requires authentication; put the credentials in "
            f"{name}, or add the endpoint's host to NO_PROXY"
        )
    if is_transient(error):
        name = "" if code in ("", str(status)) else f" {code}"  # a gateway's response has no code
        return InfrastructureError(f"{uri}: the store responds with {status}{name}")
    foreign = _is_foreign(error)
    fault = bucket_name_fault(urlsplit(uri).netloc)
    # The response to a HEAD request has no code.
    if fault and status == 400 and code in ("InvalidBucketName", "400", ""):
        return ConfigurationError(f"{uri}: {fault}")
    # Whatever the code: the response to a HEAD request has no body to hold the real one.
    if status == 404 and code != "NoSuchBucket" and not foreign:
        return ObjectMissing(f"{uri}: no such object")
    if foreign:
        return ConfigurationError(f"{uri}: {_not_s3(status)}")
    return ConfigurationError(f"{uri}: {_refusal(code, status, _words(error))}")


def bucket_name_fault(name: str) -> str:
    """Return why a store may not accept a bucket's name, and the remedy; empty for a valid name."""
    if _BUCKET.fullmatch(name):
        return ""
    return (
        f"{name} is not a valid bucket name; use 3 to 63 lowercase letters, digits, dots and dashes"
    )


def _words(error: boto_errors.ClientError) -> str:
    """Return the store's own message, in one line."""
    text = str(error.response.get("Error", {}).get("Message", ""))
    return printable(" ".join(text.split()))[:_MAX_WORDS]


def _refusal(code: str, status: int, words: str) -> str:
    """Return the message for a refusal that retrying cannot change."""
    if _CONSOLE in words:
        return f"{endpoint()} leads to a web console, not to S3; check the port in {_setting()}"
    if code in _REFUSALS:
        return _REFUSALS[code]
    if status in {401, 403}:
        return f"access denied ({code}); check the credentials and their permissions"
    if code == str(status):
        return _not_s3(status)
    return f"the store refuses the request ({status} {code}{f': {words}' if words else ''})"


def _is_foreign(error: boto_errors.ClientError) -> bool:
    """Return whether the body of a refusal is not one of S3, but a web page, for example."""
    code, headers = (
        code_of(error),
        error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}),
    )
    if code not in ("", str(status_of(error))) or error.operation_name.startswith("Head"):
        return False
    # Some stores send no body with a 404 for an object. Nothing else that S3 is asked for here can
    # be missing without a code.
    return error.operation_name != "GetObject" or headers.get("content-length") != "0"


def _not_s3(status: int) -> str:
    return (
        f"{endpoint()} responds with {status}, but not like an S3 server; check the port in "
        f"{_setting()}, and whether it should be https://"
    )


def _skew(error: boto_errors.ClientError) -> str:
    """Describe the difference between this machine's clock and the store's."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    text = "this machine's clock differs too much from the store's"
    try:
        there = email.utils.parsedate_to_datetime(headers["date"])
        seconds = (datetime.datetime.now(datetime.UTC) - there).total_seconds()
    # A zone of "-0000" yields a naive time, whose subtraction raises a `TypeError`.
    except (KeyError, TypeError, ValueError):
        return f"{text}; set it (NTP)"
    side = "ahead" if seconds > 0 else "behind"
    return f"{text}: it is {abs(seconds):.0f} s {side}; set it (NTP)"


def _wrong_region(error: boto_errors.ClientError) -> str:
    here = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "not set"
    there = error.response.get("Error", {}).get("Region")
    wanted = f"the bucket is in {there}" if there else "the bucket is in a different region"
    return f"wrong region: AWS_REGION is {here}, but {wanted}; correct AWS_REGION"


def _reason(error: BaseException) -> str:
    """Return why a host could not be reached, in the system's own words if those are familiar."""
    # botocore keeps the error of urllib3, which names the cause, among its own arguments.
    inner: object = error
    if isinstance(error, boto_errors.BotoCoreError):
        inner = getattr(error, "kwargs", {}).get("error", error)
    text = str(inner)
    if "resolve" in text:
        return "its name does not resolve"
    for known in ("Connection refused", "No route to host", "Network is unreachable"):
        if known in text:
            return known.lower()
    if "Tunnel connection failed" in text:
        # http.client writes this text; urllib3's error quotes it in the repr of an inner error.
        return first_line(ValueError(text.partition("Tunnel connection failed: ")[2].rstrip("')")))
    if isinstance(inner, TimeoutError | urllib3.exceptions.TimeoutError) or "timed out" in text:
        return "no answer in time"
    if isinstance(error, boto_errors.ConnectionClosedError):
        return "the connection was closed"
    return type(error).__name__


def _missing_credentials() -> str:
    file = os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    if file and not Path(file).expanduser().exists():
        return f"AWS_SHARED_CREDENTIALS_FILE: {file} does not exist"
    if os.environ.get("AWS_SECRET_ACCESS_KEY"):
        return "AWS_ACCESS_KEY_ID: not set, though AWS_SECRET_ACCESS_KEY is"
    names = profile_names()
    if names and "default" not in names and not any(os.environ.get(name) for name in PROFILES):
        shown = ", ".join(printable(name[:60]) for name in names[:5])
        return (
            "no usable S3 credentials: there is no profile named default; set AWS_PROFILE to one "
            f"of those in the AWS files ({shown})"
        )
    return (
        "no usable S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "or use a profile or a workload identity"
    )
