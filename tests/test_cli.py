"""The command line: help, packing, planning, the live line, log formats."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from torchvision.models import get_model as build_model

from tests.support.processes import Run, Write
from tests.support.stores import keys
from worker.store import open_store


def test_help_names_every_command_and_exit_code(run: Run) -> None:
    ended = run("--help")
    assert ended.code == 0
    for word in ("train", "plan", "pack", "audit", "demo", "schema", "65", "69", "75", "76", "78"):
        assert word in ended.out
    for command in ("train", "plan", "pack", "audit", "demo", "schema"):
        assert run(command, "--help").out.startswith(f"Usage: worker {command}")


def test_a_wrong_command_line_is_2(run: Run) -> None:
    assert run("train").code == 2
    assert run("train", "--nproc", "0", "x").code == 2
    assert run("fly").code == 2


def test_pack_and_plan(
    run: Run, write: Write, job: dict[str, Any], pictures: Path, bucket: str
) -> None:
    ended = run("pack", str(pictures), f"{bucket}/photos", "--shard-size", "0.012")
    assert ended.code == 0, ended.err
    assert f"{bucket}/photos/train/: 52 images of 2 classes in" in ended.out
    again = run("pack", str(pictures), f"{bucket}/photos")
    assert again.code == 78
    assert "holds a data set already" in again.err
    assert run("pack", str(pictures), f"{bucket}/photos", "--overwrite").code == 0

    job["data"]["train"], job["data"]["val"] = f"{bucket}/photos/train", f"{bucket}/photos/val"
    job["output"] = f"{bucket}/run"
    job["model"]["backbone"] = "efficientnet_b0"
    job["optimizer"]["groups"] = [
        {"match": "features.1", "scale": 0.05},
        {"match": ["features.2", "features.3"], "scale": 0.1},
        {"match": "head"},
        {"match": "features.0", "freeze": "always"},
        {"match": "*", "scale": 0.01},
    ]
    ended = run("plan", "--ranks", "2", write(job))
    assert ended.code == 0, ended.err
    lines = [re.sub(" +", " ", line) for line in ended.out.splitlines()]
    assert "steps 2 epochs of 5 = 10, 12 images each, 4 in the last of an epoch" in lines
    assert "classes 2: blue, red" in lines
    assert "features.1 features.1 5e-05 5e-05 1e-05 10 1,448 0.04% no" in lines
    assert "features.0 features.0 0 0 1e-05 3 928 0.02% always" in lines
    assert "head head 0.001 0.001 1e-05 2 2,562 0.06% no" in lines
    assert not [key for key in keys(open_store(bucket)) if key.startswith("run")]
    refused = run("plan", "--ranks", "5", write(job))
    assert refused.code == 78
    assert "12 is not a multiple of the 5 ranks; start 3, 4 or 6" in refused.err


def test_the_manifest_of_the_readme_draws_no_warning(
    run: Run, write: Write, job: dict[str, Any], tmp_path: Path
) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (manifest,) = re.findall(r"```yaml\n(version: 1\n.+?)```", text, re.DOTALL)
    own = YAML(typ="safe", pure=True).load(manifest)
    state = build_model("efficientnet_b0").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    own |= {"output": job["output"], "data": job["data"]}
    own["model"]["weights"] = f"{tmp_path}/weights.pth"
    own["train"]["batch_size"] = 13
    ended = run("plan", write(own))
    assert ended.code == 0, ended.err
    assert "warning" not in ended.out
    groups = [line.split()[0] for line in ended.out.splitlines() if line.startswith("features.")]
    assert {"features.1", "features.2+features.3"} <= set(groups)


def test_put_uploads_a_file_and_makes_the_bucket(run: Run, aws: None, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("version: 1\n")
    refused = run("put", f"{tmp_path}/job.yaml", "s3://put-bucket/jobs/")
    assert refused.code == 78
    assert "no such bucket; correct the name, or create it" in refused.err
    for _ in range(2):
        ended = run("put", f"{tmp_path}/job.yaml", "s3://put-bucket/jobs/", "--create-bucket")
        assert ended.code == 0, ended.err
    assert open_store("s3://put-bucket").get("jobs/job.yaml") == b"version: 1\n"
    assert "s3://put-bucket/jobs/job.yaml: 11 bytes" in ended.out
    assert run("put", f"{tmp_path}/job.yaml", f"{tmp_path}/there/other.yaml").code == 0
    assert (tmp_path / "there" / "other.yaml").read_text() == "version: 1\n"
    misnamed = run("put", f"{tmp_path}/job.yaml", "s3://My_Bucket/", "--create-bucket")
    assert misnamed.code == 78
    assert "My_Bucket is no valid name of a bucket; take 3 to 63 lowercase" in misnamed.err
    for path, complaint in ((f"{tmp_path}/gone", "no such file"), (tmp_path, "is a folder")):
        assert complaint in run("put", str(path), "s3://put-bucket/").err
    for address in ("s3://put-bucket", str(tmp_path)):
        assert "end it with a slash to put job.yaml there" in (
            run("put", f"{tmp_path}/job.yaml", address).err
        )


def test_an_index_in_the_folder_of_a_split_is_pointed_at(
    run: Run, write: Write, job: dict[str, Any]
) -> None:
    job["data"]["train"] = job["data"]["train"].removesuffix("train/")
    ended = run("plan", write(job))
    assert ended.code == 78
    assert re.search(
        r"index.json: no such object, but \S+/train/index.json is one; give", ended.err
    )


def test_models_with_a_similar_name_are_suggested(
    run: Run, write: Write, job: dict[str, Any]
) -> None:
    job["model"]["backbone"] = "efficientnet_bo"
    assert "did you mean efficientnet_b0 or efficientnet_b1" in run("plan", write(job)).err
    assert "did you mean efficientnet_b0?" in run("models", "efficentnet*").err


def test_the_schema_is_json(run: Run) -> None:
    assert json.loads(run("schema").out)["properties"]["train"]


def test_audit_without_a_ledger(run: Run, write: Write, job: dict[str, Any]) -> None:
    job["record"]["samples"] = False
    assert run("train", write(job)).code == 0
    ended = run("audit", job["output"])
    assert ended.code == 78
    assert "record: {samples: true}" in ended.err


def on_a_terminal(arguments: list[str], interrupted_at: str | None = None) -> tuple[int, str]:
    """Exit code and all output of a real `worker` process whose stderr is a terminal.

    Ctrl-C is pressed once it has written `interrupted_at`.
    """
    parent, child = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "worker", *arguments], stderr=child)
    os.close(child)
    output = b""
    while select.select([parent], [], [], 120)[0]:
        try:
            output += os.read(parent, 65536)
        except OSError:  # the other end is closed
            break
        if interrupted_at and interrupted_at.encode() in output:
            process.send_signal(signal.SIGINT)
            interrupted_at = None
    return process.wait(), output.decode()


def test_a_terminal_shows_a_live_line(write: Write, job: dict[str, Any]) -> None:
    code, output = on_a_terminal(["train", write(job)])
    assert code == 0, output
    line = r"\r\x1b\[K[█░]{10} step \d+/10  epoch \d  loss [\d.]+  acc [\d.]+%  \d+ img/s  left \d:\d\d"
    assert re.search(line, output)
    lines = re.split(r"\r?\n", output.replace("\r\x1b[K", ""))
    assert any("validation accuracy" in line for line in lines)
    assert "done: 10 steps" in output


def test_ctrl_c_is_acknowledged(write: Write, job: dict[str, Any]) -> None:
    job["train"]["epochs"] = 200
    code, output = on_a_terminal(["train", write(job)], interrupted_at="epoch 1/200")
    assert code == 75, output
    assert output.index("Ctrl-C again exits at once") < output.index("stopped on request after")


def test_a_terminal_that_is_lost_stops_with_everything_committed(
    write: Write, job: dict[str, Any]
) -> None:
    """The live line has nowhere to go then, and neither has the log."""
    job["train"]["epochs"] = 200
    manifest = write(job)
    pid, terminal = pty.fork()
    if not pid:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which `nohup` has ignored
        os.execv(sys.executable, [sys.executable, "-m", "worker", "train", manifest])
    store = open_store(job["output"])
    deadline = time.monotonic() + 120
    while not any(key.startswith("commits/") for key in keys(store)):
        assert time.monotonic() < deadline
        select.select([terminal], [], [], 0.1)
        os.read(terminal, 65536)
    os.close(terminal)  # the kernel sends SIGHUP
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 75
    newest = max(key for key in keys(store) if key.startswith("commits/"))
    progress = json.loads(store.get("records/000001/progress.json"))
    assert progress["end"]["code"] == 75
    assert int(newest.split("/")[1].split("-")[0]) == progress["step"]


def test_plain_lines_elsewhere(write: Write, job: dict[str, Any]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "train", write(job)], stderr=subprocess.PIPE, text=True
    )
    _, text = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "\x1b" not in text
    line = next(line for line in text.splitlines() if "step 1/10" in line)
    for word in ("epoch 1", "loss", "acc", "img/s", "left", "lr 0.0001 to 0.001"):
        assert word in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_start_up_is_heeded(
    number: signal.Signals, write: Write, job: dict[str, Any]
) -> None:
    """Importing torch takes seconds; a scheduler may stop the job meanwhile."""
    code = "import sys, time; print('up', flush=True); from worker.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", write(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    process.stdout.readline()
    import time

    time.sleep(1.0)
    process.send_signal(number)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 75, text
    assert "Traceback" not in text
