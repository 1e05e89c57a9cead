"""Recognition of the columns for image, label and split: by option, name or content."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.data.image_formats import IMAGE_SUFFIXES, OTHER_IMAGES
from worker.errors import ConfigurationError
from worker.ingest.splits import split_named
from worker.text import printable

# In order of preference. Those with dots or dashes are SageMaker's, Vertex AI's and Azure ML's.
_IMAGE = (
    *("image", "file_name", "filename", "image_path", "imagepath", "filepath", "file_path", "path"),
    *("file", "img", "img_path", "image_name", "image_file", "image_id", "id", "source-ref"),
    *("imagegcsuri", "content.imagegcsuri", "image_url", "image_uri", "url", "uri", "photo"),
)
_LABEL = (
    *("label", "class", "class_name", "classname", "category", "target", "label_name", "breed"),
    *("species", "diagnosis", "tag", "labels", "y"),
    *("classificationannotation.displayname", "classificationannotations.0.displayname"),
)
_SPLIT = (
    *("split", "subset", "partition", "set", "ml_use", "fold_name"),
    "dataitemresourcelabels.aiplatform.googleapis.com/ml_use",
)
TABLE_OPTIONS = frozenset(("image", "label", "split", "root"))
"""The statements about a source that mean something for a table."""
_SAGEMAKER = re.compile(r"(.+)-metadata\.class-name")
_PATH = re.compile(
    rf"\.({'|'.join((*IMAGE_SUFFIXES, *OTHER_IMAGES))})$|^(s3|gs|https?|file)://", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns that matter; None for a column that does not exist."""

    image: str
    label: str
    split: str | None = None
    group: str | None = None

    def __str__(self) -> str:
        more = "".join(
            f", {kind} from {name!r}"
            for kind, name in (("split", self.split), ("group", self.group))
            if name
        )
        return f"image from {self.image!r}, label from {self.label!r}{more}"


def find_columns(
    names: Sequence[str], rows: Sequence[Mapping[str, Any]], wanted: Mapping[str, str | None]
) -> Columns:
    """Find the columns of a table.

    Args:
        names: The names of its columns.
        rows: Its first rows.
        wanted: The columns that the user names, by `image`, `label`, `split` and `group`.

    Raises:
        ConfigurationError: If a named column does not exist, or the image or label cannot be found.
    """
    for option, name in wanted.items():
        if name and name not in names and option != "group":
            raise ConfigurationError(
                f"--{option}: there is no column {name!r}; the columns are {_listed(names)}"
            )
    image = wanted.get("image") or _by_name(names, _IMAGE) or _by_content(names, rows)
    if image is None:
        raise ConfigurationError(
            f"no column looks like images; pass --image with one of {_listed(names)}"
        )
    label = wanted.get("label") or _label_column([name for name in names if name != image])
    if label is None:
        raise ConfigurationError(
            f"no column looks like labels; pass --label with one of {_listed(names)}"
        )
    group = wanted.get("group")
    return Columns(
        image=image,
        label=label,
        split=wanted.get("split") or _split_column(names, rows),
        group=group if group in names else None,
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:20])


def _by_name(names: Sequence[str], known: Sequence[str]) -> str | None:
    by_lower = {name.strip().lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in known if name in by_lower), None)


def _by_content(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the only column whose first values all look like paths or addresses of images."""
    found = [
        name
        for name in names
        if rows and all(_PATH.search(str(row.get(name) or "")) for row in rows[:20])
    ]
    return found[0] if len(found) == 1 else None


def _split_column(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a column with a usual name whose first values are usual names of splits."""
    name = _by_name(names, _SPLIT)
    if name is None:
        return None
    cells = {str(row.get(name) or "").strip() for row in rows[:200]}
    return name if any(map(split_named, cells)) else None


def _label_column(names: Sequence[str]) -> str | None:
    sagemaker = next((name for name in names if _SAGEMAKER.fullmatch(name)), None)
    if sagemaker:
        return sagemaker
    return _by_name(names, _LABEL) or (names[0] if len(names) == 1 else None)


def looks_like_path(text: str) -> bool:
    """Return whether a cell looks like the path or address of an image."""
    return bool(_PATH.search(text))
