"""`worker check`: a row and a remedy for each thing that a start needs."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Run, Write, run_watching_imports
from tests.support.proxy import Request, proxy
from tests.support.stores import keys
from worker.store import open_store


def rows(out: str) -> dict[str, tuple[str, str]]:
    """State and text by name."""
    found = re.findall(r"^(ok|warn|FAIL|-) +(\S.*?) {2,}(.*)$", out, re.MULTILINE)
    return {name: (state, text) for state, name, text in found}


@pytest.fixture
def remote(bucket: str, job: dict[str, Any]) -> dict[str, Any]:
    """The job with its output in the bucket."""
    return job | {"output": f"{bucket}/run/"}


def test_a_good_place_passes_and_nothing_is_left(
    run: Run, write: Write, remote: dict[str, Any], bucket: str
) -> None:
    open_store(bucket).put("job.yaml", Path(write(remote)).read_bytes())
    ended = run("check", f"{bucket}/job.yaml", "--nproc", "2")
    assert ended.code == 0, ended.out
    table = rows(ended.out)
    assert {state for state, _ in table.values()} == {"ok"}
    assert table["credentials"][1] == "from env"
    assert table["ranks"][1] == "2 in all, 6 images of each batch per rank"
    assert re.fullmatch(
        r"\d+ cores?; \d+ threads? in \d+ process(es)? of each rank will decode",
        table["processors"][1],
    )
    assert table["data.train"][1].startswith("52 samples of 2 classes in")
    assert "head fc" in table["model"][1]
    assert table["output: put if absent"][1] == "the second of two writers is refused"
    assert ended.out.endswith("all checks passed\n")
    assert keys(open_store(bucket)) == ["job.yaml"]


def test_each_fault_has_its_row_and_the_rest_is_looked_at(
    run: Run, write: Write, remote: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote["data"]["val"] = "s3://no-such-bucket/val/"
    monkeypatch.setenv("WORKER_SCRATCH", "/proc/no")
    monkeypatch.setenv("WORKER_METRICS_TEXTFILE", str(tmp_path / "missing"))
    ended = run("check", write(remote), "--nproc", "5")
    assert ended.code == 78
    table = rows(ended.out)
    assert table["ranks"][0] == "FAIL"
    assert "12 is not a multiple of the 5 ranks; start 3, 4 or 6" in table["ranks"][1]
    assert table["data.val"][0] == "FAIL"
    assert "no such bucket; correct the name" in table["data.val"][1]
    assert table["data.train"][0] == "ok"
    assert table["model"] == ("-", "not checked: the data cannot be used")
    assert table["scratch"][0] == "warn"
    assert table["metrics"][0] == "warn"
    assert table["output: delete"][0] == "ok"
    assert "2 of 19 checks failed, 2 warnings" in ended.out


def test_settings_of_the_place_are_checked_and_change_nothing(
    run: Run, write: Write, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_SCRACH", "/tmp")
    monkeypatch.setenv("WORKER_SERVICE_PORT", "80")  # of a Service that is called `worker`
    monkeypatch.setenv("WORKER_SCRATCH", f"{tmp_path}/none/yet")
    monkeypatch.setenv("WORKER_SCRATCH_GIB", "1")  # the machine of the tests may have no more
    table = rows(run("check", write(job)).out)
    wrong = "WORKER_SCRACH is not known; did you mean WORKER_SCRATCH?"
    assert table["environment"] == ("warn", wrong)
    assert table["scratch"][0] == "ok"
    assert "does not exist yet and will be created" in table["scratch"][1]
    assert not (tmp_path / "none").exists()
    monkeypatch.setenv("WORKER_SCRATCH", f"{tmp_path}/{'x' * 300}")
    monkeypatch.setenv("WORKER_GRACE_SECONDS", "30s")
    ended = run("check", write(job))
    assert rows(ended.out)["scratch"][0] == "warn"
    assert rows(ended.out)["environment"][0] == "FAIL"
    assert "1 of 18 checks failed" in ended.out, (
        "the cause once, not in every row that it is read for"
    )
    assert ended.code == 78


def test_a_bad_manifest_is_told_before_anything_slow_is_imported(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("version: 1\njob: x\nfast: true\n")
    ended = run_watching_imports("check", "job.yaml", folder=tmp_path)
    assert ended.returncode == 78
    *lines, last = ended.stdout.splitlines()
    assert last == "False"
    assert lines[1].startswith("FAIL  manifest")
    mistakes = [line.split(":")[0].strip() for line in lines[2:7]]
    assert mistakes == ["output", "data", "model", "optimizer", "train"]
    assert lines[-3].strip().startswith("fast: unknown key")
    assert rows(ended.stdout)["everything else"] == (
        "-",
        "not checked: the manifest cannot be used",
    )


def test_a_stop_at_the_very_end_does_not_make_a_failure_of_it(
    write: Write, job: dict[str, Any]
) -> None:
    """Interpreters that end drop their handlers, and unloading torch takes a second."""
    command = [sys.executable, "-m", "worker", "check", write(job)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any("checks" in line for line in process.stdout), "the last line"
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, 75)


def test_wrong_weights_and_groups_are_found(run: Run, write: Write, remote: dict[str, Any]) -> None:
    remote["optimizer"]["groups"] = [{"match": "layer9"}, {"match": "*"}]
    ended = run("check", write(remote))
    assert ended.code == 78
    assert "layer9" in rows(ended.out)["model"][1]


@pytest.mark.parametrize(
    ("refused", "row", "remedy"),
    [
        (lambda request: request.method == "PUT", "output: put, get", "access denied"),
        (lambda request: request.method == "DELETE", "output: delete", "access denied"),
        (
            lambda request: request.method == "GET" and "attempts" in request.path,
            "output: list",
            "access denied",
        ),
    ],
)
def test_every_right_is_tried(
    run: Run,
    write: Write,
    remote: dict[str, Any],
    s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[[Request], bool],
    row: str,
    remedy: str,
) -> None:
    with proxy(s3_endpoint) as server:
        server.plan = lambda request: "403" if refused(request) else None
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        ended = run("check", write(remote))
    assert ended.code == 78
    assert rows(ended.out)[row][0] == "FAIL"
    assert remedy in rows(ended.out)[row][1]


def test_a_store_without_conditional_put_trains_and_says_that_nothing_fences(
    run: Run,
    write: Write,
    remote: dict[str, Any],
    s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with proxy(s3_endpoint) as server:
        server.plan = lambda request: "501" if request.conditional else None
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        ended = run("check", write(remote))
        assert ended.code == 0
        assert rows(ended.out)["output: put if absent"] == (
            "warn",
            "the store has no conditional PUT (501): fencing is off; never start a job that is already running",
        )
        trained = run("train", write(remote))
        assert trained.code == 0, trained.err
        assert trained.err.count("attempts are not fenced off from each other") == 1
        assert run("train", write(remote)).code == 0


def test_a_store_that_does_not_answer_is_no_mistake_of_the_user(
    run: Run, write: Write, remote: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    ended = run("check", write(remote))
    assert ended.code == 69
    table = rows(ended.out)
    assert "cannot be reached" in table["output: list"][1]
    assert table["model"] == ("-", "not checked: the output cannot be used")
    assert table["output: delete"] == ("-", "not checked: storage cannot be used, see above")


@pytest.mark.parametrize("wrong", ["none", "line break"])
def test_credentials_that_are_wrong_are_one_failure(
    wrong: str, run: Run, write: Write, remote: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What depends on them is not looked at, and does not fail by the same sentence again."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
        if wrong == "line break":
            monkeypatch.setenv(name, "key\n")
    monkeypatch.setenv("HOME", "/nowhere")
    for manifest in (write(remote), "s3://bucket/job.yaml"):
        ended = run("check", manifest)
        assert ended.code == 78
        table = rows(ended.out)
        assert [name for name, (state, _) in table.items() if state == "FAIL"] == ["credentials"]
        assert table["devices"][0] == "ok"
        storage = [text for state, text in table.values() if state == "-"]
        assert "not checked: storage cannot be used, see above" in storage


def test_an_output_without_a_bucket_is_one_failure(
    run: Run, write: Write, remote: dict[str, Any]
) -> None:
    remote["output"] = "s3://nobody-has-this/run/"
    ended = run("check", write(remote))
    assert ended.code == 78
    table = rows(ended.out)
    assert (
        "create the bucket if it is to be written to (--create-bucket of `worker pack` or "
        in table["output: list"][1]
    )
    assert table["output: delete"] == ("-", "not checked: no such bucket")


def test_ranks_that_start_elsewhere(
    run: Run, write: Write, remote: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a batch script, which is not the place where the ranks start."""
    for name, value in {
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "4",
        "SLURM_JOB_NODELIST": "no-such-node[1-2]",
    }.items():
        monkeypatch.setenv(name, value)
    refused = run("check", write(remote))
    assert refused.code == 78
    assert "put `srun`" in rows(refused.out)["ranks"][1]
    ended = run("check", write(remote), "--ranks", "4")
    assert ended.code == 0, ended.out
    assert rows(ended.out)["rendezvous"][0] == "warn"
    assert "no-such-node1 does not resolve yet" in rows(ended.out)["rendezvous"][1]


