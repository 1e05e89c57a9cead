"""Saving beside training, on a GPU."""

import time

from bench.gpu.section import Result, Setting
from bench.gpu.tools import ahead, alone, engine_of, noise, plans_of, seconds_per, wait_for
from bench.learners import manifest_of
from worker.checkpoint.background_thread import Background
from worker.checkpoint.commit import CommitName
from worker.checkpoint.saver_process import Saver
from worker.checkpoint.snapshot import room_for_training, take_snapshot
from worker.model.backbone import build_backbone
from worker.model.rate_groups import assign
from worker.store import open_store

_ADAMW = manifest_of([{"match": "*"}], name="adamw")


def checkpoints(setting: Setting) -> Result:
    """Measure how long a copy to the host blocks training, and the steps while it is written."""
    savers = {}  # forked before CUDA starts
    for name, _, side in plans_of(setting):
        backbone = build_backbone(name, 1000, 0, side)
        groups = assign(backbone.layout, _ADAMW.optimizer, 1)
        room = room_for_training(backbone.model, groups, _ADAMW)
        savers[name] = Saver(open_store(str(setting.folder / "saved")), room)
    found: Result = {}
    with alone(setting):
        for name, images, side in plans_of(setting):
            found[name] = _saved(setting, savers[name], name, images, side)
            savers[name].close()
    return found


def _saved(setting: Setting, saver: Saver, name: str, images: int, side: int) -> Result:
    background, blocked, during = Background(), [], []
    engine = engine_of(setting, name, side)
    step = ahead(engine, noise(setting, images, side), images)
    began = time.perf_counter()
    ready = background.submit(lambda: saver.host.prepare(engine.device))
    alone_pace = images / seconds_per(setting, step)
    ready.result()
    prepared = time.perf_counter() - began
    for turn in range(4):
        step()
        engine.settle()
        wait_for(setting)
        began = time.perf_counter()
        snapshot = take_snapshot(engine.learner, saver.host, {"step": turn})
        blocked.append(round((time.perf_counter() - began) * 1e3, 1))
        at = CommitName(turn, 1)
        saving = background.submit(lambda at=at, s=snapshot: saver.write(at, s))  # type: ignore[misc, arg-type]
        began, steps = time.perf_counter(), 0
        while not saving.done():
            step()
            steps += 1
        wait_for(setting)
        during.append(steps * images / (time.perf_counter() - began))
        saving.result()
    size = sum(part.size for part in snapshot.parts(saver.host).values())
    return {
        "MB": round(size / 1e6),
        "blocked, ms": blocked,
        "ready after, s": round(prepared, 2),
        "steps alone": round(alone_pace),
        "steps meanwhile": [round(pace) for pace in during],
    }
