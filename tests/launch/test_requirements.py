"""What `torch.compile` needs at a place."""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import pytest

from worker.errors import ConfigurationError
from worker.launch.requirements import _require_compiler


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A place that has everything; returns the folder of its headers."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_place_that_has_everything_passes(complete: Path, gpus: int) -> None:
    _require_compiler(gpus)


@pytest.mark.parametrize("gpus", [0, 1])
def test_headers_are_needed(complete: Path, gpus: int) -> None:
    (complete / "Python.h").unlink()
    with pytest.raises(ConfigurationError, match=r"train.compile: needs Python.h .*COMPILE=1"):
        _require_compiler(gpus)


def test_triton_is_needed_on_gpus_alone(complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    _require_compiler(0)
    with pytest.raises(ConfigurationError, match="the triton package"):
        _require_compiler(1)


@pytest.mark.parametrize(
    ("name", "gpus"),
    [("TMPDIR", 0), ("TORCHINDUCTOR_CACHE_DIR", 0), ("TRITON_CACHE_DIR", 1)],
)
def test_folders_that_code_cannot_be_loaded_from_are_named(
    complete: Path, monkeypatch: pytest.MonkeyPatch, name: str, gpus: int
) -> None:
    folder = complete / "noexec"
    folder.mkdir()
    real = os.statvfs

    class Noexec:
        f_flag = os.ST_NOEXEC

    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    monkeypatch.setattr(os, "statvfs", lambda path: Noexec if Path(path) == folder else real(path))
    monkeypatch.setattr(
        "tempfile.gettempdir", lambda: str(folder if name == "TMPDIR" else complete)
    )
    if name != "TMPDIR":
        monkeypatch.setenv(name, f"{folder}/not/yet/there")
    with pytest.raises(ConfigurationError, match=rf"{folder} is mounted noexec.*or set {name} to"):
        _require_compiler(gpus)
