"""Image folders as they are found: splits, classes, what is left out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.folders import tree
from tests.support.pictures import write_pictures
from worker.errors import ConfigurationError
from worker.ingest.file_tree import open_tree
from worker.ingest.image_folder import find_splits


def make_empty_class(folder: Path) -> None:
    write_pictures(folder, 1)
    (folder / "green").mkdir()


def make_unknown_class(folder: Path) -> None:
    write_pictures(folder / "train", 1)
    write_pictures(folder / "val", 1)
    (folder / "val" / "green").mkdir()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "holds no class folders"),
        (lambda folder: (folder / "a").mkdir(parents=True), "holds no images"),
        (make_empty_class, "green: holds no images"),
        (make_unknown_class, "class 'green' is not in"),
    ],
)
def test_folders_that_cannot_be_packed(
    make: Callable[[Path], object], complaint: str, tmp_path: Path
) -> None:
    make(tmp_path / "photos")
    with pytest.raises(ConfigurationError, match=complaint):
        find_splits(open_tree(str(tmp_path / "photos")))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "valid", "test"), ["train", "val", "test"]),
        (("Training", "Testing"), ["train", "test"]),
        (("TRAIN", "dev"), ["train", "val"]),
        (("training", "validation", "eval"), ["train", "val", "test"]),
    ],
)
def test_splits_are_known_by_their_usual_names(
    names: tuple[str, ...], splits: list[str], tmp_path: Path
) -> None:
    tree(tmp_path, *(f"{name}/{animal}/0.png" for name in names for animal in ("cat", "dog")))
    found = find_splits(open_tree(str(tmp_path)))
    assert [split.name for split in found] == splits
    assert all(split.classes == ("cat", "dog") for split in found)


@pytest.mark.parametrize(
    ("paths", "complaint"),
    [
        (("data/train/a/0.png", "data/val/a/0.png"), "holds only the folder 'data', which"),
        (("train/a/0.png", "valid/a/0.png", "val/a/0.png"), "val and valid are both val splits"),
        (("train/a/0.png", "extra/a/0.png"), "extra: holds 1 image but is not a split like train"),
        (("val/a/0.png", "test/a/0.png"), "holds test, val but no train"),
        (("cafe\u0301/0.png", "caf\u00e9/0.png"), "the same class, 'caf\u00e9', as"),
        (("cat/0.png", "cat /0.png"), "the same class, 'cat', as 'cat' beside it"),
        (("c\x07at/0.png", "dog/0.png"), r"b'c\\x07at' holds the character U\+0007"),
        (("c\udce9at/0.png", "dog/0.png"), r"b'c\\xe9at' holds the character U\+DCE9"),
    ],
)
def test_what_could_be_meant_in_two_ways_is_refused(
    paths: tuple[str, ...], complaint: str, tmp_path: Path
) -> None:
    tree(tmp_path, *paths)
    with pytest.raises(ConfigurationError, match=complaint):
        find_splits(open_tree(str(tmp_path)))


def test_nothing_is_left_out_without_being_counted(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    tree(
        photos,
        *("train/cat/0.png", "train/dog/0.png", "train/dog/deep/1.png", "train/dog/.cache/2.png"),
        *("train/dog/.hidden.png", "train/loose.png", "train/.svn/x/3.png", "test/unlabelled.png"),
    )
    tree(tmp_path, "elsewhere/4.png", "elsewhere/deeper/5.png")
    (photos / "train/cat/more").symlink_to(tmp_path / "elsewhere")
    (photos / "train/cat/again").symlink_to(photos / "train/cat")
    (photos / "train/cat/gone.jpg").symlink_to("/nowhere/gone.jpg")
    (photos / "train/cat/notes.txt").write_text("of the cat")
    (photos / "README").write_text("of all")
    (split,) = find_splits(open_tree(str(photos)))
    assert sorted(file.key for file in split.files) == [
        *("cat/0", "cat/more/4", "cat/more/deeper/5", "dog/0", "dog/deep/1"),
    ]
    assert split.passed_over == {
        "broken link": 1,
        "cyclic link": 1,
        "hidden folder": 2,
        "hidden file": 1,
        ".txt file": 1,
        "suffixless file": 1,
        "unlabeled image": 2,
    }
    assert split.nested == 3
