"""Graded learning-rate groups: the rate and release step of each parameter. Pure functions.

A pattern matches the leading components of a parameter's dotted name, each literally or as a glob,
so `features.1` never matches `features.10` and `fc` never matches a squeeze-and-excitation
`fc1`.
"""

import dataclasses
import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from worker.errors import ConfigurationError
from worker.manifest import Freeze, Group, Optimizer

_EVERYTHING = "*"
_SHOWN = 12


@dataclass(frozen=True)
class Block:
    """A stage of a model."""

    name: str
    """Its name, for patterns to match."""
    parameters: frozenset[str]
    """Names of its parameters."""


@dataclass(frozen=True)
class Layout:
    """The structure of a model."""

    sizes: Mapping[str, int]
    """The number of elements of each parameter."""
    blocks: tuple[Block, ...]
    """Its blocks from input to head. The last one is the head: the layers that were replaced.
    """
    undecayed: frozenset[str] = frozenset()
    """Parameters that rarely benefit from weight decay, such as norms and biases."""

    @property
    def head(self) -> frozenset[str]:
        """Names of the head's parameters."""
        return self.blocks[-1].parameters


@dataclass(frozen=True, kw_only=True)
class RateGroup:
    """Parameters with the same settings."""

    name: str
    """Its name."""
    match: tuple[str, ...]
    """Patterns from the manifest that selected its parameters."""
    lr: float
    """The full learning rate; 0 if the group is always frozen."""
    weight_decay: float
    """Its weight decay."""
    release: int | None
    """The step from which its parameters are trained; None for never."""
    batch_norm: bool
    """Whether BatchNorm computes statistics from the batches once the group is released."""
    parameters: tuple[str, ...]
    """Names of the parameters."""
    towards_start: bool = False
    """Whether weight decay pulls towards the pretrained weights instead of zero."""

    def trains_at(self, step: int) -> bool:
        """Return whether optimizer step `step`, counted from 0, changes these parameters."""
        return self.release is not None and self.release <= step


def assign(layout: Layout, optimizer: Optimizer, steps_per_epoch: int) -> tuple[RateGroup, ...]:
    """Put every parameter into exactly one group; the first group that matches takes it.

    Groups with equal settings are merged.

    Args:
        layout: The parameters and blocks of the model.
        optimizer: The optimizer of the manifest.
        steps_per_epoch: Steps per epoch, to convert releases given in epochs to steps.

    Returns:
        The groups.

    Raises:
        ConfigurationError: If a pattern matches nothing, or only parameters that earlier groups
            have taken; if some parameters match no pattern; or if nothing is trained at the first
            step.
    """
    # 1. Each group of the manifest takes the parameters that it matches from those that are left.
    # 2. Its parameters are split into pieces with equal settings, by block and by weight decay.
    # 3. Pieces with equal settings are merged, whichever group they are from.
    left = list(layout.sizes)
    pieces: list[RateGroup] = []
    for number, group in enumerate(optimizer.groups):
        where = f"optimizer.groups[{number}].match"
        taken: set[str] = set()
        for pattern in group.match:
            found = {name for name in left if matches(pattern, name, layout.head)}
            if not found and pattern != _EVERYTHING:
                raise ConfigurationError(f"{where}: {_dead(pattern, layout)}")
            taken |= found
        if group.towards and taken & layout.head:
            raise ConfigurationError(
                f"optimizer.groups[{number}].towards: the group has the head, which is new and has "
                "no start worth keeping; put the head in a group of its own"
            )
        for piece in _by_depth(
            group, taken, layout=layout, base=optimizer.lr, steps_per_epoch=steps_per_epoch
        ):
            pieces += _by_decay(piece, group, optimizer, layout)
        left = [name for name in left if name not in taken]
    if left:
        blocks = [block.name for block in layout.blocks if block.parameters & set(left)]
        raise ConfigurationError(
            f"optimizer.groups: {len(left)} parameters are in no group (blocks: {_some(blocks)}); "
            'end the list with {match: "*"}'
        )
    if not any(piece.trains_at(0) for piece in pieces):
        raise ConfigurationError(
            "optimizer.groups: all of them are frozen at first; unfreeze at least one"
        )
    return tuple(_merged(pieces, list(layout.sizes)))


def matches(pattern: str, name: str, head: Collection[str]) -> bool:
    """Return whether a pattern matches a parameter, component by component.

    Args:
        pattern: A pattern from the manifest: `head`, or dotted components that may contain `*`.
        name: The dotted name of the parameter.
        head: The names of the parameters of the heads.

    Returns:
        Whether it matches.
    """
    if pattern == _EVERYTHING:
        return True
    if pattern in ("head", "backbone"):
        return (name in head) == (pattern == "head")
    parts, components = pattern.split("."), name.split(".")
    # `map` stops at the shorter sequence, so only the leading components are compared.
    return len(parts) <= len(components) and all(map(fnmatchcase, components, parts))


