"""Probes of storage: the credentials, and every permission that a job needs on its output."""

import contextlib
import functools
import os
import uuid
from collections.abc import Callable, Iterator

import boto3
import botocore.exceptions as boto_errors

from worker.check.table import NO_STORAGE, Caution, Table
from worker.errors import ConfigurationError
from worker.layout import ATTEMPTS, CHECK
from worker.logs import count
from worker.store import ObjectMissing, Store
from worker.store.aws_settings import check_settings
from worker.store.error_kinds import IdentityError
from worker.store.error_messages import NO_BUCKET, translate
from worker.store.identity import find_credentials

_MULTIPART = 32 << 20  # more than the store sends in a single PUT


def probe_credentials() -> str:
    """Return the source of the credentials that boto3 found, never the credentials themselves."""
    check_settings(os.environ)
    try:
        found = find_credentials(boto3.session.Session())
        if found:
            found.get_frozen_credentials()  # exchanges a token, if there is one, for keys
    except (IdentityError, boto_errors.BotoCoreError) as error:
        raise translate(error, "AWS") from None
    if found is None:
        raise translate(boto_errors.NoCredentialsError(), "AWS")
    return f"from {found.method}"


def look_at_output(table: Table, store: Store) -> None:
    """Probe each permission on an object with a fresh name, and remove it afterwards."""
    key = f"{CHECK}{uuid.uuid4().hex}"
    probes: list[tuple[str, Callable[[Store, str], str]]] = [
        ("output: list", _list),
        ("output: put, get", _put_and_get),
        ("output: put if absent", _put_if_absent),
        ("output: uploads, abort", _abort),
        ("output: delete", _delete),
    ]
    try:
        for name, probe in probes:
            if table.storage_fails:
                table.skip(name, NO_STORAGE)
            elif any(NO_BUCKET in row.text for row in table.rows if row.name.startswith("output")):
                table.skip(name, NO_BUCKET)
            else:
                table.look(name, functools.partial(probe, store, key))
    finally:
        if not table.storage_fails:
            _remove(store, key)


def _list(store: Store, _key: str) -> str:
    attempts = sum(1 for _ in store.list(ATTEMPTS))
    return f"{store.uri} holds {count(attempts, 'attempt')}" if attempts else f"{store.uri} is new"


def _put_and_get(store: Store, key: str) -> str:
    data = uuid.uuid4().bytes
    store.put(key, data)
    if store.get(key) != data:
        raise ConfigurationError(
            f"{store.uri}{key}: the bytes read back are not those that were written; "
            f"no checkpoint would be safe there"
        )
    return "written and read back"


def _put_if_absent(store: Store, key: str) -> str:
    """Check that the second of two writers is refused, which fencing relies on."""
    first = f"{key}-1"
    try:
        store.put_if_absent(first, uuid.uuid4().bytes)
        taken = store.put_if_absent(first, uuid.uuid4().bytes)
        replaced = store.replace(first, 1, [b"x"], "another version")
    finally:
        _remove(store, first)
    # `fences` turns false once the store has answered a conditional PUT with 501 and fallen back to
    # a plain one.
    if not taken and not replaced and store.fences:
        return "the second of two writers is refused"
    how = f"ignores {'If-None-Match' if taken else 'If-Match'}"
    how = how if store.fences else "has no conditional PUT (501)"
    raise Caution(f"the store {how}: fencing is off; never start a job that is already running")


def _abort(store: Store, key: str) -> str:
    class Broken(Exception):
        pass

    def pieces() -> Iterator[bytes]:
        yield b""
        raise Broken

    # The declared size makes the store begin a multipart upload, which the exception interrupts.
    with contextlib.suppress(Broken):
        store.put_stream(f"{key}-2", _MULTIPART, pieces())
    try:
        store.abort_uploads(f"{key}-2")  # the store's own cleanup may have left an upload
    except ConfigurationError:
        raise Caution(
            "uploads cannot be listed here: leftovers of interrupted ones take up space "
            "until a lifecycle rule removes them"
        ) from None
    return "an interrupted upload leaves nothing behind"


def _delete(store: Store, key: str) -> str:
    store.delete(key)
    try:
        store.get(key)
    except ObjectMissing:
        return "gone once deleted"
    raise ConfigurationError(f"{store.uri}{key}: still there after it was deleted")


def _remove(store: Store, key: str) -> None:
    with contextlib.suppress(Exception):  # a row has already reported any failure
        store.delete(key)
