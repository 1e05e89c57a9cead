"""Thresholds are the lowest that are precise enough, temperatures the ones that fit."""

import numpy as np
import torch
from torch.nn import functional as F

from tests.judge.test_judgment import predictions, tally_of
from worker.judge.calibration import fit_temperature
from worker.judge.thresholds import thresholds_for


def test_a_threshold_keeps_its_promise_and_costs_the_least_recall() -> None:
    logits, labels = predictions(800, 3, seed=4)
    tally = tally_of(logits, labels)
    chances = logits.double().softmax(1)
    for label, found in enumerate(thresholds_for(tally.histograms, ["a", "b", "c"], 0.9)):
        assert found.probability is not None
        above = chances[:, label] >= found.probability
        hits = above & (labels == label)
        assert hits.sum() / above.sum() >= 0.9
        assert found.precision.value == int(hits.sum()) / int(above.sum())
        assert found.recall.value == int(hits.sum()) / int((labels == label).sum())
        # No lower threshold would do.
        for lower in np.linspace(0.02, found.probability - 0.02, 20):
            more = chances[:, label] >= lower
            assert (more & (labels == label)).sum() / more.sum() < 0.9 + 0.02


def test_a_precision_that_no_threshold_reaches_is_said_to_be_none() -> None:
    labels = torch.tensor([0, 1] * 20)
    logits = torch.zeros(40, 2)
    logits[:, 0] = 1
    (first, _) = thresholds_for(tally_of(logits, labels).histograms, ["a", "b"], 0.9)
    assert first.probability is None
    assert first.precision.value is None


def test_the_temperature_is_the_one_with_the_lowest_loss(alone: None) -> None:
    logits, labels = predictions(1000, 5, seed=5)
    for scale in (0.2, 1.0, 5.0):
        found = fit_temperature(logits * scale, labels)
        assert found
        losses = {
            t: F.cross_entropy(logits.double() * scale / t, labels).item()
            for t in (found * 0.97, found, found * 1.03)
        }
        assert min(losses, key=lambda t: losses[t]) == found


def test_no_temperature_fits_if_nothing_is_wrong_or_nothing_is_known(alone: None) -> None:
    labels = torch.arange(60) % 3
    assert fit_temperature(torch.eye(3)[labels] * 4, labels) is None
    torch.manual_seed(0)
    assert fit_temperature(100 * torch.randn(60, 3), labels) is None
