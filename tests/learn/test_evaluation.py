"""Evaluation counts each sound image once, in the memory there is."""

from collections import Counter
from pathlib import Path

import numpy
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
    evaluation_of,
    learner_for,
    results,
)
from worker.judge.judgment import judge
from worker.judge.tally import Tally
from worker.ranks.device_transfer import Mark


def test_evaluation_counts_each_sound_image_once(tmp_path: Path) -> None:
    one, three = results(1, tmp_path), results(3, tmp_path)
    assert torch.equal(one["confusion"], three["confusion"])
    assert int(one["confusion"][:, 2].sum()) == SIZES[0] + SIZES[1] - 2
    # Trained on other ranks, the weights differ in their last digits, so that scores do, too.
    assert numpy.allclose(one["tally"][2], three["tally"][2], rtol=1e-4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
    model.load_state_dict(one["weights"])
    batches = [batch(step, 0, 1) for step in (0, 1)]
    images = torch.cat([part.images[part.valid] for part in batches])
    labels = torch.cat([part.labels[part.valid] for part in batches])
    outputs = model(PREPROCESSING.normalize(images))
    histograms, reliability, sums, _ = one["tally"]
    tally = Tally(
        rows=one["confusion"].numpy(), histograms=histograms, reliability=reliability, sums=sums
    )
    judgment = judge(tally, [str(n) for n in range(CLASSES)])
    right = outputs.argmax(1) == labels
    assert judgment.accuracy.value == right.double().mean().item()
    top5 = (outputs.topk(5).indices == labels[:, None]).any(1).double().mean().item()
    assert judgment.top5_accuracy.value == top5 > right.double().mean().item()
    for label, one_class in enumerate(judgment.classes):
        expected = right[labels == label].double().mean().item()
        assert one_class.recall.value == pytest.approx(expected)
    loss = nn.functional.cross_entropy(outputs, labels).item()
    assert judgment.log_loss.value == pytest.approx(loss, abs=1e-6)


def test_an_evaluation_waits_once_per_batch(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_for(Small(most=99), PLAIN)
    marks: list[str] = []
    monkeypatch.setattr(Mark, "wait", lambda self: marks.append("wait"))
    # In which `Waits` would see nothing.
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad())
    batches = [batch(step, 0, 1) for step in (0, 1, 0, 1)]
    evaluation_of(learner, batches[:1])

    def read(count: int) -> list[str]:
        with Waits() as waits:
            evaluation_of(learner, batches[:count])
        return waits.names

    # On the CPU, where the batch comes from: its ids, whether all is valid, and what is.
    of_one_batch = ["lift_fresh", "_local_scalar_dense", "nonzero"]
    four, two = read(4), read(2)
    assert Counter(four) - Counter(two) == Counter(2 * of_one_batch)
    assert len(marks) == 3 + 1
