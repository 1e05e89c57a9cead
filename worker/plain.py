"""Data as JSON can hold it."""

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """The value with its numbers at eight digits, and null for those that are not finite."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value
