"""Rendering of a page from its template, as one file without external resources."""

import re
import time
from collections.abc import Sequence
from typing import Any

import jinja2

import worker

_NUMERIC = re.compile(r"-|[\d.,:e+-]+( [\d:]+)?%?")


def render(template: str, **values: Any) -> str:
    """Return the page that a template makes of some values."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("worker.report"),
        autoescape=jinja2.select_autoescape(),
        trim_blocks=True,
        # A misspelled name raises an error instead of rendering as nothing.
        undefined=jinja2.StrictUndefined,
    )
    environment.tests["numeric"] = _is_numeric
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    generated = f"worker {worker.__version__}, {now}"
    return environment.get_template(template).render(**values, generated=generated)


def _is_numeric(column: Sequence[str]) -> bool:
    return all(_NUMERIC.fullmatch(text) for text in column)
