"""Checks that tell the responses of S3 from those of a proxy."""

from typing import Any

from worker.store.error_kinds import (
    NotS3,
)


def stored(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the response to a write; raises `NotS3` if it does not confirm the write."""
    if not answer.get("ETag"):
        raise NotS3
    return answer


def listed(page: dict[str, Any]) -> dict[str, Any]:
    """Return a page of a listing; raises `NotS3` if it merely looks like an empty page."""
    if "IsTruncated" not in page or (page["IsTruncated"] and "NextContinuationToken" not in page):
        raise NotS3
    return page
