"""`worker verify` names what differs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import Run
from tests.support.tars import SIZE, WHOLE, flip, labeled, put, tar


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda data: flip(data, SIZE + 1500), "1 sample altered or missing, the first at byte"),
        (lambda data: data[: 2 * SIZE], "bytes long, but"),
        (lambda data: data + b"x", "longer, but"),
        (lambda data: flip(data, len(data) - 5), "no sample is affected"),
        (lambda data: b"", "0 bytes long"),
        (None, "no such file"),
    ],
)
def test_verify_names_what_differs(
    harm: Callable[[bytes], bytes] | None, complaint: str, run: Run, tmp_path: Path
) -> None:
    put(str(tmp_path), a=WHOLE, b=tar(labeled(4, 4)))
    assert run("index", str(tmp_path)).code == 0
    sound = run("index", str(tmp_path), "--verify")
    assert (sound.code, sound.out) == (0, f"{tmp_path.as_uri()}/: 2 shards, all as indexed\n")
    (tmp_path / "a.tar").unlink() if harm is None else put(str(tmp_path), a=harm(WHOLE))
    ended = run("index", str(tmp_path), "--verify")
    assert ended.code == 65
    assert "1 bad shard:" in ended.err
    assert "a.tar: " in ended.err
    assert complaint in ended.err
