"""What a run keeps of itself, and what people make of it: history, status, report."""

import base64
import io
import json
import math
import re
import signal
import socket
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.processes import Job, Run, Start, Write, in_fresh_process
from tests.support.stores import contents, keys, open_index
from worker.data.sample_keys import SampleNames
from worker.errors import InfrastructureError, StopRequested
from worker.launch.spawn import run_ranks
from worker.launch.topology import one_node
from worker.layout import progress_name
from worker.learn.worst_images import MAX_KEPT, Mistake, Worst, gather_worst
from worker.plots import Chart, Line, draw
from worker.ranks.process_group import process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.record import journal as journals
from worker.record.journal import Journal
from worker.record.progress import StepProgress
from worker.record.telemetry import StepReport, merged
from worker.report.compare import compare
from worker.report.history import read_history
from worker.report.html_page import compare_page, run_page
from worker.report.read_run import read_run
from worker.report.status import read_status
from worker.store import Store, open_store

EVIL = '<script>alert("x")</script>'


def step(number: int, loss: float = 0.0, wait: float = 0.0) -> StepProgress:
    return StepProgress(
        step=number,
        total_steps=10,
        epoch=1,
        loss=loss,
        accuracy=0.5,
        images_per_second=1.0,
        wait_ratio=wait,
        remaining_seconds=0.0,
        rates={"head": 1e-3},
        gradient_norms={"head": 1.0},
    )


# --- the journal -----------------------------------------------------------------------------


def test_what_cannot_be_written_now_is_written_later(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    journal = Journal(store, 1, leads=False)  # without its thread
    journal._leads = True
    journal.event("start", step=0, world_size=1)
    real, calls = store.put, []

    def fail(key: str, data: bytes) -> None:
        calls.append(key)
        raise InfrastructureError("down")

    store.put = fail  # type: ignore[method-assign]
    with pytest.raises(InfrastructureError):
        journal.flush()
    store.put = real  # type: ignore[method-assign]
    journal.event("step", step=1, loss=float("nan"))
    journal.flush()
    journal.flush()
    assert calls
    (piece,) = [key for key in keys(store) if "history" in key]
    events = [json.loads(line) for line in store.get(piece).splitlines()]
    assert [event["event"] for event in events] == ["start", "step"]
    assert events[1]["loss"] is None


def test_a_journal_writes_by_itself_and_says_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_FIRST_SECONDS", 0.02)
    store = open_store(str(tmp_path))
    journal = Journal(store, 4, leads=True)
    journal.begin(0, 10, 1)
    journal.stand(step=3)
    deadline = time.monotonic() + 10
    while not [key for key in keys(store) if "history" in key] or b'"step": 3' not in store.get(
        progress_name(4)
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    journal.close(StopRequested("asked to"), 5)
    end = json.loads(store.get(progress_name(4)))["end"]
    assert end == {"code": 75, "text": "asked to"}
    (part,) = read_history(store).parts
    assert part.end and part.end["code"] == 75


def test_a_journal_of_another_rank_writes_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    journal = Journal(store, 1, leads=False)
    journal.begin(0, 10, 1)
    journal.flush()
    journal.close(None, 5)
    assert not keys(store)


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(1, 64), st.floats(0.1, 9)), min_size=1))
def test_reports_are_merged_by_what_they_count(parts: list[tuple[float, int, float]]) -> None:
    reports = [
        StepReport(
            step=step(number, loss, min(1.0, loss / 9)),
            images=images,
            counted=images,
            seconds=seconds,
        )
        for number, (loss, images, seconds) in enumerate(parts)
    ]
    one = merged(reports)
    images = sum(images for _, images, _ in parts)
    seconds = sum(seconds for _, _, seconds in parts)
    assert one.step == len(parts) - 1
    assert one.loss == pytest.approx(sum(loss * count for loss, count, _ in parts) / images)
    assert one.images_per_second == pytest.approx(images / seconds)
    assert 0 <= one.wait_ratio <= 1 + 1e-9


def test_a_step_that_counted_nothing_has_no_loss() -> None:
    left_out = StepReport(step=step(2, math.nan), images=8, counted=0, seconds=1.0)
    assert math.isnan(merged([left_out]).loss)
    both = merged([StepReport(step=step(1, 3.0), images=8, counted=8, seconds=1.0), left_out])
    assert (both.step, both.loss, both.images_per_second) == (2, 3.0, 8.0)


