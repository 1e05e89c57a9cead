"""A report needs nothing, believes nothing and leaves out what is damaged."""

import json
import re
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.support.evaluations import evaluation_file
from tests.support.processes import Job, Run, Start, Write
from tests.support.stores import contents, keys
from worker.layout import progress_name
from worker.record.events import StepEvent
from worker.report import run_charts
from worker.report.compare import compare_runs
from worker.report.html_page import compare_page, run_page
from worker.report.read_run import read_run
from worker.store import Store, open_store

EVIL = '<script>alert("x")</script>'


class _Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")
        ]

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


def require_self_contained(text: str) -> _Page:
    page = _Page(text)
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    return page


@pytest.fixture(scope="module")
def history() -> list[dict[str, Any]]:
    """Two attempts, the second of which did two steps again."""
    events: list[dict[str, Any]] = []
    for attempt, (first, last) in enumerate(((0, 12), (10, 20)), start=1):
        begin = {"event": "start", "attempt": attempt, "step": first, "world_size": attempt}
        events.append({"time": 100.0 * attempt, **begin})
        for number in range(first + 1, last + 1):
            told = {
                "event": "step",
                "step": number,
                "epoch": 1,
                "loss": 1 / number,
                "accuracy": 0.5,
                "images_per_second": 10.0,
                "wait_ratio": 0.1,
                "rates": {EVIL: 1e-3 if number > 5 else 0.0, "head": 1e-2},
                "gradient_norms": {"head": 1.0},
            }
            events.append({"time": 100.0 * attempt + number, **told})
        told = {"event": "evaluation", "epoch": attempt, "step": last, "loss": 0.3}
        told |= {"accuracy": 0.5, "top5_accuracy": None}
        events.append({"time": 100.0 * attempt + 50, **told})
    return events


@pytest.fixture
def kept(history: list[dict[str, Any]], tmp_path: Path) -> Store:
    """A finished run whose names are meant to break a page."""
    store = open_store(str(tmp_path / "kept"))
    names = [EVIL, "$x^2$ & co"]
    plan = {
        "classes": names,
        "steps_per_epoch": 10,
        "groups": [
            {
                "name": EVIL,
                "match": ["*"],
                "rate_peak": 1e-3,
                "weight_decay": 0.0,
                "parameters": 10,
                "share": 1.0,
                "release_step": 5,
            }
        ],
    }
    pick = {"sample": EVIL, "label": 0, "predicted": 1, "confidence": 0.9, "jpeg": "AAAA"}
    pictures = {kind: [pick] for kind in ("wrong", "unsure", "suspects")}
    bad = {"id": 3, "reason": "altered", "text": EVIL}
    done = {"attempt": 2, "epochs": 2, "step": 20, "weights": {"step": 20, "accuracy": 0.5}}
    claim = {"identity": {"job": "ants"}, "manifest": {"job": "ants", "output": EVIL}}
    told = {"attempts/000002.json": claim, "done.json": done}
    told |= {"records/000002/plan.json": plan, "records/000002/environment.json": {"torch": EVIL}}
    told |= {"records/000002/evaluations/val-00000020.json": pictures}
    told |= {"records/000002/bad-samples/train.json": [bad]}
    for name, record in told.items():
        store.put(name, json.dumps(record).encode())
    data = evaluation_file([[0, 0, 3], [0, 1, 4], [1, 1, 7]], 2)
    store.put("records/000002/evaluations/val-00000020.npz", data)
    for attempt, begun in ((1, 0), (2, 1)):
        at = [number for number, event in enumerate(history) if event["event"] == "start"]
        events = history[at[begun] : at[begun + 1] if begun == 0 else None]
        lines = "".join(f"{json.dumps(event)}\n" for event in events)
        store.put(f"records/{attempt:06d}/history/000000.jsonl", lines.encode())
    return store


def test_a_page_needs_nothing_and_believes_nothing(kept: Store) -> None:
    page = require_self_contained(run_page(read_run(kept)))
    text = " ".join(page.text)
    for wanted in ("ants", "$x^2$ & co", EVIL, "42.86%", "altered", "attempt 2", "released"):
        assert wanted in text, wanted
    other = require_self_contained(compare_page([read_run(kept), read_run(kept)]))
    assert "validation accuracy" in " ".join(other.text)


