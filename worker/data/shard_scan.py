"""A front-to-back scan of one tar shard, for its samples and its defects."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from worker.data.deep_png import highest_sample, is_deep
from worker.data.image_formats import IMAGE_SUFFIXES, OTHER_IMAGES, SIGNATURES
from worker.data.tar_members import Fetch, Malformed, Member, ShardStream, read_members
from worker.text import printable, read_name, read_text

_HEAD_BYTES = 32
_MAX_DEEP_BYTES = 1 << 28
_LABELS: tuple[str, ...] = ("cls", "json")
GROUP_SUFFIX = "group"
"""Member that names the group of a sample, such as a patient, which folds keep together."""
_MAX_LABEL_BYTES = 1 << 20
_MAX_LABEL_CHARACTERS = 500
_MAX_SAMPLE_BYTES = (1 << 32) - 1
Look = Callable[[bytes], None]

# The path up to the first dot of the file name is the key, the rest the suffix, as in webdataset.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_METADATA = re.compile(r"__[^/]*__($|/)")  # names that webdataset skips


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


@dataclass(frozen=True)
class Problem:
    """A defect in a shard."""

    offset: int
    """Byte offset of the defect in the shard."""
    text: str
    """Description of the defect."""


@dataclass(kw_only=True)
class Scan:
    """The result of a pass over a shard."""

    bytes: int = 0
    """Size of the shard, in bytes."""
    sha256: str = ""
    """SHA-256 digest of the shard, in hexadecimal."""
    rows: list[SampleRow] = field(default_factory=list)
    """A row per sound sample."""
    problems: list[Problem] = field(default_factory=list)
    """Defects; a sample with a defect has no row."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """Number of members that belong to no sample, by kind."""
    malformed: bool = False
    """Whether the archive itself is damaged; the last problem then says where."""
    highest: int = 0
    """The highest value in 16-bit images that do not declare how many bits are in use."""

    @property
    def depth(self) -> int | None:
        """The number of bits that `highest` takes up, at least 8; None if `highest` is 0."""
        return depth_for(self.highest)


def depth_for(highest: int) -> int | None:
    """Return the number of bits in use given the highest value; None for 0 (no images)."""
    return max(8, highest.bit_length()) if highest else None


def split_name(name: str) -> tuple[str, str] | None:
    """Return the key and the suffix of a member's name; None if it has no such parts."""
    match = _MEMBER.fullmatch(name)
    return (match[1], match[2]) if match else None


class Unsound(Exception):
    """A sample that cannot be used; the message says why."""


class _Sample:
    """Adjacent members that share a key, and as much of their contents as is needed.

    If `whole` is set, that includes all members in full.
    """

    def __init__(self, key: str, offset: int, *, whole: bool = False) -> None:
        self.key = key
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
        if suffix and self._whole:
            wanted = _MAX_DEEP_BYTES
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
                wanted = _MAX_DEEP_BYTES
            kept += piece[: max(0, wanted - len(kept))]
            at += len(chunk)
        if at < member.end:
            text = f"member {member.name!r} is cut short: it should end at byte {member.end}"
            raise Malformed(self.offset, text)
        if suffix:
            # `member.end` is rounded up to a full block, so the padding may have been kept, too.
            self.heads[suffix] = bytes(kept[: member.size])


def scan_shard(
    fetch: Fetch, size: int, label_field: str | None = "label", look: Look | None = None
) -> Scan:
    """Scan a shard once, in chunks; memory use does not grow with the size of its members.

    Problems are listed in the result, never raised.

    Args:
        fetch: Reads a range of bytes from the shard.
        size: Size of the shard, in bytes.
        label_field: The `.json` field that holds the label of a sample without a `.cls`; None if
            labels do not matter.
        look: Called with each image; raises `Unsound` if something is wrong with it. Images are
            held in memory for this, one at a time.
    """
    stream = ShardStream(fetch, size)
    scan = Scan(bytes=size)
    seen: set[int] = set()
    for sample in _samples(stream, scan, whole=look is not None):
        try:
            # 8 bytes per key, however long it is. Names that are not UTF-8 arrive from tarfile with
            # surrogate escapes.
            digest = hash_key(sample.key)
            if digest in seen and label_field is not None:
                raise Unsound(
                    "also occurs earlier in the shard; the members of a sample must be "
                    "adjacent (tar --sort=name)"
                )
            seen.add(digest)
            row = _row(sample, label_field)
            if look:
                look(sample.image())
            # Only now, as `_row` and `look` raise `Unsound`: a sample with a problem gets no row.
            scan.rows.append(row)
            scan.highest = max(scan.highest, sample.highest())
        except Unsound as problem:
            scan.problems.append(Problem(sample.offset, f"sample {sample.key!r} {problem}"))
    if not scan.rows and not scan.problems:
        scan.problems.append(Problem(0, "holds no samples"))
    scan.sha256 = stream.sha256()
    return scan


