"""Graded learning-rate groups: which parameter trains at which rate. Pure.

A pattern names leading components of a parameter's dotted name, each as a whole or as a glob, so
that `features.1` never takes `features.10` and `fc` never takes a squeeze-and-excitation `fc1`.
"""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from worker.errors import ConfigurationError
from worker.manifest import Group, Optimizer

_EVERYTHING = "*"
_SHOWN = 3


@dataclass(frozen=True)
class RateGroup:
    """Parameters with the same settings; `lr` is 0 for a frozen group."""

    name: str
    lr: float
    weight_decay: float
    frozen: bool
    parameters: tuple[str, ...]


def assign(names: Sequence[str], head: Collection[str], optimizer: Optimizer) -> list[RateGroup]:
    """Put every parameter into exactly one group; the first group that matches takes it.

    `names` are the model's parameters in order, `head` those of its head. Groups with equal
    settings are merged. Raises `ConfigurationError` for a pattern that matches nothing or nothing
    that earlier groups have left, and for parameters that no pattern matches.
    """
    left = list(names)
    merged: dict[tuple[float, float, bool], RateGroup] = {}
    for number, group in enumerate(optimizer.groups):
        where = f"optimizer.groups[{number}].match"
        taken: set[str] = set()
        for pattern in group.match:
            found = {name for name in left if matches(pattern, name, head)}
            if not found and pattern != _EVERYTHING:
                raise ConfigurationError(f"{where}: {_dead(pattern, names, head)}")
            taken |= found
        if taken:
            _merge(merged, group, optimizer, tuple(name for name in left if name in taken))
        left = [name for name in left if name not in taken]
    if left:
        shown = ", ".join(left[:_SHOWN])
        raise ConfigurationError(
            f"optimizer.groups: {len(left)} parameters are in no group ({shown}, …); "
            'end the list with {match: "*"}'
        )
    if all(group.frozen for group in merged.values()):
        raise ConfigurationError("optimizer.groups: all of them are frozen; leave one to train")
    return list(merged.values())


def matches(pattern: str, name: str, head: Collection[str]) -> bool:
    """Whether `pattern` takes the parameter `name`."""
    if pattern == _EVERYTHING:
        return True
    if pattern in ("head", "backbone"):
        return (name in head) == (pattern == "head")
    parts, components = pattern.split("."), name.split(".")
    return len(parts) <= len(components) and all(map(fnmatchcase, components, parts))


def _merge(
    merged: dict[tuple[float, float, bool], RateGroup],
    group: Group,
    optimizer: Optimizer,
    parameters: tuple[str, ...],
) -> None:
    frozen = group.freeze is not None
    scale = 1.0 if group.scale is None else group.scale
    lr = 0.0 if frozen else group.lr if group.lr is not None else optimizer.lr * scale
    decay = optimizer.weight_decay if group.weight_decay is None else group.weight_decay
    key = (lr, decay, frozen)
    name = "+".join(group.match)
    if key in merged:
        name = f"{merged[key].name}+{name}"
        parameters = merged[key].parameters + parameters
    merged[key] = RateGroup(name, lr, decay, frozen, parameters)


def _dead(pattern: str, names: Sequence[str], head: Collection[str]) -> str:
    if any(matches(pattern, name, head) for name in names):
        return f"all that {pattern!r} matches is in groups above it; move it up or remove it"
    depth = pattern.count(".") + 1
    blocks = list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in names))
    near = difflib.get_close_matches(pattern, blocks, n=3, cutoff=0.4) or blocks[:_SHOWN]
    return f"{pattern!r} matches no parameter; nearest: {', '.join(near)}"
