"""The classes of a data set by the labels of a model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class ClassMatch:
    """Translation of the labels of a data set into those of a model."""

    labels: npt.NDArray[np.int64]
    """The model's label of each class of the data set, or -1, [classes of the data set]."""
    unknown: tuple[str, ...]
    """Classes of the data set that the model does not know; their images are left out."""


def match_classes(model: Sequence[str], dataset: Sequence[str]) -> ClassMatch:
    """Match classes by name.

    Args:
        model: Names of the model's classes, in label order.
        dataset: Names of the data set's classes, in label order.

    Raises:
        ConfigurationError: If they have no class in common.
    """
    label_of = {name: label for label, name in enumerate(model)}
    unknown = tuple(name for name in dataset if name not in label_of)
    if len(unknown) == len(dataset):
        raise ConfigurationError(
            f"the data set's classes ({_few(dataset)}) are none of the model's ({_few(model)}); "
            "use a set with those classes, or index it with --classes"
        )
    return ClassMatch(
        labels=np.array([label_of.get(name, -1) for name in dataset], np.int64),
        unknown=unknown,
    )


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