def test_a_resumed_run_reads_as_one(kept: Store) -> None:
    run = read_run(kept)
    steps = [event.step for event in run.history.of(StepEvent)]
    assert steps == list(range(1, 21))
    assert [part.step for part in run.history.parts] == [12, 20]
    assert run.history.seconds == pytest.approx(2 * 50)
    assert dict(compare_runs([run, run]).results)["attempts"] == ["2", "2"]


@pytest.mark.parametrize("damage", [b"", b'{"ti'])
def test_what_is_damaged_is_left_out(
    kept: Store, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_charts, "draw", lambda chart: f"<svg>{chart.title}</svg>")
    kept.put(progress_name(2), b"{}")
    for key in keys(kept):
        before = kept.get(key)
        kept.put(key, damage)
        assert run_page(read_run(kept))
        kept.put(key, before)
    for key in keys(kept):
        if not key.startswith("attempts/"):
            kept.put(key, damage)
    assert "ants" in run_page(read_run(kept))


def test_an_attempt_that_was_killed_at_once_is_in_the_report(kept: Store) -> None:
    started = {"identity": {"job": "ants"}, "started": "2026-01-02T03:04:05+00:00"}
    kept.put("attempts/000003.json", json.dumps(started).encode())
    text = " ".join(_Page(run_page(read_run(kept))).text)
    assert "3 2026-01-02 03:04:05 - - - - - no end recorded" in re.sub(r"\s+", " ", text)


def test_a_page_goes_where_it_was_sent_and_breaks_nothing(
    run: Run, kept: Store, tmp_path: Path
) -> None:
    target, link = tmp_path / "target.html", tmp_path / "link.html"
    link.symlink_to(target)
    assert run("report", kept.uri, "--out", str(link)).code == 0
    assert link.is_symlink()
    assert "ants" in target.read_text()
    assert "<html" in run("report", kept.uri, "--out", "-").out
    for out in ("/dev/null", str(tmp_path)):
        ended = run("report", kept.uri, "--out", out)
        assert ended.code == 78, out
        assert "not a regular file" in ended.err


def test_many_classes_are_told_by_what_is_worst(kept: Store) -> None:
    count = 40
    plan = json.loads(kept.get("records/000002/plan.json"))
    plan["classes"] = [f"class-{number}" for number in range(count)]
    kept.put("records/000002/plan.json", json.dumps(plan).encode())
    matrix = [[label, label, 1 if label == 7 else 10] for label in range(count)] + [[7, 9, 9]]
    kept.put("records/000002/evaluations/val-00000020.npz", evaluation_file(matrix, count))
    text = " ".join(_Page(run_page(read_run(kept))).text)
    first = re.search(r"class-(\d+) 10 100.00% \(\S+ to \S+\) 10.00%", text)
    assert first
    assert first[1] == "7"
    assert "class-9 (9)" in text
    assert "Most confused true predicted images class-7 class-9 9" in re.sub(r"\s+", " ", text)
    assert "class-39 10" not in text


def test_the_report_of_a_real_run(
    run: Run, start: Start, write: Write, job: Job, tmp_path: Path
) -> None:
    job["optimizer"]["groups"][1]["freeze"] = {"epochs": 1}
    job["train"]["epochs"] = 40
    running = start("train", "--nproc", "2", write(job))
    running.wait_for("epoch 2/40")
    running.send(signal.SIGTERM)
    assert running.wait().code == 75
    early = run("report", job["output"], "--out", str(tmp_path / "early.html"))
    assert early.code == 0, early.err
    assert "stopped" in (tmp_path / "early.html").read_text()
    store = open_store(job["output"])
    done = max(int(key[8:16]) for key in keys(store) if key.startswith("commits/"))
    job["train"]["epochs"] = done // 5 + 1
    assert run("train", write(job)).code == 0
    before = contents(store)
    ended = run("report", job["output"], "--out", f"{tmp_path}/page.html")
    assert ended.code == 0, ended.err
    assert contents(store) == before
    page = require_self_contained((tmp_path / "page.html").read_text())
    text = " ".join(page.text)
    assert "* released" in text
    assert "stopped on request after step" in text
    for name in ("shufflenet_v2_x0_5", "learning rate", "gradient norm", "steps over time"):
        assert name in text
