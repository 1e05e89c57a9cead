"""The head that is fitted to features is the one that scikit-learn finds."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from worker.learn.linear_probe import fit_head


def test_the_fit_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 200)
    features = random.normal(0, 1, (200, 20)) + labels[:, None] * 0.5
    weight, bias = fit_head(
        torch.from_numpy(features).float(),
        torch.from_numpy(labels),
        torch.zeros(3, 20),
        torch.zeros(3),
    )
    theirs = LogisticRegression(C=1.0, max_iter=1000, tol=1e-8).fit(features, labels)
    assert bias is not None
    ours = torch.softmax(torch.from_numpy(features).float() @ weight.T + bias, 1).numpy()
    assert np.abs(ours - theirs.predict_proba(features)).max() < 2e-3


def test_classes_that_can_be_separated_leave_the_weights_finite() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(10, 1)
    labels = torch.tensor([0, 1] * 10)
    weight, bias = fit_head(features, labels, torch.zeros(2, 2), None)
    assert bias is None
    assert weight.abs().max() < 10
    assert ((features @ weight.T).argmax(1) == labels).all()
