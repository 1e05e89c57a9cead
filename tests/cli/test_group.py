"""Help and wrong command lines."""

import os
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


def test_a_reader_that_has_left_is_no_failure() -> None:
    """As in `worker schema | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "worker", "schema"]
    with os.fdopen(writer, "w") as out:
        ended = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


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
