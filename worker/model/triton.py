"""A model repository as Triton and KServe load it.

See https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md
and, for the fields of `config.pbtxt`, `model_config.proto` of triton-inference-server/common.
"""

from collections.abc import Iterator

from worker.model.model_card import Card

_MAX_BATCH = 64
_QUEUE_MICROSECONDS = 2000
_CONFIG = """name: "{name}"
backend: "onnxruntime"
max_batch_size: {batch}
input [
  {{ name: "images" data_type: TYPE_FP32 dims: [ 3, {size}, {size} ] }}
]
output [
  {{ name: "logits" data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "labels.txt" }}
]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
"""


def triton_files(name: str, card: Card, onnx: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a repository with one model, by name below `final/`.

    Args:
        name: The name of the model.
        card: Its card.
        onnx: The model as ONNX.
    """
    config = _CONFIG.format(
        name=name,
        batch=_MAX_BATCH,
        size=card.preprocessing.crop_size,
        classes=len(card.classes),
        delay=_QUEUE_MICROSECONDS,
    )
    yield f"triton/{name}/config.pbtxt", config.encode()
    yield f"triton/{name}/labels.txt", "".join(f"{label}\n" for label in card.classes).encode()
    yield f"triton/{name}/1/model.onnx", onnx
