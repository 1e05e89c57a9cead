"""The trials of a sweep: pure functions of the sweep and of the number of a trial."""

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from worker.errors import ConfigurationError
from worker.sweep.manifest import REPEATS, SweepManifest, Vary

_DIGITS = 4
Settings = dict[str, Any]
"""Values by path, such as `optimizer.lr`."""


def trials_of(sweep: SweepManifest) -> tuple[Settings, ...]:
    """Return the settings of each trial, in the order of their numbers.

    The ranges are covered by a scrambled Sobol sequence (Owen, 1998): any number of its first
    points lies more evenly than random ones. Each draw is combined with all values of `each`.
    """
    ranges = {path: vary for path, vary in sweep.vary.items() if vary.bounds}
    choices = {p: v.each or () for p, v in sweep.vary.items() if v.each and p not in REPEATS}
    draws: list[Settings] = [{}]
    if ranges:
        # Torch takes seconds to import, and `status` and `report` do without it.
        from torch.quasirandom import SobolEngine

        engine = SobolEngine(len(ranges), scramble=True, seed=_seed_of(sweep))
        points = engine.draw(sweep.trials or 1).tolist()
        draws = [
            {path: _value(vary, at) for (path, vary), at in zip(ranges.items(), point, strict=True)}
            for point in points
        ]
    combined = [dict(zip(choices, values, strict=True)) for values in _product(choices)]
    found = [{**draw, **chosen} for draw in draws for chosen in combined]
    # In the order of the manifest, as tables and pages show them.
    return tuple({path: one[path] for path in sweep.vary if path in one} for one in found)


def repeats_of(sweep: SweepManifest) -> tuple[Settings, ...]:
    """Return the settings of each repetition of a trial: its seeds and folds."""
    repeated = {path: sweep.vary[path].each or () for path in REPEATS if path in sweep.vary}
    return tuple(dict(zip(repeated, values, strict=True)) for values in _product(repeated))


def applied(base: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the data of a manifest with some settings replaced.

    Args:
        base: The data of the manifest, complete with all defaults.
        settings: The values to set.

    Raises:
        ConfigurationError: If a path leads nowhere.
    """
    data: dict[str, Any] = copy.deepcopy(dict(base))
    for path, value in settings.items():
        *parents, last = path.split(".")
        section: Any = data
        for depth, name in enumerate(parents, start=1):
            section = _inside(section, name, path, ".".join(parents[:depth]))
        if not isinstance(section, dict) or last not in section:
            known = ", ".join(section) if isinstance(section, dict) else "nothing"
            raise ConfigurationError(f"vary.{path}: no such setting; known here: {known}")
        section[last] = copy.deepcopy(value)
    return data


def _inside(section: Any, name: str, path: str, where: str) -> Any:
    if isinstance(section, list):
        named = {one["name"]: one for one in section if isinstance(one, dict) and one.get("name")}
        if name in named:
            return named[name]
        known = f"there are {', '.join(named)}" if named else "none has a name"
        raise ConfigurationError(
            f"vary.{path}: the base has no group named {name!r} ({known}); "
            f"give it one, as in {{name: {name}, match: …}}"
        )
    found = section.get(name) if isinstance(section, dict) else None
    if found is None:
        raise ConfigurationError(f"vary.{path}: the base does not set {where}; add it there")
    return found


def _product(choices: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    return itertools.product(*choices.values())


def _seed_of(sweep: SweepManifest) -> int:
    """Return a seed that differs between sweeps, but not between starts of one."""
    ranges = {path: vary.bounds for path, vary in sweep.vary.items() if vary.bounds}
    digest = hashlib.sha256(json.dumps([sweep.sweep, ranges]).encode()).digest()
    return int.from_bytes(digest[:4])


def _value(vary: Vary, at: float) -> int | float:
    """Return the value at a point from 0 to 1 of a range."""
    low, high = vary.bounds or (0, 1)
    if isinstance(low, int) and isinstance(high, int):
        if vary.linear:
            return min(high, low + int((high + 1 - low) * at))
        # Half a step beyond both ends, so that these get their share of the logarithmic scale.
        drawn = round((low - 0.5) * ((high + 0.5) / (low - 0.5)) ** at)
        return min(high, max(low, drawn))
    value = low * (high / low) ** at if vary.log else low + (high - low) * at
    # Rounded, so that a person can type it.
    return min(float(high), max(float(low), float(f"{value:.{_DIGITS}g}")))
