"""Conversion of data to values that JSON can represent."""

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Round the floats in a value to eight significant digits; make non-finite ones None."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value