def _by_depth(
    group: Group, taken: set[str], *, layout: Layout, base: float, steps_per_epoch: int
) -> Iterator[RateGroup]:
    """Split a group's parameters by block if its rate or release depends on depth."""
    scale = 1.0 if group.scale is None else group.scale
    rate = group.lr if group.lr is not None else base * scale
    freeze = group.freeze
    until = freeze if isinstance(freeze, Freeze) else None
    whole = RateGroup(
        name=group.name or "+".join(group.match),
        match=group.match,
        lr=0.0 if freeze == "always" else rate,
        weight_decay=0.0,
        release=None if freeze == "always" else until.release(0, steps_per_epoch) if until else 0,
        batch_norm=group.batch_norm == "train",
        parameters=tuple(taken),
        towards_start=group.towards == "start",
    )
    by_block = until is not None and until.block_every is not None
    if not (group.layer_decay or group.geometric or by_block):
        yield whole
        return
    # Both count from the head: `distance` over all blocks of the model, for `layer_decay`, and
    # `number` over the blocks of this group, for `geometric` and `block_every`.
    own = [(i, b) for i, b in enumerate(reversed(layout.blocks)) if b.parameters & taken]
    for number, (distance, block) in enumerate(own):
        changes: dict[str, Any] = {"parameters": tuple(block.parameters & taken)}
        # If several groups share a block, the group's name tells their pieces apart.
        changes["name"] = block.name if taken >= block.parameters else f"{whole.name}:{block.name}"
        if group.layer_decay:
            changes["lr"] = rate * group.layer_decay**distance
        if group.geometric:
            # From `to` at the head down to `from`, by equal factors.
            low, high = group.geometric.from_, group.geometric.to
            # A group of one block gets `to`; `max` only avoids a division by zero.
            changes["lr"] = high * (low / high) ** (number / max(1, len(own) - 1))
        if until and by_block:
            changes["release"] = until.release(number, steps_per_epoch)
        yield dataclasses.replace(whole, **changes)


def _by_decay(
    piece: RateGroup, group: Group, optimizer: Optimizer, layout: Layout
) -> Iterator[RateGroup]:
    """Set the weight decay of a piece, splitting off norms and biases if they are exempt."""
    decay = optimizer.weight_decay if group.weight_decay is None else group.weight_decay
    if group.towards and not decay:
        raise ConfigurationError(
            f"optimizer.groups: {piece.name} is pulled towards its start by weight decay, but has "
            "none; set its weight_decay"
        )
    plain = set(piece.parameters)
    if not optimizer.decay_norms_and_biases and decay:
        plain -= layout.undecayed
    rest = set(piece.parameters) - plain
    if plain:
        yield dataclasses.replace(piece, weight_decay=decay, parameters=tuple(plain))
    if rest:
        name = f"{piece.name} without decay"
        yield dataclasses.replace(piece, name=name, parameters=tuple(rest))


def _merged(pieces: Sequence[RateGroup], order: Sequence[str]) -> Iterator[RateGroup]:
    """Merge pieces with equal settings, with parameters in model order and unique names."""
    alike: dict[Any, list[RateGroup]] = {}
    for piece in pieces:
        key = (
            *(piece.lr, piece.weight_decay, piece.release, piece.batch_norm),
            piece.towards_start,
        )
        if piece.parameters:
            alike.setdefault(key, []).append(piece)
    # Parameters come from sets, whose order differs from one process to the next; all ranks, and
    # later attempts, must have the same order.
    places = {name: place for place, name in enumerate(order)}
    names: dict[str, int] = {}
    for group in alike.values():
        name = "+".join(dict.fromkeys(piece.name for piece in group))
        names[name] = names.get(name, 0) + 1
        yield dataclasses.replace(
            group[0],
            name=name if names[name] == 1 else f"{name} ({names[name]})",
            match=tuple(dict.fromkeys(pattern for piece in group for pattern in piece.match)),
            parameters=tuple(
                sorted((n for piece in group for n in piece.parameters), key=places.__getitem__)
            ),
        )


def _dead(pattern: str, layout: Layout) -> str:
    names = list(layout.sizes)
    if any(matches(pattern, name, layout.head) for name in names):
        return f"earlier groups take all that {pattern!r} matches; move it up or remove it"
    depth = pattern.count(".") + 1
    blocks = list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in names))
    if not pattern.startswith("head."):
        near = difflib.get_close_matches(pattern, [*blocks, "head", "backbone"], n=3, cutoff=0.4)
        if near:
            return f"{pattern!r} matches no parameter; nearest: {', '.join(near)}"
    known = _some(["head", "backbone", *(block.name for block in layout.blocks[:-1])])
    return f"{pattern!r} matches no parameter; available blocks: {known}"


def _some(names: Sequence[str]) -> str:
    """Join names for a message, only the first few if there are many."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
