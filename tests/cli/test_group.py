"""Help and wrong command lines."""

from tests.support.processes import Run


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
