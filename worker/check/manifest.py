"""The first rows of a preflight, filled in before any slow import: they catch most mistakes."""

import os
from urllib.parse import urlsplit

from worker.check.storage import probe_credentials
from worker.check.table import CREDENTIALS, NO_STORAGE, Caution, Table
from worker.environment import VARIABLES, Settings
from worker.manifest import Manifest, load_manifest


def look_at_manifest(table: Table, uri: str) -> Manifest | None:
    """Add the rows for the manifest and the credentials, and return the manifest.

    Return None if the manifest is invalid or cannot be read.
    """
    found: list[Manifest] = []

    def load() -> str:
        found.append(load_manifest(uri))
        return f"job {found[0].job}"

    remote = urlsplit(uri).scheme == "s3"
    if remote:
        table.look(CREDENTIALS, probe_credentials)
    if table.storage_fails:
        table.skip("manifest", NO_STORAGE)
    else:
        table.look("manifest", load)
    if found and not remote and "s3://" in found[0].model_dump_json():
        table.look(CREDENTIALS, probe_credentials)
    return next(iter(found), None)


def probe_environment() -> str:
    """Check that the worker's own variables are well-formed and that none is misspelled."""
    Settings.from_env().require_valid()
    unknown = Settings.from_env().unknown()
    if unknown:
        raise Caution("; ".join(unknown))
    known = sorted(name for name in VARIABLES if os.environ.get(name))
    return ", ".join(known) or "no WORKER_* variable is set"
