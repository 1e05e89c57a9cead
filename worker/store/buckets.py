"""Creation of buckets, which happens only on request."""

from typing import Any
from urllib.parse import urlsplit

import botocore.exceptions as boto_errors

from worker.errors import ConfigurationError
from worker.store.error_kinds import code_of, status_of
from worker.store.error_messages import bucket_name_fault
from worker.store.s3 import S3Store

_OWN = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}
_DEFAULT_REGION = "us-east-1"


def create_bucket(uri: str) -> bool:
    """Create the bucket of an `s3://` address if it is missing; returns whether it was missing.

    Raises `ConfigurationError` or `InfrastructureError` if the store refuses to create it.
    """
    parts = urlsplit(uri)
    if parts.scheme != "s3":
        return False
    return S3Store(parts.netloc, "").request("create", lambda s3: _create(s3, parts.netloc))


def _create(s3: Any, name: str) -> bool:
    try:
        s3.head_bucket(Bucket=name)
        return False
    except boto_errors.ClientError as error:
        if status_of(error) != 404:
            if status_of(error) == 403:  # without permission to look, assume that it exists
                return False
            raise
    if bucket_name_fault(name):
        raise ConfigurationError(f"s3://{name}/: {bucket_name_fault(name)}")
    # S3 refuses us-east-1 as a location constraint: it is the default, and must be left out.
    region = s3.meta.region_name
    where = {"LocationConstraint": region} if region and region != _DEFAULT_REGION else None
    try:
        s3.create_bucket(Bucket=name, **({"CreateBucketConfiguration": where} if where else {}))
    except boto_errors.ClientError as error:
        # Another process may have created it since the check.
        if code_of(error) not in _OWN:
            raise
    return True
