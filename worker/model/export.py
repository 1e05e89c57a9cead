"""Export of a model for other programs, as ONNX or as a torch.export program."""

import importlib.util
import io
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from worker.errors import ConfigurationError
from worker.manifest import Final
from worker.model.backbone import logits_of

# Batch size of the traced example; the exported model accepts any number of images. torch.export
# treats sizes 0 and 1 as constants, so an example of one image would fix the batch size.
_BATCH = 2
_ONNX_NEEDS = ("onnx", "onnxscript")


class _Predictions(nn.Module):
    """Wrapper that returns the main head's logits and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model(images))[0]


def check_exports(wanted: Final) -> None:
    """Raise `ConfigurationError` if an export needs a package that is not installed."""
    missing = [name for name in _ONNX_NEEDS if importlib.util.find_spec(name) is None]
    if wanted.onnx and missing:
        raise ConfigurationError(
            f"final.onnx: needs the package {missing[0]}; pip install {' '.join(_ONNX_NEEDS)}"
        )


def exports(model: nn.Module, image_size: int, wanted: Final) -> Iterator[tuple[str, bytes]]:
    """Yield the exports that the manifest asks for.

    Each takes normalized images, float32 [N, 3, S, S] for any N, and returns logits [N, classes].

    Args:
        model: The trained model.
        image_size: S, in pixels.
        wanted: The exports that the manifest asks for.

    Yields:
        The file name and contents of each export.
    """
    if not (wanted.onnx or wanted.torch_export):
        return
    module = _Predictions(model.cpu()).eval()
    example = (torch.zeros(_BATCH, 3, image_size, image_size),)
    # The key is the name of `forward`'s parameter.
    shapes = {"images": {0: torch.export.Dim("images", min=1)}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, example, dynamic_shapes=shapes)
        buffer = io.BytesIO()
        if wanted.torch_export:
            torch.export.save(program, buffer)
            yield "model.pt2", buffer.getvalue()
        if wanted.onnx:
            onnx = torch.onnx.export(
                program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
            )
            assert onnx is not None  # noqa: S101 -- only a call with a file name returns None
            yield "model.onnx", onnx.model_proto.SerializeToString()
