"""A pack that is killed at any instant, or shared by many, ends with the same bytes."""

import functools
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pictures import write_pictures
from tests.support.processes import Run, Start
from tests.support.sabotage import slow_units
from tests.support.stores import contents
from tests.support.tars import labeled, tar
from worker.store import open_store


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """300 pictures in six tars."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for n in range(6):
        (folder / f"{n:05d}.tar").write_bytes(tar(labeled(50, 50 * n)))
    return folder


OPTIONS = ("--val", "0.2", "--shard-size", "0.01", "--memory", "16")


def calm(run: Run, source: Path, dest: Path, *options: str) -> dict[str, bytes]:
    ended = run("pack", str(source), str(dest), *OPTIONS, *options)
    assert ended.code == 0, ended.err
    return contents(open_store(str(dest)))


@pytest.mark.parametrize("workers", ["1", "3"])
def test_any_number_of_processes_gives_the_same_bytes(
    workers: str, run: Run, tars: Path, tmp_path: Path
) -> None:
    one = calm(run, tars, tmp_path / "one", "--workers", "1")
    other = calm(run, tars, tmp_path / "other", "--workers", workers)
    assert one == other


def test_four_parts_give_the_same_as_one(run: Run, tars: Path, tmp_path: Path) -> None:
    expected = calm(run, tars, tmp_path / "calm")
    command = [sys.executable, "-m", "worker", "pack", str(tars), f"{tmp_path}/set", *OPTIONS]
    parts = [
        subprocess.Popen([*command, "--workers", "1", "--part", f"{n}/4"], stderr=subprocess.PIPE)
        for n in range(1, 5)
    ]
    for part in parts:
        _, log = part.communicate(timeout=120)
        assert part.returncode == 0, log.decode()
    assert contents(open_store(f"{tmp_path}/set")) == expected
    late = run("pack", str(tars), f"{tmp_path}/set", *OPTIONS, "--part", "2/4")
    assert late.code == 0
    assert "there is nothing to do" in late.out


def killed_at(number: int) -> None:
    """The process is killed right before, or in the middle of, its n-th write."""
    from worker.store.local import LocalStore

    real = LocalStore.put
    count = 0

    def put(self: LocalStore, key: str, data: bytes) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, key, data)

    LocalStore.put = put  # type: ignore[method-assign]


def test_twenty_kills_give_the_same_as_none(run: Run, tars: Path, tmp_path: Path) -> None:
    """Each at a random write after that at which the last one was killed."""
    expected = calm(run, tars, tmp_path / "calm")
    chance = random.Random(0)
    killed = 0
    while killed < 20:
        plan = functools.partial(killed_at, chance.randint(1, 6))
        ended = run("pack", str(tars), f"{tmp_path}/set", *OPTIONS, "--workers", "1", sabotage=plan)
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL
        killed += 1
    ended = run("pack", str(tars), f"{tmp_path}/set", *OPTIONS)
    assert ended.code == 0, ended.err
    assert killed >= 10
    assert contents(open_store(f"{tmp_path}/set")) == expected


def test_a_file_that_changes_between_the_passes_is_noticed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "photos", 4)
    ended = run(
        "pack", f"{tmp_path}/photos", f"{tmp_path}/set", "--workers", "1", sabotage=change_a_file
    )
    assert ended.code == 65, ended.err
    assert "red/000: changed while it was packed; pack again" in ended.err


def change_a_file() -> None:
    from worker.ingest.pack import Pack

    real = Pack.write

    def write(self: Pack, *arguments: object, **more: object) -> None:
        for unit in range(len(self.source.units)):
            for item in self.source.items(unit):
                if item.key == "red/000":
                    path = Path(item.place)
                    path.write_bytes(path.read_bytes() + b"x")
        real(self, *arguments, **more)  # type: ignore[arg-type]

    Pack.write = write  # type: ignore[method-assign]


def test_a_part_that_is_missing_is_waited_for_and_named(
    run: Run, tars: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "worker", "pack", str(tars), f"{tmp_path}/set", *OPTIONS]
    process = subprocess.Popen([*command, "--part", "1/2"], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    seen = ""
    while "waiting for the other parts: 3 of 6 units are done" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    process.kill()
    process.wait()
    process.stderr.close()


def test_another_pack_into_the_same_place_is_refused(run: Run, tars: Path, tmp_path: Path) -> None:
    plan = functools.partial(killed_at, 15)  # in the second pass
    one = ("pack", str(tars), f"{tmp_path}/set", *OPTIONS, "--workers", "1")
    assert run(*one, sabotage=plan).code == -signal.SIGKILL
    other = ("pack", str(tars), f"{tmp_path}/set", "--val", "0.5")
    refused = run(*other)
    assert refused.code == 78
    assert "another pack, of another source or with other options" in refused.err
    assert run(*other, "--overwrite").code == 0


def test_a_run_is_not_overwritten(run: Run, tars: Path, tmp_path: Path) -> None:
    attempt = tmp_path / "run" / "attempts" / "000001.json"
    attempt.parent.mkdir(parents=True)
    attempt.write_text("{}")
    refused = run("pack", str(tars), f"{tmp_path}/run", "--overwrite")
    assert refused.code == 78
    assert "holds a job (attempts/000001.json); choose another place" in refused.err


def test_nothing_of_an_old_set_is_taken_for_the_new_one(
    run: Run, tars: Path, tmp_path: Path
) -> None:
    pack = ("pack", str(tars), f"{tmp_path}/set")
    assert run(*pack).code == 0
    assert run(*pack, "--val", "0.3").code == 78
    assert run(*pack, "--val", "0.3", "--overwrite").code == 0
    assert run(*pack, "--test", "0.3", "--overwrite").code == 0
    left = [key for key in contents(open_store(f"{tmp_path}/set")) if "samples" not in key]
    assert sorted(re.sub(r"-[0-9a-f]{8}\.", ".", key) for key in left) == [
        f"{split}/{name}"
        for split in ("test", "train")
        for name in ("dataset.json", "index.json", "shard-000000.tar")
    ]


def test_files_of_the_users_are_left_alone(run: Run, tars: Path, tmp_path: Path) -> None:
    for name in ("shard-mine.tar", "shard-000000.tar", "shard-old/raw.tar", "train/shard-x.tar"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"mine")
    assert run("pack", str(tars), f"{tmp_path}/set").code == 0
    for name in ("shard-mine.tar", "shard-000000.tar", "shard-old/raw.tar", "train/shard-x.tar"):
        assert (tmp_path / "set" / name).read_bytes() == b"mine"


def test_a_split_whose_index_is_missing_is_completed(run: Run, tars: Path, tmp_path: Path) -> None:
    expected = calm(run, tars, tmp_path / "set")
    (tmp_path / "set" / "val" / "index.json").unlink()
    assert calm(run, tars, tmp_path / "set") == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_no_failure_and_the_same_command_resumes(
    number: signal.Signals, run: Run, start: Start, tars: Path, tmp_path: Path
) -> None:
    """As in an Indexed Job or an array, which would count any other code."""
    arguments = ("pack", str(tars), f"{tmp_path}/set", *OPTIONS, "--workers", "2")
    # The pack must not end before the signal.
    running = start(*arguments, sabotage=functools.partial(slow_units, 1.0))
    running.wait_for("reading")
    running.send(number)
    ended = running.wait()
    assert ended.code == 75, ended.err
    assert ended.err.count("stopped on request; the same command resumes") == 1
    assert run(*arguments).code == 0
