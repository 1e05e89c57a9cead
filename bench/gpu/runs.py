"""Whole runs of `worker train`: their speed, and whether a resumed one ends as it should."""

import contextlib
import json
import os
import signal
import statistics
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from bench.gpu.section import Result, Setting


def pipeline(setting: Setting) -> Result:
    """Images per second of whole runs: by epoch, the median report after the first quarter."""
    plans: dict[str, dict[str, Any]] = {"resnet50": {}, "vit_b_16": {}, "resnet50, nvJPEG": {}}
    plans["resnet50, nvJPEG"] = {"data": {"decoder": "cuda"}}
    plans["resnet50, 64 images"] = {"batch_size": 64}
    plans["resnet50, 4 cores"] = {"cores": 4}
    plans["resnet50, 4 cores, scratch"] = {"cores": 4, "scratch": True}
    if setting.dry:
        plans = {"resnet18": {"batch_size": 16}, "resnet18, scratch": {"scratch": True}}
    found: Result = {}
    for name, plan in plans.items():
        side = 32 if setting.dry else 224
        manifest = _manifest(
            setting,
            name,
            backbone=name.split(",")[0],
            data={"image_size": side, **plan.get("data", {})},
            train={"epochs": 2, "batch_size": plan.get("batch_size", 256)},
        )
        code = _train(manifest, cores=plan.get("cores"), scratch=plan.get("scratch", False))
        found[name] = _paces(_history(manifest)) if code == 0 else {"exit code": code}
    return found


def _paces(rows: list[dict[str, Any]]) -> Result:
    """Return the pace by epoch: the second one may find on scratch what the first one decoded."""
    paces: Result = {}
    total = max(row["step"] for row in rows)
    for epoch in (1, 2):
        # Without what the start costs; by steps, as slow ones have more reports than fast ones.
        counted = [r for r in rows if r["epoch"] == epoch and r["step"] * 4 > total]
        speeds = [row["images_per_second"] for row in counted]
        paces[f"epoch {epoch}"] = round(statistics.median(speeds)) if speeds else None
    return paces


def resume(setting: Setting) -> Result:
    """Exit codes and weights of a run stopped and resumed, next to an uninterrupted one."""
    found: Result = {}
    for precision in ("fp32",) if setting.dry else ("fp32", "bf16"):
        train = {"epochs": 1, "batch_size": 16, "precision": precision, "ema": 0.9}
        names = [f"{kind}-{precision}" for kind in ("whole", "stopped")]
        whole, stopped = (
            _manifest(setting, name, "resnet18", data={"image_size": 32}, train=train)
            for name in names
        )
        codes = [_train(whole), _train(stopped, stop_at=2), _train(stopped)]
        same = _weights(whole) == _weights(stopped) if codes == [0, 75, 0] else None
        found[precision] = {"codes (0 75 0)": codes, "same bytes": same}
    return found


def _manifest(setting: Setting, name: str, backbone: str, **parts: dict[str, Any]) -> Path:
    job = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    body = {
        "version": 1,
        "job": job,
        "output": f"{setting.folder}/runs/{job}/",
        "data": {"train": f"{setting.folder}/tars/", **parts.pop("data", {})},
        "model": {"backbone": backbone},
        "optimizer": {"name": "adamw", "lr": 1e-3, "groups": [{"match": "*"}]},
        **parts,
    }
    path = setting.folder / f"{job}.yaml"
    path.write_text(json.dumps(body))
    return path


def _train(
    manifest: Path, *, stop_at: int | None = None, cores: int | None = None, scratch: bool = False
) -> int:
    """The exit code of `worker train`, in a fork; sent SIGTERM after step `stop_at`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if scratch:
        os.environ["WORKER_SCRATCH"] = str(manifest.parent / "scratch")
    from worker.cli import main
    from worker.train.epoch_steps import Steps

    finish = Steps._finish

    def finish_and_stop(self: Steps) -> None:
        finish(self)
        if self._attempt.state.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    if stop_at:
        Steps._finish = finish_and_stop  # type: ignore[method-assign]
    code: object = 1
    with contextlib.suppress(BaseException):
        try:
            main(["train", str(manifest)], prog_name="worker")
        except SystemExit as ended:
            code = ended.code
    os._exit(code if isinstance(code, int) else 0)


def _output(manifest: Path) -> Path:
    return Path(json.loads(manifest.read_text())["output"])


def _history(manifest: Path) -> list[dict[str, Any]]:
    rows = []
    for piece in sorted(_output(manifest).glob("records/*/history/*.jsonl")):
        rows += [json.loads(line) for line in piece.read_text().splitlines()]
    return [row for row in rows if row["event"] == "step"]


def _weights(manifest: Path) -> list[bytes]:
    data = (_output(manifest) / "final/model.safetensors").read_bytes()
    tensors = safetensors.torch.load(data)
    return [
        tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for name in sorted(tensors)
    ]
