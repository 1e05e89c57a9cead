"""Checks of the answers of S3, which tell them from those of a proxy."""

from typing import Any

from worker.store.error_kinds import (
    NotS3,
)


def stored(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer to a write; raises `NotS3` for one that whoever gave it has not stored."""
    if not answer.get("ETag"):
        raise NotS3
    return answer


def listed(page: dict[str, Any]) -> dict[str, Any]:
    """A page of a listing; raises `NotS3` for an answer that only looks like an empty one."""
    if "IsTruncated" not in page or (page["IsTruncated"] and "NextContinuationToken" not in page):
        raise NotS3
    return page
