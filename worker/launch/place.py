"""Requirements of a manifest on the place that it runs at."""

import importlib.util
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path

from worker.errors import ConfigurationError
from worker.job.decoding import check_decoding
from worker.manifest import Manifest
from worker.model.export import check_exports

_C_COMPILERS, _CXX_COMPILERS = ("cc", "gcc", "clang"), ("g++", "clang++", "c++")


def check_place(manifest: Manifest, gpus: int) -> None:
    """Raise `ConfigurationError` for what the manifest wants and this place does not have."""
    check_decoding(manifest.data, gpus)
    check_exports(manifest.final)
    if manifest.train.compile:
        _require_compiler(gpus)
    if manifest.train.sync_batch_norm and not gpus:
        raise ConfigurationError(
            "train.sync_batch_norm: needs GPUs, as torch has none for CPUs; remove it"
        )


def _require_compiler(gpus: int) -> None:
    """Raise `ConfigurationError` if `torch.compile` lacks what it builds with.

    That is C++ on CPUs; on GPUs Triton, and C with Python's headers. What it has built is loaded
    from the folder for temporary files.
    """
    compilers = _C_COMPILERS if gpus else _CXX_COMPILERS
    lacking = []
    if not any(map(shutil.which, compilers)):
        lacking.append(f"a compiler ({', '.join(compilers)})")
    if gpus and not Path(sysconfig.get_path("include"), "Python.h").exists():
        lacking.append("Python.h (python3-dev)")
    if gpus and not importlib.util.find_spec("triton"):
        lacking.append("the package triton")
    if lacking:
        raise ConfigurationError(
            f"train.compile: needs {' and '.join(lacking)}, which the image as shipped lacks, too; "
            "remove it, or build the image with --build-arg COMPILE=1"
        )
    folder = tempfile.gettempdir()
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise ConfigurationError(
            f"train.compile: {folder} is mounted noexec, and compiled code is loaded from there; "
            f"mount it with exec (docker run --tmpfs {folder}:exec), or point TMPDIR elsewhere"
        )
