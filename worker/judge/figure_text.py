"""Figures as text, each with its 95% interval."""

from worker.judge.measure import Measure
from worker.manifest.training import Metric

METRIC_NAMES: dict[Metric, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "macro_auroc": "macro AUROC",
    "loss": "loss",
}


def share_text(figure: Measure) -> str:
    """Return a figure between 0 and 1 as percentages, with its interval."""
    if figure.value is None:
        return "-"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.2%}"
    return f"{figure.value:.2%} ({100 * figure.low:.1f} to {100 * figure.high:.1f})"


def number_text(figure: Measure) -> str:
    """Return a figure without an upper limit, such as a loss, with its interval."""
    if figure.value is None:
        return "-"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.4f}"
    return f"{figure.value:.4f} ({figure.low:.3f} to {figure.high:.3f})"


def metric_text(metric: Metric, figure: Measure) -> str:
    """Return the figure that `train.metric` names, with its interval."""
    return number_text(figure) if metric == "loss" else share_text(figure)
