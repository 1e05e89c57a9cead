"""Images and tars from web servers, read whole, with a deadline and the true cause of a failure."""

import base64
import http.client
import itertools
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from worker.environment import Settings
from worker.errors import ConfigurationError, InfrastructureError
from worker.redaction import redacted

_CHUNK = 1 << 20
_MIN_BYTES_PER_SECOND = 100_000
_PASSING = (408, 425, 429)
_URL_CHARACTERS = "%/:?#[]@!$&'()*+,;=~"


def read_web(uri: str) -> bytes:
    """Return the body of an address, read to its end.

    Raises:
        ConfigurationError: If the server refuses, for example with 404 or 403.
        InfrastructureError: If it repeatedly fails, is too slow, or cuts the body short.
    """
    return b"".join(stream_web(uri))


def stream_web(uri: str, authorization: str | None = None) -> Iterator[bytes]:
    """Yield the body of an address in chunks; raises the errors of `read_web`.

    A body that breaks off is read again from its beginning, and what was yielded is skipped.
    """
    yielded = 0
    told: InfrastructureError | None = None
    deadline = _Deadline(Settings.from_env().store_deadline_seconds)
    for number in itertools.count(1):
        try:
            at = 0
            for chunk in _read_once(uri, authorization, deadline):
                fresh = chunk[max(0, yielded - at) :]
                at += len(chunk)
                yielded += len(fresh)
                # Only for what is new: a body that always breaks off would be read forever.
                deadline.allow(len(fresh))
                if fresh:
                    yield fresh
            return
        except (InfrastructureError, OSError, http.client.HTTPException) as error:
            failure = _failure(redacted(uri), error)
            # A try that is cut off by what earlier ones left of the deadline says nothing: what
            # they were told is the cause.
            if told is None or not isinstance(failure, _TooSlow):
                told = failure
            pause = min(8.0, 0.25 * 2**number)
            if deadline.left() < pause:
                raise told from None
            time.sleep(pause)


class _TooSlow(InfrastructureError):
    """A response that did not come in time."""


class _Deadline:
    """The deadline of a whole operation, extended by the time that its bytes may take."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends = time.monotonic() + seconds

    def left(self) -> float:
        return self._ends - time.monotonic()

    def allow(self, received: int) -> None:
        self._ends += received / _MIN_BYTES_PER_SECOND


def _read_once(uri: str, authorization: str | None, deadline: _Deadline) -> Iterator[bytes]:
    shown = redacted(uri)
    timeout = max(1.0, min(30.0, deadline.left()))
    with _open(uri, shown, authorization, timeout) as response:
        expected = response.headers.get("Content-Length")
        size = 0
        # Takes what has arrived: waiting for a full chunk could outlast the deadline.
        while chunk := response.read1(_CHUNK):
            size += len(chunk)
            if deadline.left() + size / _MIN_BYTES_PER_SECOND < 0:
                raise _TooSlow(f"{shown}: sent no complete response within {deadline.seconds:g} s")
            yield chunk
    if expected is not None and size < int(expected):
        raise InfrastructureError(f"{shown}: ended after {size} of {expected} bytes")


def _open(uri: str, shown: str, authorization: str | None, timeout: float) -> Any:
    try:
        parts = urlsplit(uri)
    except ValueError:  # from a malformed IPv6 address
        raise ConfigurationError(f"{shown}: is not a valid address") from None
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        host = parts.netloc.rpartition("@")[2]
        uri = urlunsplit(parts._replace(netloc=host))
        authorization = f"Basic {base64.b64encode(login.encode()).decode()}"
    # Escapes the spaces and non-ASCII letters that people write into tables.
    request = urllib.request.Request(quote(uri, safe=_URL_CHARACTERS))  # noqa: S310 -- http or https
    if authorization:
        # Not sent on to another host that a redirect leads to.
        request.add_unredirected_header("Authorization", authorization)
    try:
        return urllib.request.urlopen(request, timeout=timeout)  # noqa: S310
    except urllib.error.HTTPError as error:
        text = f"{shown}: the server answers {error.code} {error.reason}"
        if error.code >= 500 or error.code in _PASSING:
            raise InfrastructureError(text) from None
        raise ConfigurationError(f"{text}; check the address and the permissions") from None
    except urllib.error.URLError as error:
        raise _failure(shown, error) from None


def _failure(shown: str, error: Exception) -> InfrastructureError:
    """Return what to report for an error of a try."""
    if isinstance(error, InfrastructureError):
        return error
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return _TooSlow(f"{shown}: the server is too slow")
    if isinstance(reason, http.client.IncompleteRead):
        return InfrastructureError(f"{shown}: ended after {len(reason.partial)} bytes")
    return InfrastructureError(f"{shown}: cannot be read ({str(reason) or type(reason).__name__})")


def open_web(uri: str, mode: str = "rb", bufsize: int = 8192, **more: Any) -> IO[bytes]:
    """Open an address for `webdataset.gopen`, which reads it to its end."""
    return _Stream(stream_web(uri))  # type: ignore[return-value]


class _Stream:
    """A readable file object over chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, or the whole rest if it is negative; nothing at the end."""
        if size < 0:
            data, self._rest = self._rest + b"".join(self._chunks), b""
            return data
        while len(self._rest) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def close(self) -> None:
        """Do nothing: a body that breaks off has raised an error."""


def open_hub(url: str, mode: str = "rb", bufsize: int = 8192, **more: Any) -> IO[bytes]:
    """Open an `hf://` address for `webdataset.gopen`, with the user's token if there is one.

    The library's own opener sends `Bearer None` without one.
    """
    from huggingface_hub import HfFileSystem, get_token, hf_hub_url

    place = HfFileSystem().resolve_path(url)
    address = hf_hub_url(
        repo_id=place.repo_id,
        filename=place.path_in_repo,
        repo_type=place.repo_type,
        revision=place.revision,
    )
    token = get_token()
    return _Stream(stream_web(address, f"Bearer {token}" if token else None))  # type: ignore[return-value]
