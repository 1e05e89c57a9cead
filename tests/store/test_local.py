"""Folders on local disk as stores."""

import os
from pathlib import Path
from typing import Any

import pytest

from worker.errors import ConfigurationError
from worker.store import ObjectMissing, open_store


def test_local_names_stay_below_the_root(tmp_path: Path) -> None:
    for name in ("../x", "a/../../x", "/etc/passwd"):
        with pytest.raises(ConfigurationError, match="must not lead outside"):
            open_store(str(tmp_path)).get(name)


def test_files_have_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        open_store(f"{tmp_path}/run").put("a/b", b"x")
        assert open_store(f"{tmp_path}/run").put_if_absent("a/c", b"x")
    finally:
        os.umask(before)
    for name in ("a/b", "a/c"):
        assert (tmp_path / "run" / name).stat().st_mode & 0o777 == 0o640


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ObjectMissing):
        open_store(str(tmp_path)).get("pipe")


def test_a_file_that_is_deleted_while_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    for name in "abc":
        store.put(name, name.encode())
    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        if path.name == "b":
            path.unlink(missing_ok=True)
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert [(info.key, info.size) for info in store.list()] == [("a", 1), ("c", 1)]


def test_a_write_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError):
        open_store(str(tmp_path)).put("folder", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_folders_that_are_opened_leave_no_descriptors(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("folder/object", b"x")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(ObjectMissing):
            store.get("folder")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.parametrize("address", ["~/runs/a/", "$HOME/runs/a/", "${SCRATCH}/a/", "~ada/a"])
def test_what_only_a_shell_expands_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="expanded by a shell, but not here"):
        open_store(address)


def test_a_folder_that_has_such_a_name_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$x").mkdir()
    open_store("$x").put("a", b"1")
    assert (tmp_path / "$x" / "a").read_bytes() == b"1"
