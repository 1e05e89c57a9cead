"""A store for checkpoints."""

from pathlib import Path

import pytest

from worker.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))
