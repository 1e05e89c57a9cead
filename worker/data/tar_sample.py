"""A sample of a tar: the members that share a key, and what of them is indexed."""

import json
from collections import deque
from typing import NamedTuple

import xxhash

from worker.data.deep_png import highest_sample, is_deep
from worker.data.image_formats import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    OTHER_IMAGES,
    SIGNATURES,
    not_an_image,
)
from worker.data.tar_members import Malformed, Member, ShardStream
from worker.text import printable, read_name, read_text

_HEAD_BYTES = 32
_LABELS: tuple[str, ...] = ("cls", "json")
GROUP_SUFFIX = "group"
"""Member that names the group of a sample, such as a patient, which folds keep together."""
_MAX_LABEL_BYTES = 1 << 20
_MAX_LABEL_CHARACTERS = 500
_MAX_SAMPLE_BYTES = (1 << 32) - 1
DEREFERENCE = "archive the files themselves (tar --dereference --hard-dereference)"
Links = deque[tuple[str, str]]
"""Keys and names of links."""


class SampleRow(NamedTuple):
    """A sample: the byte ranges of its tar members and its image, and its label's text.

    `digest` is the xxh3-64 of bytes [offset, offset + length); `image_offset` counts from `offset`.
    `key` and `group` are hashes of its key and of its `.group` member; a sample without such a
    member is a group of its own, with the hash of its key.
    """

    offset: int
    length: int
    digest: int
    image_offset: int
    image_length: int
    key: int
    group: int
    label: str


class Unsound(Exception):
    """A sample that cannot be used; the message says why."""


class ScannedSample:
    """Adjacent members that share a key, and as much of their contents as is needed.

    If `whole` is set, that includes all members in full.
    """

    def __init__(self, key: str, offset: int, links: Links, *, whole: bool = False) -> None:
        self.key = key
        self._links = links
        self._whole = whole
        self.offset = self.end = offset
        self.members: dict[str, Member] = {}
        self.twice: str | None = None
        self.heads: dict[str, bytes] = {}
        # `_ahead` covers all bytes read so far, `digest` those up to the end of the last member of
        # the sample. They differ while members that belong to no sample follow, which count only
        # if another member of the sample comes after them.
        self.digest = xxhash.xxh3_64()
        self._ahead = xxhash.xxh3_64()

    def add(self, suffix: str, member: Member, stream: ShardStream) -> None:
        """Add a member, and everything between it and the previous one."""
        self.twice = suffix if suffix in self.members else self.twice
        self.members[suffix] = member
        self._read(member, stream, suffix)
        self.digest, self.end = self._ahead.copy(), member.end

    @property
    def link(self) -> str | None:
        """The name of a link with the key of this sample, if there is one beside it."""
        return next((name for key, name in self._links if key == self.key), None)

    def highest(self) -> int:
        """Return the image's value for `Scan.highest`.

        It is 0 if the image cannot be decoded, a defect that training will report.
        """
        try:
            return highest_sample(self.image())
        except Exception:  # on hostile bytes, the decoder may raise anything
            return 0

    def image(self) -> bytes:
        """Return the bytes of the image, or only its first bytes if the rest was not kept."""
        return self.heads[next(suffix for suffix in IMAGE_SUFFIXES if suffix in self.members)]

    def look_at(self, member: Member, stream: ShardStream) -> None:
        """Read past a member that belongs to no sample.

        Its bytes count toward this sample if more members of the sample follow.
        """
        self._read(member, stream, None)

    def _read(self, member: Member, stream: ShardStream, suffix: str | None) -> None:
        kept, wanted = bytearray(), _HEAD_BYTES if suffix in IMAGE_SUFFIXES else 0
        if suffix and self._whole and member.size <= MAX_IMAGE_BYTES:
            wanted = MAX_IMAGE_BYTES
        if suffix in (*_LABELS, GROUP_SUFFIX) and not self._whole:
            wanted = _MAX_LABEL_BYTES
        at = member.offset
        for chunk in stream.passed(member.offset, member.end):
            self._ahead.update(chunk)
            # Headers precede the data, possibly for more than one chunk; `at` is the offset of the
            # chunk.
            piece = chunk[max(0, member.data_offset - at) :]
            # The first bytes show whether a PNG has 16 bits; finding its highest value takes all
            # pixels.
            if wanted == _HEAD_BYTES and is_deep(kept + piece[:_HEAD_BYTES]):
                wanted = MAX_IMAGE_BYTES
            kept += piece[: max(0, wanted - len(kept))]
            at += len(chunk)
        if at < member.end:
            text = f"member {member.name!r} is cut short: it should end at byte {member.end}"
            raise Malformed(self.offset, text)
        if suffix:
            # `member.end` is rounded up to a full block, so the padding may have been kept, too.
            del kept[member.size :]
            self.heads[suffix] = bytes(kept)


