"""Buckets, which are made on request only."""

from urllib.parse import urlsplit

import botocore.exceptions as boto_errors

from worker.store.causes import translate
from worker.store.client import s3_client
from worker.store.faults import code_of

_OWN = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}
_DEFAULT_REGION = "us-east-1"


def create_bucket(uri: str) -> bool:
    """Create the bucket of an `s3://` address unless it is there; false if it was, or is no bucket.

    Raises `ConfigurationError` or `InfrastructureError` if the store does not make it.
    """
    parts = urlsplit(uri)
    if parts.scheme != "s3":
        return False
    client = s3_client()
    region = client.meta.region_name
    where = {"LocationConstraint": region} if region and region != _DEFAULT_REGION else None
    more = {"CreateBucketConfiguration": where} if where else {}
    try:
        try:
            client.head_bucket(Bucket=parts.netloc)
            return False
        except boto_errors.ClientError:
            client.create_bucket(Bucket=parts.netloc, **more)
    except (boto_errors.BotoCoreError, boto_errors.ClientError) as error:
        if code_of(error) in _OWN:
            return False
        raise translate(error, f"s3://{parts.netloc}") from error
    return True
