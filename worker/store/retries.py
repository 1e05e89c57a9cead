"""The retry policy for all requests: backoff with full jitter, up to a deadline."""

import functools
import http.client
import logging
import time
from collections.abc import Callable
from typing import TypeVar

import botocore.exceptions as boto_errors
import botocore.parsers
import tenacity
import urllib3.exceptions

from worker.environment import Settings
from worker.store.client import renew_client
from worker.store.error_kinds import IdentityError, is_transient, needs_renewal
from worker.store.error_messages import translate
from worker.store.interface import ObjectMissing
from worker.store.request_deadline import TooSlow, limited
from worker.store.traffic_counts import listener, measured

T = TypeVar("T")
log = logging.getLogger(__name__)

_MIN_SECONDS = 1.0  # for the last try, which may begin just before the deadline


def with_retries(operation: str, uri: str, request: Callable[[], T], *, sent: int = 0) -> T:
    """Make a request and read its response; retry on transient errors until the deadline.

    Args:
        operation: The S3 operation, for metrics.
        uri: The object, for messages.
        request: The request.
        sent: The number of bytes that it sends, which extends its time limit.

    Returns:
        The request's result.

    Raises:
        WorkerError: If the request fails for good; states the cause in one line.
    """
    seconds = Settings.from_env().store_deadline_seconds
    ends = time.monotonic() + seconds
    failures: list[BaseException] = []

    def attempt() -> T:
        left = max(_MIN_SECONDS, ends - time.monotonic())
        try:
            with measured(operation) as moved, limited(left, sent):
                result = request()
                moved.size = sent or (len(result) if isinstance(result, bytes) else 0)
                return result
        except TooSlow as late:
            # Cut off with what earlier attempts had left of the deadline: their failure is the
            # cause.
            if failures:
                raise failures[-1] from late
            raise
        except Exception as error:
            failures.append(error)
            raise

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        # Full jitter: uniform draws from 0 to 1, 2, 4, 8, 10, 10, … s, so that thousands of ranks
        # that failed together do not retry together (Brooker, "Exponential Backoff and Jitter",
        # 2015).
        wait=tenacity.wait_random_exponential(multiplier=1, max=10),
        # Gives up at once if the next pause would outlast the deadline.
        stop=tenacity.stop_before_delay(seconds),
        before_sleep=functools.partial(_warn, operation, uri),
        reraise=True,
    )
    try:
        return retrying(attempt)
    except (
        boto_errors.BotoCoreError,
        boto_errors.ClientError,
        IdentityError,
        botocore.parsers.ResponseParserError,
        urllib3.exceptions.HTTPError,
        http.client.HTTPException,
        OSError,
    ) as error:
        translated = translate(error, uri)
        if not isinstance(translated, ObjectMissing):  # which callers ask for, and expect
            listener().failure(operation)
        raise translated from error


def _warn(operation: str, uri: str, state: tenacity.RetryCallState) -> None:
    listener().retry(operation)
    error = state.outcome.exception() if state.outcome else None
    if error and needs_renewal(error):
        renew_client()
    if isinstance(error, Exception) and state.attempt_number == 1:
        log.warning(
            "%s; trying again for up to %g s",
            translate(error, uri),
            Settings.from_env().store_deadline_seconds,
        )
