"""S3-compatible object storage through boto3: one client per process, one retry policy."""

import contextlib
import functools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import botocore.exceptions as boto_errors
import urllib3.exceptions

from worker.errors import WorkerError
from worker.numbers import ceil_div
from worker.store.client import s3_client
from worker.store.error_kinds import (
    LOST_RACE,
    NotS3,
    code_of,
    status_of,
)
from worker.store.interface import ObjectInfo, ObjectMissing, Piece
from worker.store.part_cutter import cut
from worker.store.request_deadline import allow
from worker.store.retries import with_retries
from worker.store.s3_answers import listed, stored

T = TypeVar("T")
Condition = dict[str, str]
"""The `IfMatch` or `IfNoneMatch` condition of a write; empty if it is unconditional."""
log = logging.getLogger(__name__)

# Limits of multipart uploads: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html.
# Parts grow with an object that would need more than `_MAX_PARTS` of them.
_PART = 16 << 20
_MAX_PARTS = 9_000  # S3 allows 10,000
_SIDE_BY_SIDE = 4
_NOT_IMPLEMENTED, _PARTIAL = 501, 206
# Codes of 404 for a conditional write: the object to replace, or the upload, was removed.
_NOTHING_THERE = {"NoSuchKey", "NoSuchUpload"}
_MAX_OBJECT = 5 << 30  # a response's deadline grows with its size, up to this many bytes


