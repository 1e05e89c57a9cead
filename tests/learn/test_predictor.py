"""The forward pass fits into memory, and is the same on any number of threads."""

import pytest
import torch
from torch import nn
from torchvision import models

from worker.learn.predictor import Predictor


def test_what_the_memory_holds_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            if len(images) > 3:
                raise torch.OutOfMemoryError
            return images.flatten(1)[:, :2]

    images = torch.rand(10, 3, 2, 2)
    predictor = Predictor(Large(), None)
    predictor._pool = None  # as on a GPU
    for _ in range(2):
        assert torch.equal(predictor(images)[0], images.flatten(1)[:, :2])
    assert calls == [10, 5, 3, 3, 3, 1, 3, 3, 3, 1]


@pytest.mark.parametrize(
    ("name", "head"), [("resnet18", "fc"), ("squeezenet1_1", "classifier.1"), ("vit_b_32", "heads")]
)
def test_any_number_of_threads_gives_the_same_digits(name: str, head: str) -> None:
    torch.manual_seed(0)
    size = {"image_size": 64} if name.startswith("vit") else {}
    model = models.get_model(name, num_classes=5, **size).eval()
    images = torch.rand(22, 3, 64, 64)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(Predictor(model, None, head)(images))
    torch.set_num_threads(before)
    expected, vectors = found[0]
    assert vectors is not None
    assert len(vectors) == 22
    for logits, features in found[1:]:
        assert torch.equal(logits, expected)
        assert features is not None
        assert torch.equal(features, vectors)
    with torch.inference_mode():
        assert torch.allclose(expected, model(images), atol=1e-4)