# --- mistakes --------------------------------------------------------------------------------


def test_the_worst_of_all_batches_are_kept_in_order() -> None:
    labels = torch.arange(40) % 2
    logits = torch.nn.functional.one_hot(1 - labels, 2) * torch.arange(40)[:, None].float()
    logits[30] = -logits[30]  # right
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    images = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    images[38] = 38
    worst = Worst()
    for at in (0, 20):
        part = slice(at, at + 20)
        ids = torch.arange(40)[part]
        worst.add(losses[part], ids, logits[part], labels[part], images[part])
    kept = worst.found()
    assert [mistake.id for mistake in kept] == [n for n in range(39, 0, -1) if n != 30][:MAX_KEPT]
    assert all(mistake.label != mistake.predicted for mistake in kept)
    assert kept[0].confidence == pytest.approx(1)
    assert kept[1].image.unique().tolist() == [38]


def test_fewer_mistakes_than_are_kept_are_all_of_them() -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    worst = Worst()
    assert worst.found() == []
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    worst.add(torch.tensor([0.3, 1.3, 0.3]), torch.tensor([7, 8, 9]), logits, labels, images)
    assert [mistake.id for mistake in worst.found()] == [8]


def test_a_mistake_is_kept_with_its_picture_and_place(alone: None, dataset: Path) -> None:
    index = open_index(f"{dataset}/val")
    number = index.shards[0].samples + 1
    image = torch.zeros(3, 300, 300, dtype=torch.uint8)
    image[0] = 200
    (row,) = gather_worst(
        [Mistake(loss=1.5, id=number, label=0, predicted=1, confidence=0.9, image=image)], str
    )
    assert row["sample"] == str(number)
    named = SampleNames(open_store(f"{dataset}/val"), index)(number)
    assert re.fullmatch(rf"{index.shards[1].name}: sample 1 \(\w+/\w+\)", named)
    picture = Image.open(io.BytesIO(base64.b64decode(row["jpeg"])))
    assert picture.size == (128, 128)
    red, green, _ = picture.getpixel((60, 60))  # type: ignore[misc]
    assert red > 180 > 20 > green


