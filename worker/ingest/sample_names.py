"""Names of samples in tars, which any reader takes for the same."""

import re
from collections.abc import Sequence

from worker.ingest.planned import PlannedSplit
from worker.ingest.rows import Row
from worker.ingest.splits import hash_text

_UNSAFE = re.compile(r"[.\x00-\x1f\x7f\ud800-\udfff]")
_METADATA = re.compile(r"__[^/]*__(/|$)")
_MAX_KEY_BYTES, _MAX_KEY_CHARACTERS = 200, 40


def unique_keys(rows: Sequence[Row], planned: Sequence[PlannedSplit]) -> dict[int, str]:
    """Return new keys for rows whose key contains a dot or occurs earlier in their split.

    Tar readers would split a member's name at the first dot.
    """
    renamed: dict[int, str] = {}
    for split in planned:
        members = sorted(i for shard in split.shards for i in shard)
        taken = {rows[i].key for i in members}
        seen: set[str] = set()
        for i in members:
            key = new = safe_key(rows[i].key)
            number = 1
            while new in seen or (new != rows[i].key and new in taken):
                number += 1
                new = f"{key}-{number}"
            seen.add(new)
            if new != rows[i].key:
                renamed[i] = new
    return renamed


def safe_key(key: str) -> str:
    """Return a key that no tar reader splits or skips: without dots, empty parts and the like."""
    parts = [part for part in _UNSAFE.sub("_", key).split("/") if part]
    text = "/".join(parts) or "image"
    if _METADATA.match(text):  # webdataset skips such names
        text = f"key{text}"
    if len(text.encode(errors="surrogatepass")) > _MAX_KEY_BYTES:
        text = f"{text[:_MAX_KEY_CHARACTERS]}-{hash_text(key):016x}"
    return text
