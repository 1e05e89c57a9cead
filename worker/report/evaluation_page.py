"""The text and the page of `worker evaluate`."""

import json
from collections.abc import Mapping
from typing import Any

from worker.apply.evaluation_record import EvaluationRecord
from worker.charts import table
from worker.judge.figure_text import share_text
from worker.learn.evaluation import Findings
from worker.logs import count
from worker.plain import plain
from worker.redaction import redacted
from worker.report.judgment_view import evaluation_view, figure_rows
from worker.report.read_evaluation import ShownEvaluation
from worker.report.record_schemas import PictureLists
from worker.report.render_page import render

_MAX_CLASSES = 20


def describe_evaluation(record: EvaluationRecord) -> str:
    """Return the figures and the classes with the lowest F1 as text."""
    judgment = record.judgment
    lines = [f"{name:<10} {text}" for name, text in _facts(record)]
    lines += ["", *table([("", "with 95% interval"), *figure_rows([judgment])])]
    worst = sorted(
        (one for one in judgment.classes if one.support), key=lambda one: one.f1.value or 0.0
    )
    rows = [
        (one.name, str(one.support), *map(share_text, (one.precision, one.recall, one.f1)))
        for one in worst[:_MAX_CLASSES]
    ]
    lines += ["", *table([("class", "images", "precision", "recall", "F1"), *rows])]
    if len(worst) > _MAX_CLASSES:
        lines.append(f"({len(worst) - _MAX_CLASSES} classes with a higher F1)")
    return "\n".join(lines)


def evaluation_page(
    record: EvaluationRecord, findings: Findings, pictures: Mapping[str, Any]
) -> str:
    """Return the HTML page of an evaluation.

    Args:
        record: Its record.
        findings: Its sums.
        pictures: The images to look at, by kind, as JSON data.
    """
    names = [one.name for one in record.judgment.classes]
    shown = ShownEvaluation(
        step=0,
        tally=findings.tally,
        outcomes=findings.outcomes,
        judgment=record.judgment,
        pictures=PictureLists.model_validate_json(json.dumps(plain(pictures))),
    )
    return render(
        "evaluation.html",
        title=record.dataset.rstrip("/").rpartition("/")[2],
        facts=_facts(record),
        figures=figure_rows([record.judgment]),
        view=evaluation_view(shown, names),
        bad_samples=[(text,) for text in record.bad_samples[:100]],
    )


def _facts(record: EvaluationRecord) -> list[tuple[str, str]]:
    left_out = ", ".join(f"{name}: {n:,}" for name, n in record.left_out.items())
    facts = {
        "model": redacted(record.model),
        "data set": redacted(record.dataset),
        "images": f"{record.judgment.images:,}",
        "left out": f"{left_out} (classes that the model does not know)" if left_out else "",
        "absent": ", ".join(record.absent[:10]),
        "bad": count(len(record.bad_samples), "sample") if record.bad_samples else "",
    }
    return [(name, text) for name, text in facts.items() if text]
