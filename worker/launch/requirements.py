"""Checks of a machine against the requirements of a manifest."""

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
    """Raise `ConfigurationError` if this machine lacks anything that the manifest requires."""
    check_decoding(manifest.data, gpus)
    check_exports(manifest.final)
    if manifest.train.compile:
        _require_compiler(gpus)
    if manifest.train.sync_batch_norm and not gpus:
        raise ConfigurationError(
            "train.sync_batch_norm: needs GPUs, as torch does not support it on CPUs; remove it"
        )


def _require_compiler(gpus: int) -> None:
    """Raise `ConfigurationError` if `torch.compile` lacks its build dependencies.

    These are Python's headers, a C++ compiler on CPUs, and Triton and a C compiler on GPUs.
    """
    compilers = _C_COMPILERS if gpus else _CXX_COMPILERS
    lacking = []
    if not any(map(shutil.which, compilers)):
        lacking.append(f"a compiler ({', '.join(compilers)})")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        lacking.append("Python.h (python3-dev)")
    if gpus and not importlib.util.find_spec("triton"):
        lacking.append("the triton package")
    if lacking:
        raise ConfigurationError(
            f"train.compile: needs {' and '.join(lacking)}; install what is missing, "
            "build the image with --build-arg COMPILE=1, or remove train.compile"
        )
    for name, folder in _build_folders(gpus).items():
        # Otherwise, loading the compiled code fails in the first step, long after the start.
        if os.statvfs(folder).f_flag & os.ST_NOEXEC:
            mount = next(path for path in (folder, *folder.parents) if os.path.ismount(path))
            raise ConfigurationError(
                f"train.compile: {mount} is mounted noexec, and compiled code is loaded from "
                f"there; mount it with exec (docker run --tmpfs {mount}:exec), or set {name} to "
                "another folder"
            )


def _build_folders(gpus: int) -> dict[str, Path]:
    """Map environment variables to folders for compiled code, or their nearest existing parents."""
    build = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    folders = {"TORCHINDUCTOR_CACHE_DIR" if build else "TMPDIR": build or tempfile.gettempdir()}
    if gpus and "TRITON_CACHE_DIR" in os.environ:  # by default, it is below the first folder
        folders["TRITON_CACHE_DIR"] = os.environ["TRITON_CACHE_DIR"]
    return {
        name: next(
            path for path in (Path(f).absolute(), *Path(f).absolute().parents) if path.exists()
        )
        for name, f in folders.items()
    }