class TarSample:
    """A sample as `worker pack` reads it: its key, and all of its members by suffix."""

    def __init__(self, sample: _Sample) -> None:
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
        label = _row(self._sample, label_field).label
        return label, self._sample.image()


def read_samples(fetch: Fetch, size: int, scan: Scan) -> Iterator[TarSample]:
    """Yield the samples of a shard with all of their members, one at a time.

    Args:
        fetch: Reads a range of bytes from the shard.
        size: Size of the shard, in bytes.
        scan: Gets the defects of the archive, and the number of members that are passed over.
    """
    stream = ShardStream(fetch, size)
    for sample in _samples(stream, scan, whole=True):
        yield TarSample(sample)


def _samples(stream: ShardStream, scan: Scan, *, whole: bool) -> Iterator[_Sample]:
    """Yield the samples (adjacent members with one key); record where the archive is malformed."""
    sample: _Sample | None = None
    try:
        for member in read_members(stream):
            parts = split_name(member.name)
            kind = _passed_over(member, parts)
            if kind or not parts:
                # Folders are part of any archive of a tree, so they are not worth reporting.
                scan.passed_over[kind] += kind != "folder"
                if sample:
                    sample.look_at(member, stream)
                else:
                    stream.forget(member.end)
                continue
            if sample and sample.key != parts[0]:
                done, sample = sample, None
                yield done
            sample = sample or _Sample(parts[0], member.offset, whole=whole)
            sample.add(parts[1].lower(), member, stream)
    except Malformed as problem:
        # A sample that is itself cut short is not yielded.
        if sample and problem.offset != sample.offset:
            yield sample
        scan.problems.append(Problem(problem.offset, str(problem)))
        scan.malformed = True
        return
    if sample:
        yield sample


def _passed_over(member: Member, parts: tuple[str, str] | None) -> str:
    """Return why a member belongs to no sample; an empty string if it belongs to one."""
    if member.folder:
        return "folder"
    if not member.regular:
        return "link"
    if _METADATA.match(member.name):
        return "metadata file"
    if parts is None:
        hidden = member.name.rpartition("/")[2].startswith(".")
        return "hidden file" if hidden else "suffixless file"
    return ""


def hash_key(key: str) -> int:
    """Return the xxh3-64 of a sample's key."""
    return xxhash.xxh3_64_intdigest(key.encode(errors="surrogateescape"))


def _row(sample: _Sample, label_field: str | None) -> SampleRow:
    members = sample.members
    if sample.twice:
        raise Unsound(f"has two .{printable(sample.twice)} members")
    for member in members.values():
        if member.sparse:
            raise Unsound(f"has {member.name!r}, a sparse file; archive it without --sparse")
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in members), None)
    if suffix is None:
        raise Unsound(_without_image(sorted(members)))
    image, length = members[suffix], sample.end - sample.offset
    if length > _MAX_SAMPLE_BYTES:
        raise Unsound("is larger than 4 GiB")
    label = "" if label_field is None else _label(sample, label_field)
    known = sample.heads[suffix].startswith(SIGNATURES)
    if label_field is not None and not (image.size and known):
        raise Unsound(f"has {image.name!r}, which is not a JPEG, PNG or WebP image")
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


def _without_image(suffixes: list[str]) -> str:
    """Describe what a sample has instead of an image, and how to fix that."""
    found = ", ".join(f".{printable(suffix)}" for suffix in suffixes[:4])
    text = f"has no .jpg, .jpeg, .png or .webp, only {found}"
    if any(suffix.rpartition(".")[2] in IMAGE_SUFFIXES for suffix in suffixes):
        return f"{text}: the first dot of a name ends the key; rename the members"
    if any(suffix in OTHER_IMAGES for suffix in suffixes):
        return f"{text}; convert it to JPEG or PNG"
    return text


def _label(sample: _Sample, label_field: str) -> str:
    kind = next((kind for kind in _LABELS if kind in sample.members), None)
    if kind is None:
        raise Unsound(
            "has no label: no .cls or .json beside its image; if the label is elsewhere in the "
            "shard, sort the shard (tar --sort=name)"
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
