"""Help and wrong command lines."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import Run, run_watching_imports


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


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("train", "--epochs", "3", "x"), "'--epochs'; set train.epochs in the manifest"),
        (("plan", "x", "--learning-rate", "1"), "set optimizer.lr in the manifest"),
        (("train", "--batch-sise", "3", "x"), "set train.batch_size in the manifest"),
        (("train", "--epoch=3", "x"), "set train.epochs in the manifest"),
        (("train", "--weights", "w", "x"), "set model.weights in the manifest"),
        (("train", "--batch", "3", "x"), "set train.batch_size in the manifest"),
        (("train", "--precision", "bf16", "x"), "set train.precision in the manifest"),  # of two
        (("sweep", "--epochs", "3", "x"), "set train.epochs in the base job"),
        (("sweep", "--output", "o", "x"), "set output in the sweep's manifest"),
        (("sweep", "--trials", "3", "x"), "set trials in the sweep's manifest"),
        (("train", "--fly", "3", "x"), "No such option '--fly'."),
        (("pack", "a", "b", "--epochs", "3"), "No such option '--epochs'."),  # of no job
        (("train", "--nprocs", "3", "x"), "Did you mean '--nproc'?"),
    ],
)
def test_a_setting_given_as_an_option_is_told_its_place(
    run: Run, arguments: tuple[str, ...], message: str
) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert message in ended.err


def unread(redirection: str, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command to whose stdout a shell does this."""
    command = f"{redirection.format(shlex.join([sys.executable, '-m', 'worker', *arguments]))}"
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    return ended.returncode, ended.stderr


LEFT = "{} | true"  # as `| head` has left once it has its lines
CLOSED = "{} >&-"


@pytest.mark.parametrize("redirection", [LEFT, CLOSED])
def test_a_command_whose_output_nobody_reads_does_its_work(
    redirection: str, pictures: Path, tmp_path: Path
) -> None:
    assert unread(redirection, "schema") == (0, "")
    assert unread(redirection, "pack", "--help") == (0, "")
    code, log = unread(redirection, "pack", str(pictures), f"{tmp_path}/set")
    assert code == 0, log
    assert (tmp_path / "set" / "train" / "index.json").exists()
    code, _ = unread(redirection, "check", f"{tmp_path}/nosuch.yaml")
    assert code == 78, "a verdict stays what it is"


def test_a_reader_may_leave_a_terminal_of_ascii() -> None:
    assert unread("PYTHONIOENCODING=ascii {} | true", "schema") == (0, "")


def test_a_log_that_nobody_reads_does_not_stop_a_command(pictures: Path, tmp_path: Path) -> None:
    code, _ = unread("{} 2>&1 > /dev/null | true", "pack", str(pictures), f"{tmp_path}/set")
    assert code == 0
    assert (tmp_path / "set" / "train" / "index.json").exists()


def test_watching_ends_when_nobody_reads(tmp_path: Path) -> None:
    (tmp_path / "attempts").mkdir()
    (tmp_path / "attempts" / "000001.json").write_text("{}")
    code, _ = unread("timeout 60 {} | true", "status", "--watch", str(tmp_path))
    assert code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "M", "https://host/x.jpg"),
        ("plan", "nosuch.yaml"),
        ("check", "nosuch.yaml"),
        ("train", "nosuch.yaml"),
        ("sweep", "nosuch.yaml"),
        ("status", "nosuch/"),
        ("report", "nosuch/"),
        ("compare", "nosuch/", "none/"),
        ("audit", "nosuch/"),
        ("inspect", "https://host/"),
        ("index", "nosuch/"),
        ("pack", "nosuch/", "packed/"),
    ],
)
def test_a_wrong_address_is_told_before_anything_slow_is_imported(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    ended = run_watching_imports(*arguments, folder=tmp_path)
    assert ended.returncode == 78
    assert ended.stdout.splitlines()[-1] == "False"
