"""S3-compatible object storage through boto3: one client per process, one retry rule."""

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as boto_errors
import tenacity
import urllib3.exceptions
from botocore.config import Config

from worker.errors import ConfigurationError, InfrastructureError
from worker.store.base import ObjectInfo, ObjectMissing

T = TypeVar("T")
_client_lock = threading.Lock()
log = logging.getLogger(__name__)

_LOST_RACE = {409, 412}
_CONNECTION_ERRORS = (
    boto_errors.HTTPClientError,
    boto_errors.ConnectionError,
    boto_errors.IncompleteReadError,
    boto_errors.ResponseStreamingError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)
_CREDENTIAL_ERRORS = (
    boto_errors.NoCredentialsError,
    boto_errors.PartialCredentialsError,
    boto_errors.CredentialRetrievalError,
    boto_errors.TokenRetrievalError,
)


@functools.lru_cache
def _client(pid: int) -> Any:
    """The S3 client of process `pid`; a client that crosses a fork shares sockets and breaks.

    Endpoint, region, credentials, addressing style and CA come from the usual AWS variables.
    """
    try:
        return boto3.client(
            "s3",
            config=Config(
                # The defaults send aws-chunked trailers, which Ceph RGW refuses over https (411).
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"total_max_attempts": 1},
                max_pool_connections=64,
                connect_timeout=10,
                read_timeout=30,
            ),
        )
    except (ValueError, boto_errors.BotoCoreError) as error:
        raise ConfigurationError(f"the S3 client refuses the AWS_* settings: {error}") from error


def _status(error: BaseException) -> int:
    if isinstance(error, boto_errors.ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return 0


def _is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    return isinstance(error, _CONNECTION_ERRORS) or _status(error) in {408, 429, 500, 502, 503, 504}


def _translate(error: Exception, uri: str) -> Exception:
    """One clear line for whoever reads the log; never the response's or the request's headers."""
    if isinstance(error, _CREDENTIAL_ERRORS):
        return ConfigurationError(
            f"{uri}: no usable S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "a profile or a workload identity"
        )
    if isinstance(error, boto_errors.ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        if _is_transient(error):
            return InfrastructureError(f"{uri}: the store answers {_status(error)} {code}")
        if code == "NoSuchBucket":
            return ConfigurationError(f"{uri}: no such bucket; create it or correct the name")
        if _status(error) == 404:
            return ObjectMissing(f"{uri}: no such object")
        if _status(error) in {401, 403} or code in {"ExpiredToken", "InvalidToken"}:
            return ConfigurationError(f"{uri}: access denied ({code}); check the credentials")
        return ConfigurationError(f"{uri}: the store refuses the request ({_status(error)} {code})")
    if _is_transient(error):
        return InfrastructureError(
            f"{uri}: {_endpoint()} cannot be reached ({type(error).__name__}); "
            "check AWS_ENDPOINT_URL and the network"
        )
    if isinstance(error, boto_errors.ParamValidationError):
        return ConfigurationError(f"{uri}: not a valid S3 address; check the bucket's name")
    return ConfigurationError(f"{uri}: {str(error).splitlines()[0]}")


def _endpoint() -> str:
    """The endpoint's address without the credentials that it may hold."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not url:
        return "the S3 endpoint"
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _warn(uri: str, state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Exception) and state.attempt_number == 1:
        log.warning("%s; trying again for up to %g s", _translate(error, uri), _deadline())


def _deadline() -> float:
    text = os.environ.get("WORKER_STORE_DEADLINE_SECONDS", "60")
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(
            f"WORKER_STORE_DEADLINE_SECONDS: must be a number of seconds, not {text!r}"
        ) from None


class S3Store:
    """`Store` below `s3://bucket/prefix`."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"s3://{bucket}/{self.prefix}"

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        if stop is not None and stop <= start:
            return b""
        ranged = {} if (start, stop) == (0, None) else {"Range": _range(start, stop)}

        def request() -> bytes:
            try:
                response = self._s3.get_object(**self._name(key), **ranged)
            except boto_errors.ClientError as error:
                if _status(error) == 416:  # beyond the end: the object is shorter than believed
                    return b""
                raise
            # With its length given, a body is read at two thirds of the cost.
            length = response["ContentLength"]
            data: bytes = response["Body"].read(length)
            if len(data) < length:
                raise urllib3.exceptions.IncompleteRead(len(data), length - len(data))
            return data

        return self._call(key, request)

    def put(self, key: str, data: bytes) -> None:
        self._call(key, lambda: self._s3.put_object(**self._name(key), Body=data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        def request() -> bool:
            try:
                self._s3.put_object(**self._name(key), Body=data, IfNoneMatch="*")
            except boto_errors.ClientError as error:
                if _status(error) in _LOST_RACE:
                    return False
                raise
            return True

        try:
            return self._call(key, request) or self.get(key) == data
        except ObjectMissing:  # refused because of a concurrent write that is not visible yet
            return False

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        query = {"Bucket": self.bucket, "Prefix": self.prefix + prefix}
        while True:
            page = self._call(prefix, functools.partial(self._s3.list_objects_v2, **query))
            for item in page.get("Contents", []):
                yield ObjectInfo(item["Key"][len(self.prefix) :], item["Size"])
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, key: str) -> None:
        self._call(key, lambda: self._s3.delete_object(**self._name(key)))

    @property
    def _s3(self) -> Any:
        with _client_lock:  # making a client is the one thing about it that threads may not share
            return _client(os.getpid())

    def _name(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    def _call(self, key: str, request: Callable[[], T]) -> T:
        """Run one request, body included, with full-jitter retries up to the deadline."""
        uri = self.uri + key
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=tenacity.wait_random_exponential(multiplier=1, max=10),
            stop=tenacity.stop_before_delay(_deadline()),
            before_sleep=functools.partial(_warn, uri),
            reraise=True,
        )
        try:
            return retrying(request)
        except (
            boto_errors.BotoCoreError,
            boto_errors.ClientError,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            raise _translate(error, uri) from error


def _range(start: int, stop: int | None) -> str:
    return f"bytes={start}-{'' if stop is None else stop - 1}"
