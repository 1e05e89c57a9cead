"""The S3 client of a process, as the AWS variables and the worker's own wish it."""

import functools
import os
import threading
from typing import Any

import boto3
import botocore.exceptions as boto_errors
from botocore.awsrequest import AWSHTTPConnectionPool, AWSHTTPSConnectionPool
from botocore.config import Config

from worker.environment import Settings
from worker.errors import ConfigurationError
from worker.store.aws_settings import ENDPOINTS, check_settings
from worker.store.error_kinds import refuse_redirect
from worker.store.request_deadline import WatchedHTTPConnection, WatchedHTTPSConnection

_lock = threading.Lock()
AWSHTTPConnectionPool.ConnectionCls = WatchedHTTPConnection
AWSHTTPSConnectionPool.ConnectionCls = WatchedHTTPSConnection


def s3_client() -> Any:
    """This process's client; a client that crosses a fork shares sockets and breaks.

    Endpoint, region, credentials, addressing style and CA come from the usual AWS variables.
    Raises `ConfigurationError` for settings that boto3 refuses.
    """
    with _lock:  # making a client is the one thing about it that threads may not share
        return _client(os.getpid())


def renew_client() -> None:
    """Have the next request read the credentials anew, wherever they come from."""
    with _lock:
        _client.cache_clear()


@functools.lru_cache
def _client(pid: int) -> Any:
    check_settings(os.environ)
    try:
        # boto3's default session would keep the credentials that it has read once.
        # Other SDKs read AWS_REGION, and so do those who set it.
        client = boto3.session.Session(region_name=os.environ.get("AWS_REGION")).client(
            "s3",
            config=Config(
                # The defaults send aws-chunked trailers, which Ceph RGW refuses over https (411).
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"total_max_attempts": 1},
                max_pool_connections=64,
                connect_timeout=10,
                # Short enough that a server that has gone quiet is asked a second time.
                read_timeout=max(1.0, min(30.0, Settings.from_env().store_deadline_seconds / 3)),
            ),
        )
    except (ValueError, boto_errors.BotoCoreError) as error:
        text = str(error)
        for name in ENDPOINTS:  # it may hold a password in any form
            text = text.replace(os.environ.get(name) or name, name)
        raise ConfigurationError(f"the S3 client refuses the AWS_* settings: {text}") from None
    client.meta.events.register_first("needs-retry.s3", refuse_redirect)
    return client
