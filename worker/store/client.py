"""The S3 client of a process, configured by the AWS variables and the worker's own."""

import functools
import os
import threading
from typing import Any

import boto3
import botocore.exceptions as boto_errors
from botocore.awsrequest import AWSHTTPConnectionPool, AWSHTTPSConnectionPool
from botocore.config import Config

from worker.environment import Settings
from worker.store.aws_settings import check_settings, refused_setting
from worker.store.error_kinds import refuse_page, refuse_redirect
from worker.store.identity import find_credentials
from worker.store.request_deadline import WatchedHTTPConnection, WatchedHTTPSConnection

_lock = threading.Lock()
# botocore has no setting for the connection class, so it is replaced for the whole process.
AWSHTTPConnectionPool.ConnectionCls = WatchedHTTPConnection
AWSHTTPSConnectionPool.ConnectionCls = WatchedHTTPSConnection


def s3_client() -> Any:
    """Return this process's client; one inherited across a fork would share sockets and break.

    Endpoint, region, credentials, addressing style and CA come from the usual AWS variables.
    Raises `ConfigurationError` for settings that boto3 refuses.
    """
    with _lock:  # clients are thread-safe, but creating them is not
        return _client(os.getpid())


def renew_client() -> None:
    """Make the next request read the credentials again, wherever they come from."""
    with _lock:
        _client.cache_clear()


@functools.lru_cache
def _client(pid: int) -> Any:
    check_settings(os.environ)
    try:
        # boto3's default session would keep the credentials that it has already read.
        # boto3 ignores AWS_REGION, but other SDKs read it, so users expect it to work.
        session = boto3.session.Session(region_name=os.environ.get("AWS_REGION"))
        find_credentials(session)
        client = session.client(
            "s3",
            config=Config(
                # The defaults send aws-chunked trailers, which Ceph RGW refuses over https (411).
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                # `worker.store.retries` has its own policy, with a deadline.
                retries={"total_max_attempts": 1},
                max_pool_connections=64,
                connect_timeout=10,
                # Short enough to leave time for a retry if a server stops responding.
                read_timeout=max(1.0, min(30.0, Settings.from_env().store_deadline_seconds / 3)),
            ),
        )
    except (ValueError, boto_errors.BotoCoreError) as error:
        raise refused_setting(error, os.environ) from None
    client.meta.events.register_first("needs-retry.s3", refuse_redirect)
    client.meta.events.register_first("response-received.s3", refuse_page)
    return client
