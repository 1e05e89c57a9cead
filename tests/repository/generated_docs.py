"""The parts of the docs that are generated from the code; `make docs` writes them.

In a page, each lies between two comments: `<!-- generated: make docs -->` and `<!-- end -->`.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.repository.test_architecture import picture
from tests.support.paths import ROOT
from worker.environment import describe_environment
from worker.errors import describe_exit_codes
from worker.manifest.reference import describe_keys, describe_manifest
from worker.metrics.docs_table import describe_metrics
from worker.sweep.manifest import SweepManifest

PAGES: Mapping[str, Callable[[], str]] = {
    "architecture.md": picture,
    "environment.md": describe_environment,
    "exit-codes.md": describe_exit_codes,
    "manifest.md": describe_manifest,
    "metrics.md": describe_metrics,
    "sweeps.md": lambda: describe_keys(SweepManifest),
}
_GENERATED = re.compile(r"(<!-- generated: make docs -->\n\n).*?(\n<!-- end -->)", re.DOTALL)


def page_of(name: str) -> Path:
    return ROOT / "docs" / name


def with_generated(name: str) -> str:
    """The text of a page with its generated part as the code has it now."""
    text = PAGES[name]().rstrip("\n") + "\n"
    page, count = _GENERATED.subn(
        lambda found: found[1] + text + found[2], page_of(name).read_text()
    )
    assert count == 1, f"{name}: not one generated part, but {count}"
    return page


if __name__ == "__main__":
    for page in PAGES:
        page_of(page).write_text(with_generated(page))
