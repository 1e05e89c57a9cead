"""Export of a model for other programs, as ONNX or as a torch.export program."""

import importlib.util
import io
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from worker import __version__
from worker.errors import ConfigurationError
from worker.manifest import Final
from worker.model.backbone import logits_of
from worker.model.model_card import Card
from worker.model.triton import triton_files

# Batch size of the traced example; the exported model accepts any number of images. torch.export
# treats sizes 0 and 1 as constants, so an example of one image would fix the batch size.
_BATCH = 2
_ONNX_NEEDS = ("onnx", "onnxscript")


class _Predictions(nn.Module):
    """Wrapper that returns the main head's logits, divided by the temperature, and nothing else."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        logits = logits_of(self.model(images))[0]
        return logits if self.temperature == 1 else logits / self.temperature


def check_exports(wanted: Final) -> None:
    """Raise `ConfigurationError` if an export needs a package that is not installed."""
    missing = [name for name in _ONNX_NEEDS if importlib.util.find_spec(name) is None]
    for field in ("onnx", "triton"):
        if getattr(wanted, field) and missing:
            raise ConfigurationError(
                f"final.{field}: needs the package {missing[0]}; "
                f"pip install {' '.join(_ONNX_NEEDS)}"
            )


def exports(model: nn.Module, card: Card, job: str, wanted: Final) -> Iterator[tuple[str, bytes]]:
    """Yield the exports that the manifest asks for.

    Each takes normalized images, float32 [N, 3, S, S] for any N, and returns logits [N, classes].
    The ONNX model carries the card, without its metrics, as metadata.

    Args:
        model: The trained model.
        card: Its card.
        job: The name of the job, and so of the model in a Triton repository.
        wanted: The exports that the manifest asks for.

    Yields:
        The file name and contents of each export.
    """
    if not (wanted.onnx or wanted.torch_export or wanted.triton):
        return
    module = _Predictions(model.cpu(), card.temperature).eval()
    size = card.preprocessing.crop_size
    example = (torch.zeros(_BATCH, 3, size, size),)
    # The key is the name of `forward`'s parameter.
    shapes = {"images": {0: torch.export.Dim("images", min=1)}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, example, dynamic_shapes=shapes)
        if wanted.torch_export:
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
            yield "model.pt2", buffer.getvalue()
        if wanted.onnx or wanted.triton:
            data = _as_onnx(program, card, job)
            if wanted.onnx:
                yield "model.onnx", data
            if wanted.triton:
                yield from triton_files(job, card, data)


def _as_onnx(program: torch.export.ExportedProgram, card: Card, job: str) -> bytes:
    onnx = torch.onnx.export(
        program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
    )
    assert onnx is not None  # noqa: S101 -- only a call with a file name returns None
    proto = onnx.model_proto
    proto.graph.name = job
    proto.producer_name, proto.producer_version = "worker", __version__
    for name, value in card.as_metadata().items():
        proto.metadata_props.add(key=name, value=value)
    data: bytes = proto.SerializeToString()
    return data