def gather_mistakes(uri: str, folder: Path) -> None:
    """The mistakes of three ranks, of which the last has none."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        torch.set_num_threads(1)
        image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        own = range(rank.rank, 14, 2) if rank.rank < 2 else ()
        with process_group(rank, listener, StopFlag()):
            mistakes = [
                Mistake(
                    loss=number % 7, id=number, label=0, predicted=1, confidence=0.5, image=image
                )
                for number in own
            ]
            rows = gather_worst(sorted(mistakes, key=lambda m: -m.loss), str)
        (folder / str(rank.rank)).write_text(json.dumps([row["loss"] for row in rows]))

    assert (
        run_ranks(
            one_node(3),
            run,
            StopFlag(),
        )
        == 0
    )


def test_the_worst_of_all_ranks_come_together(dataset: Path, tmp_path: Path) -> None:
    in_fresh_process(gather_mistakes, f"{dataset}/val", tmp_path)
    losses = sorted([number % 7 for number in range(14)], reverse=True)[:MAX_KEPT]
    assert json.loads((tmp_path / "0").read_text()) == losses
    assert json.loads((tmp_path / "1").read_text()) == []
    assert json.loads((tmp_path / "2").read_text()) == []


# --- status ----------------------------------------------------------------------------------


@pytest.fixture
def claimed(tmp_path: Path) -> Store:
    """A run of one attempt that has said nothing yet."""
    store = open_store(str(tmp_path / "claimed"))
    store.put("attempts/000001.json", json.dumps({"identity": {"job": "ants"}}).encode())
    return store


def say(store: Store, **fields: Any) -> None:
    store.put(progress_name(1), json.dumps({"time": time.time(), **fields}).encode())


def test_a_status_tells_what_a_run_said_last(claimed: Store) -> None:
    assert read_status(claimed).state == "running"
    say(claimed, step=5, total_steps=20, remaining_seconds=60.0)
    found = read_status(claimed)
    assert (found.state, found.step, found.total_steps) == ("running", 5, 20)
    assert found.expected_end == pytest.approx(time.time() + 60, abs=5)
    for code, state in ((75, "stopped"), (76, "superseded"), (65, "failed (65)")):
        say(claimed, step=5, end={"code": code, "text": "why"})
        found = read_status(claimed)
        assert (found.state, found.text, found.expected_end) == (state, "why", None)


def test_a_run_that_says_nothing_is_silent(claimed: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    say(claimed, step=5)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 300)
    assert read_status(claimed).state == "silent"


def test_status_of_a_run_from_start_to_end(
    run: Run, start: Start, write: Write, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = run("status", job["output"])
    assert nothing.code == 78
    assert "holds no run" in nothing.err
    job["train"]["epochs"] = 30
    running = start("train", write(job))
    running.wait_for("epoch 2/30")
    watching = start("status", "--watch", job["output"])
    running.send(signal.SIGTERM)
    assert running.wait().code == 75
    stopped = json.loads(run("status", "--json", job["output"]).out)
    assert stopped["state"] == "stopped"
    assert stopped["step"] == stopped["committed"] >= 10
    job["train"]["epochs"] = 1 + stopped["step"] // 5
    assert run("train", write(job)).code == 0
    seen = watching.wait()
    assert seen.code == 0
    assert "done" in seen.out
    assert "attempt   2" in seen.out


# --- report ----------------------------------------------------------------------------------


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
    mistake = {"sample": EVIL, "label": 0, "predicted": 1, "confidence": 0.9, "loss": 3.0}
    bad = {"id": 3, "reason": "altered", "text": EVIL}
    done = {"attempt": 2, "epochs": 2, "step": 20, "weights": {"step": 20, "accuracy": 0.5}}
    matrix = io.BytesIO()
    np.save(matrix, np.array([[0, 0, 3], [0, 1, 4], [1, 1, 7]]))
    claim = {"identity": {"job": "ants"}, "manifest": {"job": "ants", "output": EVIL}}
    told = {"attempts/000002.json": claim, "done.json": done}
    told |= {"records/000002/plan.json": plan, "records/000002/environment.json": {"torch": EVIL}}
    told |= {"records/000002/mistakes/00000020.json": [mistake | {"jpeg": "AAAA"}]}
    told |= {"records/000002/bad-samples/train.json": [bad]}
    for name, data in told.items():
        store.put(name, json.dumps(data).encode())
    store.put("records/000002/confusion/00000020.npy", matrix.getvalue())
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
    steps = [event["step"] for event in run.history.of("step")]
    assert steps == list(range(1, 21))
    assert [part.step for part in run.history.parts] == [12, 20]
    assert run.history.seconds == pytest.approx(2 * 50)
    assert dict(compare([run, run]).results)["attempts"] == ["2", "2"]


@pytest.mark.parametrize("damage", [b"", b'{"ti'])
def test_what_is_damaged_is_left_out(kept: Store, damage: bytes) -> None:
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
    assert "3 2026-01-02 03:04:05 - - - - - without a word" in re.sub(r"\s+", " ", text)


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
        assert "no regular file" in ended.err


def test_many_groups_can_be_told_apart() -> None:
    lines = [Line(name=f"_block{n}", x=[0, 1], y=[n, n + 1], color=n) for n in range(40)]
    marks = [(n / 100, f"block {n} released") for n in range(40)]
    svg = draw(Chart(title="rates", x_label="step", lines=lines, marks=marks))
    names = re.findall(r">\u200b?(_block\d+)<", svg)
    assert 8 <= len(names) <= 12
    assert len(set(re.findall(r"stroke: (#[0-9a-f]{6})", svg))) >= 40
    assert svg.count("released") <= 7


def test_many_classes_are_told_by_what_is_worst(kept: Store) -> None:
    count = 40
    plan = json.loads(kept.get("records/000002/plan.json"))
    plan["classes"] = [f"class-{number}" for number in range(count)]
    kept.put("records/000002/plan.json", json.dumps(plan).encode())
    matrix = [[label, label, 1 if label == 7 else 10] for label in range(count)] + [[7, 9, 9]]
    data = io.BytesIO()
    np.save(data, np.array(matrix))
    kept.put("records/000002/confusion/00000020.npy", data.getvalue())
    text = " ".join(_Page(run_page(read_run(kept))).text)
    assert text.index("class-7 10 10.00% class-9 9") < text.index("class-0 10 100.00%")
    assert "Most confused true predicted images class-7 class-9 9" in re.sub(r"\s+", " ", text)
    assert "class-39" not in text


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
    for name in ("mobilenet_v3_small", "learning rate", "gradient norm", "steps over time"):
        assert name in text
