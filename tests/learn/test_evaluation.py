"""Evaluation counts each sound image once, in the memory there is."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.learners import Waits
from tests.support.engines import (
    CLASSES,
    PLAIN,
    PREPROCESSING,
    SIZES,
    Small,
    batch,
    learner_for,
    results,
)
from worker.learn import evaluation as evaluation_module
from worker.learn.evaluation import evaluate
from worker.ranks.device_transfer import Mark


def test_evaluation_counts_each_sound_image_once(tmp_path: Path) -> None:
    one, three = results(1, tmp_path), results(3, tmp_path)
    assert torch.equal(one["confusion"], three["confusion"])
    assert int(one["confusion"][:, 2].sum()) == SIZES[0] + SIZES[1] - 2
    for name in ("accuracy", "top5_accuracy", "per_class"):
        assert one["evaluation"][name] == three["evaluation"][name]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
    model.load_state_dict(one["weights"])
    batches = [batch(step, 0, 1) for step in (0, 1)]
    images = torch.cat([part.images[part.valid] for part in batches])
    labels = torch.cat([part.labels[part.valid] for part in batches])
    outputs = model(PREPROCESSING.normalize(images))
    right = outputs.argmax(1) == labels
    assert one["evaluation"]["accuracy"] == right.double().mean().item()
    top5 = (outputs.topk(5).indices == labels[:, None]).any(1).double().mean().item()
    assert one["evaluation"]["top5_accuracy"] == top5 > right.double().mean().item()
    for label, accuracy in enumerate(one["evaluation"]["per_class"]):
        assert accuracy == pytest.approx(right[labels == label].double().mean().item())
    loss = nn.functional.cross_entropy(outputs, labels).item()
    assert one["evaluation"]["loss"] == pytest.approx(loss)


def test_evaluation_goes_on_in_halves_where_memory_runs_out(alone: None) -> None:
    results = []
    for most in (99, 2):
        model = Small(most)
        result = evaluate(
            learner_for(model, PLAIN),
            [batch(0, 0, 1)],
            preprocessing=PREPROCESSING,
            classes=CLASSES,
            stopped=lambda: False,
        )
        assert result
        results.append(result[0])
        assert max(model.seen) <= most
    assert results[0].loss == pytest.approx(results[1].loss)
    assert results[0].accuracy == results[1].accuracy


def test_an_evaluation_waits_once_per_batch(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_for(Small(most=99), PLAIN)
    marks: list[str] = []
    monkeypatch.setattr(Mark, "wait", lambda self: marks.append("wait"))
    # In which `Waits` would see nothing.
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad())
    batches = [batch(step, 0, 1) for step in (0, 1, 0, 1)]
    evaluate(
        learner, batches[:1], preprocessing=PREPROCESSING, classes=CLASSES, stopped=lambda: False
    )

    def read(count: int) -> list[str]:
        with Waits() as waits:
            evaluate(
                learner,
                batches[:count],
                preprocessing=PREPROCESSING,
                classes=CLASSES,
                stopped=lambda: False,
            )
        return waits.names

    # On the CPU, where the batch comes from: its ids, whether all is valid, and what is.
    of_one_batch = ["lift_fresh", "_local_scalar_dense", "nonzero"]
    four, two = read(4), read(2)
    assert Counter(four) - Counter(two) == Counter(2 * of_one_batch)
    assert len(marks) == 3 + 1


def test_an_evaluation_remembers_what_the_memory_holds() -> None:
    calls: list[int] = []

    class Large(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            if len(images) > 3:
                raise torch.OutOfMemoryError
            return images.flatten(1)[:, :2]

    images = torch.rand(10, 3, 2, 2)
    logits = evaluation_module._Logits(Large())
    for _ in range(2):
        assert torch.equal(logits(images), images.flatten(1)[:, :2])
    assert calls == [10, 5, 3, 3, 3, 1, 3, 3, 3, 1]