def test_compile_needs_a_compiler(
    run: Run, write: Write, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job["train"]["compile"] = True
    monkeypatch.setenv("PATH", "/nowhere")
    for command in ("check", "train"):
        ended = run(command, write(job))
        assert ended.code == 78
        assert "train.compile: needs a compiler" in ended.out + ended.err


@pytest.mark.parametrize(
    "gateway", ["http://user:hunter2@gw", "http://gw:hunter2", "http://[::1", "user:hunter2@gw:1"]
)
def test_a_gateway_is_never_told(
    run: Run, write: Write, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, gateway: str
) -> None:
    monkeypatch.setenv("WORKER_PUSHGATEWAY", gateway)
    monkeypatch.setenv("MASTER_ADDR", "a" * 70)
    ended = run("check", write(job), "--ranks", "2")
    table = rows(ended.out)
    assert table["metrics"][0] in ("warn", "FAIL")
    assert table["rendezvous"][0] == "FAIL"
    assert "WORKER_PUSHGATEWAY" in table["metrics"][1]
    assert "hunter2" not in ended.out + ended.err
    assert "Traceback" not in ended.out + ended.err


def test_an_abort_that_a_hiccup_left_over_is_made_up_for(
    run: Run,
    write: Write,
    remote: dict[str, Any],
    s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKER_STORE_DEADLINE_SECONDS", "10")
    with proxy(s3_endpoint) as server:
        refused: list[str] = []

        def plan(request: Request) -> str | None:
            if request.method == "DELETE" and "uploadId" in request.path and not refused:
                refused.append(request.path)
                return "503"
            return None

        server.plan = plan
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        ended = run("check", write(remote))
    assert refused
    assert rows(ended.out)["output: uploads, abort"][0] == "ok"


def test_a_store_that_lists_no_uploads_is_one_to_know_of(
    run: Run,
    write: Write,
    remote: dict[str, Any],
    s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with proxy(s3_endpoint) as server:
        server.plan = lambda request: (
            "405" if request.method == "GET" and "uploads" in request.path else None
        )
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        ended = run("check", write(remote))
    assert ended.code == 0, ended.out
    state, text = rows(ended.out)["output: uploads, abort"]
    assert state == "warn"
    assert "uploads cannot be listed here" in text
