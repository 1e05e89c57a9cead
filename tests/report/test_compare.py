"""`worker compare`."""

import json
from typing import Any

from tests.support.processes import Job, Run, Write
from worker.report.compare import shown_setting


def test_a_setting_of_several_values_is_shown_like_the_others() -> None:
    shown = shown_setting({"WORKER_STALL_SECONDS": "8", "threads": [1, 2.0], "cap": None})
    assert shown == "WORKER_STALL_SECONDS 8, threads 1, 2, cap none"


def test_runs_are_compared(run: Run, write: Write, job: Job, tmp_path: Any) -> None:
    outputs = []
    for rate in (1e-3, 3e-3):
        job["output"] = f"{tmp_path}/run-{rate}/"
        job["job"] = f"rate-{round(rate * 1000)}"
        job["optimizer"]["lr"] = rate
        outputs.append(job["output"])
        assert run("train", write(job)).code == 0
    ended = run("compare", *outputs)
    assert ended.code == 0, ended.err
    rows = {line.split("  ")[0]: line.split() for line in ended.out.splitlines() if line}
    assert rows["optimizer.lr"][-2:] == ["0.001", "0.003"]
    assert rows["state"][-2:] == ["done", "done"]
    shares = [cell for cell in rows["best accuracy"] if cell.endswith("%")]
    assert [float(cell.rstrip("%")) for cell in shares] >= [50, 50]
    assert "data.train" not in ended.out
    full = json.loads(run("compare", "--json", *outputs).out)
    assert full[0]["result"]["steps"] == 10
    assert run("compare", outputs[0]).code == 2
    nothing = run("compare", str(tmp_path), outputs[0])
    assert nothing.code == 78
    assert "holds no run" in nothing.err
