"""The keys of manifests: where each belongs, and what was meant by one that is not known."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel

from worker.manifest.job import Manifest

_ALIKE = 0.7
_ELSEWHERE = {
    "arch": "model.backbone",
    "weights": "model.weights",
    "batch": "train.batch_size",
    "bs": "train.batch_size",
    "architecture": "model.backbone",
    "model_name": "model.backbone",
    "num_epochs": "train.epochs",
    "learning_rate": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "data_dir": "data.train",
    "dataset": "data.train",
    "pretrained": "model.weights",
    "train_dir": "data.train",
    "val_dir": "data.val",
    "train_data": "data.train",
    "train_prefix": "data.train",
    "val_data": "data.val",
    "val_prefix": "data.val",
    "num_classes": "",
    "num_workers": "",
    "gpus": "",
    "device": "",
}
"""Other tools' names for settings; an empty path means that there is no such setting here."""
_NO_SETTING = "remove it; its value comes from the data or the environment (docs/environment.md)"


def path_of_setting(name: str, options: Iterable[str]) -> str | None:
    """Return the path of the setting meant by an option that is none of `options`.

    Its name may be that of other tools, or misspelled: `--epoch` yields `train.epochs`.
    """
    name = name.lower().replace("-", "_")
    paths = _paths(Manifest) | _ELSEWHERE
    near = difflib.get_close_matches(name, [*options, *paths], n=1, cutoff=_ALIKE)
    return paths.get(near[0]) if near else None


def remedy_for(key: str, section: list[Any], schema: type[BaseModel]) -> str:
    """Suggest a remedy for an unknown key: a similar key, or the section it belongs in."""
    if key.lower() in _ELSEWHERE and schema is Manifest:
        path = _ELSEWHERE[key.lower()].removeprefix(f"{'.'.join(map(str, section))}.")
        return f"did you mean {path}?" if path else _NO_SETTING
    known = known_keys(section, schema)
    elsewhere = _paths(schema)
    near = _nearest(key, known)
    if key in elsewhere and (near or "").lower() != key.lower():
        parent = elsewhere[key].rpartition(".")[0]
        return f"put it under {parent}" if parent else "put it at the top level"
    if near:
        return f"did you mean {near}?"
    far = _nearest(key, elsewhere)
    return f"did you mean {elsewhere[far]}?" if far else f"known here: {', '.join(known)}"


def _nearest(key: str, known: Iterable[str]) -> str | None:
    key = key.lower()
    close = difflib.get_close_matches(key, known := list(known), n=1, cutoff=_ALIKE)
    # Abbreviations (`aug` for `augment`), and keys with a suffix (`lr_base` for `lr`).
    begun = [name for name in known if name.startswith(key) or key.startswith(f"{name}_")]
    return next(iter([*close, *begun]), None) if key else None


def _paths(schema: type[BaseModel]) -> dict[str, str]:
    """Return all keys and their paths; for one of several sections, the path most likely meant."""
    found = sorted(_each_path(schema), key=lambda at: (at[1].count("."), at[1] != f"train.{at[0]}"))
    return dict(reversed(found))


def _each_path(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys below a section and their paths: `epochs`, `train.epochs`."""
    for name, info in section.model_fields.items():
        yield name, f"{path}{name}"
        inner = section_in(info.annotation)
        if inner:
            yield from _each_path(inner, f"{path}{name}.")


def known_keys(location: list[Any], schema: type[BaseModel]) -> list[str]:
    """Return the keys of the section at `location`."""
    section = schema
    for part in location:
        if part in section.model_fields:
            section = section_in(section.model_fields[part].annotation) or section
    return [info.alias or name for name, info in section.model_fields.items()]


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field's type is or contains, as in `X | None` or a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)