class S3Store:
    """`Store` below `s3://bucket/prefix`."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"s3://{bucket}/{self.prefix}"
        self.fences = True

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        if stop is not None and stop <= start:
            return b""
        ranged = {} if (start, stop) == (0, None) else {"Range": _range(start, stop)}

        def request() -> bytes:
            try:
                response = self._s3.get_object(**self._name(key), **ranged)
            except boto_errors.ClientError as error:
                if status_of(error) == 416:  # beyond the end: the object is shorter than expected
                    return b""
                raise
            if not response.get("ETag"):
                raise NotS3
            # Passing the length makes reading a body a third cheaper; a proxy may omit it.
            length = response.get("ContentLength")
            # A proxy may ignore the range and send the whole object, with 200.
            whole = response["ResponseMetadata"]["HTTPStatusCode"] != _PARTIAL
            if length is not None and stop is not None and not whole and length > stop - start:
                raise NotS3
            allow(min(length or 0, _MAX_OBJECT))
            data: bytes = response["Body"].read(length)
            # botocore compares the length only in a read that is not given one, or that returns
            # nothing.
            if length is not None and len(data) < length:
                raise urllib3.exceptions.IncompleteRead(len(data), length - len(data))
            return data[start:stop] if ranged and whole else data

        return self._call("get", key, request)

    def put(self, key: str, data: bytes) -> None:
        name = self._name(key)
        self._call("put", key, lambda: stored(self._s3.put_object(**name, Body=data)), len(data))

    def put_stream(self, key: str, size: int, pieces: Iterable[Piece]) -> None:
        self._write(key, size, pieces, {})

    def replace(self, key: str, size: int, pieces: Iterable[Piece], version: str) -> bool:
        # Without its quotes, which RGW, unlike other stores, does not strip.
        etag = version.split(" ")[0].strip('"')
        condition = {"IfMatch": etag} if version else {"IfNoneMatch": "*"}
        return self._write(key, size, pieces, condition)

    def _write(self, key: str, size: int, pieces: Iterable[Piece], condition: Condition) -> bool:
        """Write an object, in parts if it is large; return False if the condition does not hold."""
        part = max(_PART, ceil_div(size, _MAX_PARTS))
        name = self._name(key)
        if size <= part:
            # Joined here, as every try sends all of it, but `pieces` can be iterated only once.
            body = b"".join(pieces)

            def put(condition: Condition) -> None:
                stored(self._s3.put_object(**name, Body=body, **condition))

            return self._call("put", key, lambda: self._under(condition, put), size)
        upload = self._call("upload", key, lambda: self._begun(key))
        try:
            try:
                parts = self._send_parts(key, upload, cut(pieces, part))
            except ObjectMissing:
                if condition and self._is_gone(key, upload):
                    return False
                raise
            return self._complete(key, upload, parts=parts, size=size, condition=condition)
        except BaseException:
            with contextlib.suppress(Exception):  # report the error that ended the upload
                self._s3.abort_multipart_upload(**name, UploadId=upload)
            raise

    def _send_parts(
        self, key: str, upload: str, bodies: Iterable[bytearray]
    ) -> list[dict[str, Any]]:
        """Upload the parts, a few in parallel, and keep no more than those in memory."""

        def send(number: int, body: bytearray) -> dict[str, Any]:
            answer = self._call(
                "part",
                key,
                lambda: stored(
                    self._s3.upload_part(
                        **self._name(key), UploadId=upload, PartNumber=number, Body=body
                    )
                ),
                len(body),
            )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        sent: list[dict[str, Any]] = []
        under_way: deque[Future[dict[str, Any]]] = deque()
        # Even on an error, the pool is left only once its requests have ended, so that the abort in
        # `_write` comes last: S3 may keep a part that arrives during the abort, and charge for it.
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            for number, body in enumerate(bodies, start=1):
                if len(under_way) == _SIDE_BY_SIDE:
                    sent.append(under_way.popleft().result())
                under_way.append(pool.submit(send, number, body))
            return sent + [future.result() for future in under_way]

    def _complete(
        self,
        key: str,
        upload: str,
        *,
        parts: list[dict[str, Any]],
        size: int,
        condition: Condition,
    ) -> bool:
        name = {**self._name(key), "UploadId": upload, "MultipartUpload": {"Parts": parts}}

        def complete(condition: Condition) -> None:
            try:
                stored(self._s3.complete_multipart_upload(**name, **condition))
            except boto_errors.ClientError as error:
                # The response to an earlier try was lost, but the upload was completed. With a
                # condition, the object may also be another writer's: the caller checks.
                if status_of(error) != 404 or condition or not self._is_there(key, size):
                    raise

        completed = self._call("upload", key, lambda: self._under(condition, complete))
        if not completed:
            with contextlib.suppress(WorkerError):  # leftover parts only take up space
                self._call(
                    "delete",
                    key,
                    lambda: self._s3.abort_multipart_upload(**self._name(key), UploadId=upload),
                )
        return completed

    def _under(self, condition: Condition, write: Callable[[Condition], None]) -> bool:
        """Write under an S3 condition; return False if it does not hold."""
        try:
            write(condition)
        except boto_errors.ClientError as error:
            if not condition:
                raise
            if status_of(error) == _NOT_IMPLEMENTED:
                self._warn_unfenced()
                write({})
            # 412: the object has changed. 409: a conflicting request was under way at the same
            # time. See
            # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html.
            elif status_of(error) in LOST_RACE or code_of(error) in _NOTHING_THERE:
                return False
            else:
                raise
        return True

    def _begun(self, key: str) -> str:
        """Begin a multipart upload and return its id; raises `NotS3` if the response has none."""
        upload = self._s3.create_multipart_upload(**self._name(key)).get("UploadId")
        if not upload:
            raise NotS3
        return str(upload)

    def _is_gone(self, key: str, upload: str) -> bool:
        """Return whether a multipart upload was removed, say by an older attempt's cleanup."""
        name = {**self._name(key), "UploadId": upload, "MaxParts": 1}
        try:
            self._call("list", key, lambda: self._s3.list_parts(**name))
        except ObjectMissing:
            return True
        return False

    def _is_there(self, key: str, size: int) -> bool:
        try:
            return bool(self._s3.head_object(**self._name(key))["ContentLength"] == size)
        except boto_errors.ClientError as error:
            if status_of(error) == 404:
                return False
            raise

    def abort_uploads(self, key: str) -> int:
        # Queried by the object's full name: MinIO lists no uploads for a shorter prefix.
        name = self._name(key)
        query = {"Bucket": self.bucket, "Prefix": name["Key"]}
        left = []
        while True:
            page = self._call("list", key, lambda: self._s3.list_multipart_uploads(**query))
            left += [u["UploadId"] for u in page.get("Uploads", []) if u["Key"] == name["Key"]]
            if not page.get("IsTruncated") or page.get("NextKeyMarker", "") > name["Key"]:
                break
            query["KeyMarker"] = page["NextKeyMarker"]
            query["UploadIdMarker"] = page.get("NextUploadIdMarker", "")
        for upload in left:
            with contextlib.suppress(ObjectMissing):
                self._call(
                    "delete",
                    key,
                    functools.partial(self._s3.abort_multipart_upload, **name, UploadId=upload),
                )
        return len(left)

    def put_if_absent(
        self, key: str, data: bytes, check: Callable[[], None] = lambda: None
    ) -> bool:
        def request() -> bool:
            check()
            try:
                stored(self._s3.put_object(**self._name(key), Body=data, IfNoneMatch="*"))
            except boto_errors.ClientError as error:
                if status_of(error) == _NOT_IMPLEMENTED:
                    return self._put_unfenced(key, data)
                if status_of(error) not in LOST_RACE:
                    raise
                # The object may have been written by an earlier try whose response was lost.
                return self._holds(key, data)
            return True

        return self._call("create", key, request, len(data))

    def _put_unfenced(self, key: str, data: bytes) -> bool:
        """Check for the object, then write; another process's write in between goes unnoticed."""
        self._warn_unfenced()
        try:
            return bool(self._s3.get_object(**self._name(key))["Body"].read() == data)
        except boto_errors.ClientError as error:
            if status_of(error) != 404:
                raise
        stored(self._s3.put_object(**self._name(key), Body=data))
        return True

    def _warn_unfenced(self) -> None:
        if self.fences:
            self.fences = False
            log.warning(
                "%s: the store has no conditional PUT, so attempts are not fenced off from each "
                "other; make sure that no job runs twice at the same time",
                self.uri,
            )

    def _holds(self, key: str, data: bytes) -> bool:
        """Return whether the existing object has these bytes, as it does after a lost response.

        Raises a transient error if there is no object: the conflicting write did not succeed.
        """
        try:
            return bool(self._s3.get_object(**self._name(key))["Body"].read() == data)
        except boto_errors.ClientError as error:
            if status_of(error) == 404:
                raise ConnectionError("refused, but there is no such object") from None
            raise

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        query = {"Bucket": self.bucket, "Prefix": self.prefix + prefix}
        while True:
            page = self._call("list", prefix, lambda: listed(self._s3.list_objects_v2(**query)))
            for item in page.get("Contents", []):
                modified = item["LastModified"].timestamp()
                # Includes the time, as some stores' ETags do not depend on the contents.
                version = f"{item.get('ETag')} {modified}"
                yield ObjectInfo(
                    key=item["Key"][len(self.prefix) :],
                    size=item["Size"],
                    modified=modified,
                    version=version,
                )
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, key: str) -> None:
        self._call("delete", key, lambda: self._s3.delete_object(**self._name(key)))

    @property
    def _s3(self) -> Any:
        return s3_client()

    def _name(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    def request(self, operation: str, ask: Callable[[Any], T]) -> T:
        """Call `ask` with the S3 client, with the same deadline and retries as all requests."""
        return self._call(operation, "", lambda: ask(self._s3))

    def _call(self, operation: str, key: str, request: Callable[[], T], sent: int = 0) -> T:
        return with_retries(operation, self.uri + key, request, sent=sent)


def _range(start: int, stop: int | None) -> str:
    # HTTP ranges include their last byte (RFC 9110, section 14.1.2).
    return f"bytes={start}-{'' if stop is None else stop - 1}"
