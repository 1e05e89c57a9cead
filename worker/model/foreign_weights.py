"""Weight files written by other tools, reduced to plain state dicts.

Only tensors and plain data are ever unpickled: `torch.load(weights_only=True)`.
"""

import argparse
import io
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from worker.data.image_formats import compression_of
from worker.errors import ConfigurationError
from worker.logs import count

_INSIDE = (
    "state_dict_ema",  # timm
    "model_ema",  # torchvision's references
    "state_dict",  # timm, Lightning, PyTorch's examples
    "model",  # torchvision's references
    "model_state_dict",
    "net",
)
"""Keys under which training scripts store a state dict; averages first, as in timm."""
CONVERT = (
    "import torch; f = torch.load('FILE', map_location='cpu', weights_only=False); "
    f"f = next((f[k] for k in {_INSIDE!r} if k in f), f) if isinstance(f, dict) else f; "
    "torch.save(f.state_dict() if hasattr(f, 'state_dict') else f, 'plain.pth')"
)
"""Python code that converts a file readable only by pickle into a plain state dict."""
_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "net.")
"""Prefixes added by DistributedDataParallel, torch.compile, LightningModules and others."""
# The function that unpickles NumPy scalars. Its module has moved, so files hold one of two names.
_SCALAR = np.float64(0).__reduce__()[0]
_PLAIN: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    (_SCALAR, "numpy.core.multiarray.scalar"),  # up to NumPy 1
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "bool")),
]
"""Types that training scripts store next to the tensors: arguments, paths, numbers. None of them
runs code when unpickled.
"""
_COUNTER = "n_averaged"  # of torch's AveragedModel
_OTHERS = {
    b"<": "a web page",
    b"version https://git-lfs": "a Git LFS pointer",
    b"\x89HDF": "an HDF5 file, as Keras writes them",
    b"\x93NUMPY": "a NumPy array",
}
"""Other files, by their first bytes."""
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_MAX_SHOWN = 8


def read_state(data: bytes, uri: str) -> tuple[dict[str, Tensor], str]:
    """Return the state dict in a file, and its key; the key is empty for a top-level state dict.

    Args:
        data: Contents of the file, in safetensors format or as written by `torch.save`.
        uri: Its address, for messages.

    Raises:
        ConfigurationError: If the file holds no state dict; the message describes its contents.
    """
    found = _decoded(data, uri)
    if _is_state(found):
        return dict(found), ""
    if isinstance(found, Mapping):
        for key in _INSIDE:
            if _is_state(found.get(key)):
                return dict(found[key]), key
    raise ConfigurationError(
        f"model.weights: {uri}: holds no state dict (found {_describe(found)}); save "
        "`model.state_dict()`"
    )


def unwrapped(state: Mapping[str, Tensor], known: Collection[str]) -> dict[str, Tensor]:
    """Return a state dict without the prefixes that wrappers around the model add to names.

    Args:
        state: Tensors by name.
        known: Names of the tensors of the model itself.
    """
    found: dict[str, Tensor] = {}
    beside: dict[str, Tensor] = {}
    for name, tensor in state.items():
        bare = name
        # Wrappers nest, as in `_orig_mod.module.`; a name of the model's own is never shortened.
        while bare not in known and bare.startswith(_WRAPPERS):
            bare = bare.partition(".")[2]
        kept = beside if bare == name and name not in known else found
        kept[bare] = tensor
    # The model may be only one part of a LightningModule, for example, next to its losses and
    # metrics. If nothing is wrapped, unknown names are mismatches, which the caller reports.
    beside.pop(_COUNTER, None)
    wrapped = any(name.startswith(_WRAPPERS) for name in state)
    return found if wrapped and found.keys() & set(known) else {**found, **beside}


def _decoded(data: bytes, uri: str) -> Any:
    try:
        if _is_safetensors(data):
            return safetensors.torch.load(data)
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch.load raise almost anything
        raise ConfigurationError(f"model.weights: {uri}: {_reason(data, error)}") from None


def _reason(data: bytes, error: Exception) -> str:
    """Return why a file cannot be read as weights, and the remedy."""
    foreign = _GLOBAL.search(str(error))
    if foreign:
        return (
            f"holds {foreign[1]} besides the tensors, but only tensors and plain data are read; if "
            f'you trust the file, convert it: python -c "{CONVERT}"'
        )
    if "TorchScript" in str(error):
        return "is a TorchScript program; save its `state_dict()`"
    if not data:
        return "is empty; copy the file again"
    what = next((what for mark, what in _OTHERS.items() if data.startswith(mark)), "")
    if what:
        return f"is {what}; give a file written by safetensors or `torch.save`"
    compression = compression_of(data[:8])
    if compression and compression != "zip":  # as `torch.save` writes
        return f"is compressed with {compression}; decompress it"
    return (
        "is neither safetensors nor a state dict, or it is cut short "
        f"({type(error).__name__}); copy the file again"
    )


def _is_safetensors(data: bytes) -> bool:
    """Return whether data begins like a safetensors file: an 8-byte size, then JSON.

    The output of `torch.save`, a zip file or an older format, never has `{` there.
    """
    return data[8:9] == b"{"


def _is_state(found: object) -> bool:
    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items())
    )


def _states_in(
    found: Mapping[Any, Any], depth: int = 2
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield the state dicts up to some levels down, each with its path, such as `app.model`."""
    for key, value in found.items():
        name = str(key)[:40]
        if _is_state(value):
            yield name, value
        elif isinstance(value, Mapping) and depth > 1:
            yield from ((f"{name}.{inner}", state) for inner, state in _states_in(value, depth - 1))


def _describe(found: object) -> str:
    """Describe the contents of a file that holds no state dict where one is looked for."""
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    inside = [f"{count(len(state), 'tensor')} under {key}" for key, state in _states_in(found)]
    if inside:
        return ", ".join(inside[:_MAX_SHOWN])
    keys = [str(key)[:40] for key in list(found)[:_MAX_SHOWN]]
    return (
        f"the keys {', '.join(keys)}{', …' if len(found) > _MAX_SHOWN else ''}"
        if keys
        else "nothing"
    )
