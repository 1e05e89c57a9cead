"""A front-to-back scan of one tar shard, for its samples and its defects."""

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from worker.data.tar_members import Fetch, Malformed, Member, ShardStream, read_members
from worker.data.tar_sample import (
    DEREFERENCE,
    Links,
    SampleRow,
    ScannedSample,
    TarSample,
    Unsound,
    hash_key,
    row_of,
)
from worker.logs import count

_KEPT_LINKS = 8  # those of a sample are beside it
Look = Callable[[bytes], None]

# The path up to the first dot of the file name is the key, the rest the suffix, as in webdataset.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_METADATA = re.compile(r"__[^/]*__($|/)")  # names that webdataset skips


@dataclass(frozen=True)
class Problem:
    """A defect in a shard."""

    offset: int
    """Byte offset of the defect in the shard."""
    text: str
    """Description of the defect."""
    reason: str = ""
    """What is wrong with a sample, without its key; samples may have it in common."""


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
    links: Links = field(default_factory=lambda: deque(maxlen=_KEPT_LINKS))
    """The last links that were passed over: keys and names."""
    highest: int = 0
    """The highest value in 16-bit images that do not declare how many bits are in use."""

    @property
    def depth(self) -> int | None:
        """The number of bits that `highest` takes up, at least 8; None if `highest` is 0."""
        return depth_for(self.highest)

    def pass_over(self, kind: str, member: Member, parts: tuple[str, str] | None) -> None:
        """Count a member that belongs to no sample."""
        # Folders are part of any archive of a tree, so they are not worth reporting.
        self.passed_over[kind] += kind != "folder"
        if kind == "link" and parts:
            self.links.append((parts[0], member.name))


def depth_for(highest: int) -> int | None:
    """Return the number of bits in use given the highest value; None for 0 (no images)."""
    return max(8, highest.bit_length()) if highest else None


def split_name(name: str) -> tuple[str, str] | None:
    """Return the key and the suffix of a member's name; None if it has no such parts."""
    match = _MEMBER.fullmatch(name)
    return (match[1], match[2]) if match else None


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
            row = row_of(sample, label_field)
            if look:
                look(sample.image())
            # Only now, as `_row` and `look` raise `Unsound`: a sample with a problem gets no row.
            scan.rows.append(row)
            scan.highest = max(scan.highest, sample.highest())
        except Unsound as problem:
            text = f"sample {sample.key!r} {problem}"
            scan.problems.append(Problem(sample.offset, text, str(problem)))
    if not scan.rows and not scan.problems:
        links = scan.passed_over["link"]
        only = f", only {count(links, 'link')}; {DEREFERENCE}" if links else ""
        scan.problems.append(Problem(0, f"holds no samples{only}"))
    scan.sha256 = stream.sha256()
    return scan


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


def _samples(stream: ShardStream, scan: Scan, *, whole: bool) -> Iterator[ScannedSample]:
    """Yield the samples (adjacent members with one key); record where the archive is malformed."""
    sample: ScannedSample | None = None
    try:
        for member in read_members(stream):
            parts = split_name(member.name)
            kind = _passed_over(member, parts)
            if kind or not parts:
                scan.pass_over(kind, member, parts)
                if sample:
                    sample.look_at(member, stream)
                else:
                    stream.forget(member.end)
                continue
            if sample and sample.key != parts[0]:
                done, sample = sample, None
                yield done
            sample = sample or ScannedSample(parts[0], member.offset, scan.links, whole=whole)
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
