"""Every figure of a judgment equals scikit-learn's on the same predictions."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from worker.judge.confusion import merge_rows
from worker.judge.counter import Counter
from worker.judge.judgment import Judgment, judge
from worker.judge.measure import Measure
from worker.judge.tally import Tally


def predictions(images: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are right more often than not, and labels of which some are rare."""
    torch.manual_seed(seed)
    labels = (torch.rand(images) ** 2 * classes).long()
    logits = torch.randn(images, classes) * 1.5
    logits[torch.arange(images), labels] += 1.5
    return logits, labels


def tally_of(logits: torch.Tensor, labels: torch.Tensor, size: int = 64) -> Tally:
    counter = Counter(logits.shape[1], torch.device("cpu"))
    for part, of_part in zip(logits.split(size), labels.split(size), strict=True):
        counter.add(part, of_part)
    return counter.own()


def judgment_of(logits: torch.Tensor, labels: torch.Tensor) -> Judgment:
    return judge(tally_of(logits, labels), [f"class {n}" for n in range(logits.shape[1])])


def values(figures: list[Measure]) -> list[float]:
    assert all(figure.value is not None for figure in figures)
    return [figure.value or 0.0 for figure in figures]


@pytest.mark.parametrize(
    ("images", "classes", "scale"),
    [(153, 2, 1), (600, 10, 1), (2000, 40, 1), (600, 10, 0.01), (600, 10, 15)],
)
def test_the_figures_are_scikit_learns(images: int, classes: int, scale: float) -> None:
    """Also of a model that knows nothing yet, and of one that is sure of everything."""
    logits, labels = predictions(images, classes, seed=classes)
    logits = logits.double() * scale
    found = judgment_of(logits, labels)
    chances = logits.double().softmax(1).numpy()
    true, guess = labels.numpy(), chances.argmax(1)
    exact = {
        "accuracy": metrics.accuracy_score(true, guess),
        "balanced_accuracy": metrics.balanced_accuracy_score(true, guess),
    }
    for mean in ("macro", "weighted"):
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            true, guess, average=mean, zero_division=0
        )
        exact |= {
            f"{mean}_precision": precision,
            f"{mean}_recall": recall,
            f"{mean}_f1": f1,
        }
    for name, value in exact.items():
        assert getattr(found, name).value == pytest.approx(value, abs=1e-12), name
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert found.log_loss.value == pytest.approx(loss, abs=1e-6)
    one_hot = np.eye(classes)[true]
    assert found.brier.value == pytest.approx(((chances - one_hot) ** 2).sum(1).mean(), abs=1e-6)
    if classes > 5:
        top5 = metrics.top_k_accuracy_score(true, chances, k=5)
        assert found.top5_accuracy.value == pytest.approx(top5)
    by_class = metrics.precision_recall_fscore_support(true, guess, zero_division=0)
    for name, expected in zip(("precision", "recall", "f1"), by_class[:3], strict=True):
        mine = values([getattr(one, name) for one in found.classes])
        assert mine == pytest.approx(expected.tolist(), abs=1e-12)
    # The log-odds, as probabilities near 1 cannot be told apart.
    others = [
        torch.cat([logits[:, :n], logits[:, n + 1 :]], 1).logsumexp(1) for n in range(classes)
    ]
    scores = np.stack([(logits[:, n] - others[n]).numpy() for n in range(classes)], axis=1)
    areas = [metrics.roc_auc_score(true == n, scores[:, n]) for n in range(classes)]
    averages = [metrics.average_precision_score(true == n, scores[:, n]) for n in range(classes)]
    assert values([one.auroc for one in found.classes]) == pytest.approx(areas, abs=1e-3)
    precisions = values([one.average_precision for one in found.classes])
    assert precisions == pytest.approx(averages, abs=1e-3)
    assert found.macro_auroc.value == pytest.approx(np.mean(areas), abs=1e-3)


def test_every_figure_lies_within_its_interval() -> None:
    for seed in range(20):
        logits, labels = predictions(60, 4, seed=seed)
        found = judgment_of(logits * (1 if seed % 2 else 9), labels)
        figures = [value for _, value in found if isinstance(value, Measure)]
        figures += [v for one in found.classes for _, v in one if isinstance(v, Measure)]
        for figure in figures:
            if figure.value is not None:
                assert figure.low is not None
                assert figure.high is not None
                assert figure.low <= figure.value <= figure.high


def test_a_perfect_model_has_intervals_all_the_same() -> None:
    labels = torch.arange(30) % 3
    found = judgment_of(torch.eye(3)[labels] * 20, labels)
    for name in ("accuracy", "macro_f1", "macro_auroc", "macro_precision", "balanced_accuracy"):
        figure = getattr(found, name)
        assert figure.value == pytest.approx(1)
        assert figure.low is not None
        assert 0.5 < figure.low < 0.95, name


def test_a_class_without_images_is_left_out_of_the_means() -> None:
    logits = torch.tensor([[2.0, 0, 1], [0, 2.0, 1], [0, 1, 2.0]])
    found = judgment_of(logits, torch.tensor([0, 1, 0]))
    assert found.classes[2].support == 0
    assert found.classes[2].predicted == 1
    assert found.balanced_accuracy.value == pytest.approx(0.75)
    assert found.classes[2].auroc == Measure()


def test_predictions_that_are_no_numbers_are_counted_apart() -> None:
    logits, labels = predictions(40, 3, seed=1)
    sound = tally_of(logits, labels)
    logits = torch.cat([logits, torch.tensor([[float("nan"), 0, 0], [float("inf"), 0, 0]])])
    found = tally_of(logits, torch.cat([labels, torch.tensor([0, 1])]))
    assert found.not_finite == 2
    assert found.images == 40
    assert np.array_equal(found.histograms, sound.histograms)
    assert np.array_equal(found.reliability, sound.reliability)


def test_a_tally_is_the_sum_of_its_parts_to_the_last_digit() -> None:
    logits, labels = predictions(500, 6, seed=2)
    whole = tally_of(logits, labels)
    for cuts in ([100, 400], [1, 249, 250]):
        parts = zip(logits.split(cuts), labels.split(cuts), strict=True)
        tallies = [tally_of(*part) for part in parts]
        added = Tally(
            rows=merge_rows([tally.rows for tally in tallies]),
            histograms=sum((tally.histograms for tally in tallies[1:]), tallies[0].histograms),
            reliability=sum((tally.reliability for tally in tallies[1:]), tallies[0].reliability),
            sums=sum((tally.sums for tally in tallies[1:]), tallies[0].sums),
        )
        names = [str(n) for n in range(6)]
        assert judge(added, names) == judge(whole, names)


def test_thousands_of_classes_take_bounded_memory() -> None:
    logits, labels = predictions(50, 20_000, seed=3)
    tally = tally_of(logits, labels)
    assert tally.histograms.nbytes <= 64 << 20
    assert tally.images == 50