class TarSample:
    """A sample as `worker pack` reads it: its key, and all of its members by suffix."""

    def __init__(self, sample: ScannedSample) -> None:
        self._sample = sample
        self.key = sample.key
        self.offset = sample.offset
        self.members: dict[str, bytes] = sample.heads

    def require_whole(self) -> None:
        """Raise `Unsound` for a member that is repeated, sparse, or too large to be kept."""
        if self._sample.twice:
            raise Unsound(f"has two .{printable(self._sample.twice)} members")
        for suffix, member in self._sample.members.items():
            if member.sparse or member.size > len(self.members[suffix]):
                raise Unsound(f"has {member.name!r}, which is sparse or larger than 256 MiB")

    def labeled_image(self, label_field: str) -> tuple[str, bytes]:
        """Return the label and the image; raises `Unsound` if the sample cannot be used."""
        label = row_of(self._sample, label_field).label
        return label, self._sample.image()


def hash_key(key: str) -> int:
    """Return the xxh3-64 of a sample's key."""
    return xxhash.xxh3_64_intdigest(key.encode(errors="surrogateescape"))


def row_of(sample: ScannedSample, label_field: str | None) -> SampleRow:
    """Return a sample's row; raises `Unsound` if it cannot be used.

    Without a `label_field`, neither the label nor the kind of image matters.
    """
    members = sample.members
    if sample.twice:
        raise Unsound(f"has two .{printable(sample.twice)} members")
    for member in members.values():
        if member.sparse:
            raise Unsound(f"has {member.name!r}, a sparse file; archive it without --sparse")
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in members), None)
    if suffix is None:
        raise Unsound(_without_image(sorted(members), sample.link))
    image, length = members[suffix], sample.end - sample.offset
    if length > _MAX_SAMPLE_BYTES:
        raise Unsound("is larger than 4 GiB")
    label = "" if label_field is None else _label(sample, label_field)
    known = sample.heads[suffix].startswith(SIGNATURES)
    if label_field is not None and not (image.size and known):
        raise Unsound(f"has {image.name!r}, which is {not_an_image(sample.heads[suffix])}")
    first = image.data_offset - sample.offset
    key = hash_key(sample.key)
    group = sample.heads.get(GROUP_SUFFIX)
    return SampleRow(
        sample.offset,
        length,
        sample.digest.intdigest(),
        first,
        image.size,
        key,
        key if group is None else xxhash.xxh3_64_intdigest(group),
        label,
    )


def _without_image(suffixes: list[str], link: str | None) -> str:
    """Describe what a sample has instead of an image, and how to fix that."""
    found = ", ".join(f".{printable(suffix)}" for suffix in suffixes[:4])
    *most, last = (f".{suffix}" for suffix in IMAGE_SUFFIXES)
    text = f"has no {', '.join(most)} or {last}, only {found}"
    if link:
        return f"{text}, and the link {printable(link)!r}; {DEREFERENCE}"
    if any(suffix.rpartition(".")[2] in IMAGE_SUFFIXES for suffix in suffixes):
        return f"{text}: the first dot of a name ends the key; rename the members"
    if any(suffix in OTHER_IMAGES for suffix in suffixes):
        return f"{text}; convert it to JPEG or PNG"
    return text


def _label(sample: ScannedSample, label_field: str) -> str:
    kind = next((kind for kind in _LABELS if kind in sample.members), None)
    if kind is None:
        raise Unsound(
            "has no label: no .cls or .json beside its image; "
            + (
                "if folders are the classes, unpack the tar and pack the result with `worker pack`"
                if "/" in sample.key
                else "if the label is elsewhere in the shard, sort the shard (tar --sort=name)"
            )
        )
    if sample.members[kind].size > _MAX_LABEL_BYTES:
        raise Unsound(f"has a .{kind} of {sample.members[kind].size} bytes")
    try:
        text = read_text(sample.heads[kind])
    except ValueError as error:
        raise Unsound(f"has a .{kind} that {error}") from None
    text = text if kind == "cls" else _field(text, label_field)
    try:
        label = read_name(text)
    except ValueError as error:
        raise Unsound(f"has a label that {error}") from None
    if not label:
        raise Unsound(f"has an empty {'.cls' if kind == 'cls' else label_field}")
    if len(label) > _MAX_LABEL_CHARACTERS:
        raise Unsound(f"has a label of {len(label)} characters")
    return label


def _field(text: str, label_field: str) -> str:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise Unsound("has a .json that is not JSON") from None
    value = fields.get(label_field) if isinstance(fields, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Unsound(f"has a .json without a string or integer {label_field!r}")
    return str(value)
