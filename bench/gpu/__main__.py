"""Measure the product on one GPU, in at most eight minutes; `--dry` tries it out on the CPU.

python -m bench.gpu [--dry] [--seconds 465] [--only "steps" ...] [--out gpu.json]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.gpu import decode, runs, speed, state
from bench.gpu.section import Section, Setting, forked
from bench.photos import photos, write_tars
from worker.data.index_tars import index_tars
from worker.data.tar_source import find_tars

SECTIONS = (  # those of most worth first
    Section("machine", speed.machine, 30),
    Section("steps", speed.steps, 150),
    Section("waits", speed.waits, 60),
    Section("pipeline", runs.pipeline, 120),
    Section("beside decoding", decode.beside_decoding, 60),
    Section("decoding", decode.decoding, 40),
    Section("resume", runs.resume, 60),
    Section("evaluation", speed.evaluation, 40),
    Section("checkpoints", state.checkpoints, 40),
    Section("activations", speed.activations, 40),
    Section("exchange", speed.exchange, 20),
)
_SLOWER = 8  # what sections may take more on a CPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--seconds", type=float, default=465)
    parser.add_argument("--only", nargs="*", default=[section.name for section in SECTIONS])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(1)  # forks may use OpenMP only if this process has not
    deadline = time.monotonic() + options.seconds
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(Path(folder), options.dry)
        _make_data(setting)
        for section in SECTIONS:
            if section.name not in options.only:
                continue
            if options.dry:
                section = Section(section.name, section.measure, section.seconds * _SLOWER)
            found[section.name] = forked(section, setting, deadline)
            options.out.write_text(json.dumps(found, indent=1))
            print(f"{section.name}\n{json.dumps(found[section.name], indent=1)}", flush=True)


def _make_data(setting: Setting) -> None:
    """Shards of photographs; on a GPU each of them many times, as making them takes long."""
    pictures = list(photos(48 if setting.dry else 256))
    write_tars(setting.folder / "tars", pictures * (1 if setting.dry else 32))
    tars = find_tars(str(setting.folder / "tars"))
    index_tars(
        tars,
        None,
        "label",
        error_budget=0.0,
        threads=len(os.sched_getaffinity(0)),
        max_pixels=None,
        advance=lambda done: None,
    )


if __name__ == "__main__":
    main()
