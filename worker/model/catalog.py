"""The table that `worker models` prints."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from worker.charts import table
from worker.model.backbone import layout_of, preprocessing_of
from worker.model.skeleton import find_heads, skeleton

_NUMBERED = re.compile(r"^(.*?)(\d+)$")


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """A backbone with its ImageNet head."""

    name: str
    """The name in torchvision."""
    parameters: int
    """The number of its parameters."""
    image_size: int
    """Side of the images that its weights expect, in pixels."""
    heads: tuple[str, ...]
    """Dotted names of its heads."""
    blocks: tuple[str, ...]
    """Names of its blocks, from input to head, for patterns to match."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as JSON data."""
        return asdict(self)


def catalog(names: list[str]) -> list[CatalogEntry]:
    """Return one entry per backbone."""
    entries = []
    for name in names:
        size = preprocessing_of(name).crop_size
        layout = layout_of(name, size)
        heads = find_heads(skeleton(name, size))
        blocks = tuple(block.name for block in layout.blocks[:-1])
        entries.append(
            CatalogEntry(
                name=name,
                parameters=sum(layout.sizes.values()),
                image_size=size,
                heads=heads,
                blocks=blocks,
            )
        )
    return entries


def describe_catalog(entries: list[CatalogEntry]) -> str:
    """Format a table in which series of numbered blocks are abbreviated."""
    rows = [("backbone", "parameters", "pixels", "head", "blocks to match, from input to head")]
    for entry in entries:
        rows.append(
            (
                f"{entry.name:<20}",
                f"{entry.parameters / 1e6:6.1f} M",
                f"{entry.image_size:>6}",
                " ".join(reversed(entry.heads)),
                " ".join(_shortened(entry.blocks)),
            )
        )
    return "\n".join(table(rows, left=5))


def _shortened(blocks: tuple[str, ...]) -> list[str]:
    """Abbreviate `a.1 a.2 a.3` to `a.1..3`; leave names joined by `+` as they are."""
    runs: list[tuple[str, int, int] | str] = []
    for block in blocks:
        match = _NUMBERED.match(block)
        last = runs[-1] if runs else ""
        if match is None or "+" in block:
            runs.append(block)
        elif isinstance(last, tuple) and last[0] == match[1] and last[2] + 1 == int(match[2]):
            runs[-1] = (last[0], last[1], last[2] + 1)
        else:
            runs.append((match[1], int(match[2]), int(match[2])))
    return [run if isinstance(run, str) else _series(*run) for run in runs]


def _series(prefix: str, first: int, last: int) -> str:
    return f"{prefix}{first}..{last}" if last > first else f"{prefix}{first}"
