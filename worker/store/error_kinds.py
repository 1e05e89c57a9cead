"""Kinds of S3 errors: transient ones, and responses that do not come from S3."""

import http.client
import os
import re
from typing import Any
from urllib.parse import urlsplit

import botocore.exceptions as boto_errors
import botocore.parsers
import urllib3.exceptions

from worker.errors import ConfigurationError
from worker.store.aws_settings import address_in, endpoint_setting

CONTAINER = "container-role"  # botocore's name for EKS Pod Identity and its like
REFUSED_BY_AGENT = re.compile(r"non 200 response (4\d\d)")
LOST_RACE = {409, 412}  # status of a conditional write that came after another writer's
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
# Short-lived credentials that have just expired: retrying leaves time to renew them.
_RENEWED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
# Connection faults, although their HTTP status is that of a client error.
_HICCUPS = {"RequestTimeout", "IncompleteBody", "BadDigest", "OperationAborted"}
_PASSING = {408, 429}
_NOT_IMPLEMENTED = 501
_REDIRECTS = {301, 302, 303, 307, 308}


_TLS = {
    "WRONG_VERSION_NUMBER": "does not speak TLS; use http:// in {setting}",
    "record layer failure": "does not speak TLS; use http:// in {setting}",
    "NO_CERTIFICATE_OR_CRL_FOUND": "cannot be verified: AWS_CA_BUNDLE holds no certificate",
    "expired": "has a certificate that has expired, or this machine's clock is wrong",
    "not yet valid": "has a certificate that is not valid yet; check this machine's clock",
    "match": "has a certificate for a different host name; use the certificate's host name in "
    "{setting}",
    # Last, as the text of the certificate errors above contains this, too.
    "CERTIFICATE_VERIFY_FAILED": (
        "has a certificate signed by an unknown authority; set AWS_CA_BUNDLE to a file with "
        "that authority's certificate"
    ),
}
"""Meanings of TLS errors, by a part of their text; the first match counts. `{setting}` stands for
the name of the setting that leads to the server.
"""


class IdentityError(Exception):
    """Credentials could not be fetched; `__cause__` says why. See `worker.store.identity`."""


def status_of(error: BaseException) -> int:
    """Return the HTTP status of a response; 0 if there was none."""
    if isinstance(error, boto_errors.ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return 0


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed a moment later."""
    if isinstance(error, IdentityError):
        cause = error.__cause__
        # The agent on the node may be starting again; only a refusal by it is final.
        if str(error) == CONTAINER:
            return not REFUSED_BY_AGENT.search(str(cause))
        return cause is not None and is_transient(cause)
    if isinstance(error, boto_errors.HTTPClientError):
        # A bare HTTPClientError is a fault unknown to botocore, such as an invalid header value.
        inner = error.kwargs.get("error")
        known = type(error) is not boto_errors.HTTPClientError
        return known or isinstance(inner, OSError | urllib3.exceptions.HTTPError)
    if isinstance(error, boto_errors.SSLError) and tls_fault(error, ""):
        return False
    if isinstance(error, _CONNECTION_ERRORS):
        return True
    status = status_of(error)
    # 501 is permanent: the server does not implement the request, such as a conditional write.
    passing = status in _PASSING or (status >= 500 and status != _NOT_IMPLEMENTED)
    return passing or code_of(error) in _RENEWED | _HICCUPS


def tls_fault(error: boto_errors.SSLError, setting: str) -> str | None:
    """Return the meaning of a TLS error that retrying cannot fix; None for any other.

    `setting` is the name of the setting that leads to the server.
    """
    meaning = next((meaning for word, meaning in _TLS.items() if word in str(error)), None)
    return meaning and meaning.format(setting=setting)


def needs_renewal(error: BaseException) -> bool:
    """Return whether the credentials have expired, and may have been renewed by now."""
    return code_of(error) in _RENEWED


def code_of(error: BaseException) -> str:
    """Return the code of an S3 error, such as `NoSuchKey`; empty for any other error."""
    if isinstance(error, boto_errors.ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return ""


class NotS3(ConnectionError):
    """A response that no S3 server would send, such as that of a proxy or a web console."""


def refuse_page(
    response_dict: dict[str, Any] | None, parsed_response: dict[str, Any] | None, **_: Any
) -> None:
    """Raise `NotS3` for a success with a body that botocore cannot read, such as a web page.

    botocore would report it as a 500, which the server has not sent.
    """
    parsed = parsed_response or {}
    made_up = parsed.get("ResponseMetadata", {}).get("HTTPStatusCode") == 500
    # S3 itself may send an error after it has sent the status; that has a code of its own.
    nameless = parsed.get("Error", {}).get("Code") in (None, "", "500")
    if response_dict and response_dict["status_code"] == 200 and made_up and nameless:
        raise NotS3


def refuse_redirect(response: Any = None, **_: Any) -> None:
    """Raise `ConfigurationError` for a redirect, which botocore would follow in circles.

    Redirects by AWS itself, which name the bucket's region, are left to botocore.
    """
    answer = response[0] if response else None
    if answer is None or answer.status_code not in _REDIRECTS:
        return
    headers = {name.lower(): value for name, value in answer.headers.items()}
    if "x-amz-bucket-region" in headers:
        return
    target = urlsplit(str(headers.get("location", "")))
    setting, url = endpoint_setting(os.environ)
    endpoint = address_in(url) if url else "of S3"
    if not target.netloc:
        raise ConfigurationError(
            f"the endpoint {endpoint} redirects to {target.path or 'nowhere'} on the same server, "
            f"so it is not the S3 API; correct {setting}"
        )
    where = f"{target.scheme}://{target.netloc.rpartition('@')[2]}"
    raise ConfigurationError(
        f"the endpoint {endpoint} redirects to {where}; set {setting} to that address"
    )
