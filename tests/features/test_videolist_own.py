"""A folder per class, and a CSV of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.errors import UserError
from features.videolist import annotation_files, read
from tests.features.test_videolist_contract import folders, source, table, touch, write
from tests.features.test_videolist_formats import by_id, refused


def test_an_id_may_begin_with_a_dash_where_it_has_a_suffix(tmp_path: Path) -> None:
    """One in 64 of YouTube's does."""
    touch(tmp_path / "v", "-0Zpw4uZ7bY.mp4", "b.mp4")
    path = write(tmp_path / "list.csv", "path,label,split\n-0Zpw4uZ7bY.mp4,run,train\n./b.mp4,sit,train\n")
    found = read(source(format="table", root=tmp_path / "v", list=path))
    assert [v.id for v in found.videos] == ["-0Zpw4uZ7bY", "b"]


def test_folder_holds_out_whole_groups(tmp_path: Path) -> None:
    found = read(folders(tmp_path))
    assert found.classes == ("run", "sit")
    sides = {video.group: video.splits for video in found.videos}
    assert all(sides[video.group] == video.splits for video in found.videos)
    touch(tmp_path / "videos", "run/deep/run_g99.mp4")
    assert {v.id: v for v in found.videos}.items() < by_id(read(folders(tmp_path))).items()  # sides stay as lists grow


@pytest.mark.parametrize(
    ("train", "held", "split"),
    [
        ("Train", "Test", "test"),
        ("training", "validation", "val"),
        ("train", "valid", "val"),
        ("TRAIN", "testing", "test"),
    ],
)
def test_sides_by_other_names(tmp_path: Path, train: str, held: str, split: str) -> None:
    """They are no classes called train and validation."""
    root = touch(tmp_path / "v", f"{train}/run/a.mp4", f"{train}/sit/b.mp4", f"{held}/run/c.mp4")
    found = read(source(format="folder", root=root))
    assert found.splits == (split,) and found.classes == ("run", "sit")
    assert sorted(v.splits[0] for v in found.videos) == ["test", "train", "train"]
    touch(root, "val/run/d.mp4" if split == "val" else "test2/run/d.mp4")
    assert refused(source(format="folder", root=root)).startswith(f"folders mixed: {root}: ")


def test_folder_with_sides(tmp_path: Path) -> None:
    root = touch(tmp_path / "v", "train/run/a.mp4", "train/sit/b.mp4", "val/run/c.mp4", "test/sit/d.mp4")
    found = read(source(format="folder", root=root))
    assert found.splits == ("val", "test")
    assert {v.id: v.splits for v in found.videos} == {
        "train/run/a": ("train", "train"),
        "train/sit/b": ("train", "train"),
        "val/run/c": ("test", ""),
        "test/sit/d": ("", "test"),
    }
    touch(root, "walk/e.mp4")
    assert refused(source(format="folder", root=root)).startswith(
        f"folders mixed: {root}: expected only train, val, test, got 'walk'"
    )


def test_folder_names_what_a_workflow_watches(tmp_path: Path) -> None:
    """A new video changes the time of its folder, a new class that of the root; hidden folders are nobody's."""
    root = touch(tmp_path / "v", "run/far/a.mp4", "sit/b.mp4", ".cache/c.mp4")
    assert annotation_files(source(format="folder", root=root)) == [root, root / "run", root / "run/far", root / "sit"]
    with pytest.raises(UserError, match=r"cannot read folder: .*nowhere: got No such file or directory"):
        annotation_files(source(format="folder", root=tmp_path / "nowhere"))


def test_folder_says_what_is_wrong(tmp_path: Path) -> None:
    root = touch(tmp_path / "v", "run/a.mp4", "run/a.AVI")
    example = source(format="folder", root=root)
    assert (
        refused(example) == f"two files for one video: {root}: expected one, got 'run/a.AVI' and 'run/a.mp4'; keep one"
    )
    (root / "run/a.AVI").rename(root / "b.avi")
    assert refused(example) == f"video outside the class folders: {root}/b.avi: expected <class>/<video>"
    (root / "b.avi").unlink()
    (root / "sit").symlink_to(root)
    assert refused(example) == f"linked folder: {root}/sit: expected a folder of its own, got a link"
    (root / "sit").unlink()
    assert refused(example) == f"nothing to tell apart: {root}: expected two classes or more, got run"
    with pytest.raises(UserError, match=r"x.yaml: \$\.videos\.group: expected a regular expression with a group"):
        source(format="folder", root=root, group="g[0-9]+")


def test_table_options(tmp_path: Path) -> None:
    assert read(table(tmp_path)).splits == ("1", "2")
    path = write(tmp_path / "multi.csv", '"path","label",\n"a b.mp4"," stir ; pour ;",\nc.mp4,,\n./d//e.mp4,pour,,\n')
    classes = write(tmp_path / "classes.txt", "stir\nchop\npour\n")
    found = read(source(format="table", root=tmp_path, list=path, classes=classes, multi_label=True))
    assert found.classes == ("stir", "pour")
    assert {v.id: v.labels for v in found.videos} == {"a b": (0, 1), "c": (), "d/e": (1,)}
    assert found.splits == ("1",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,lable\n", "column 'label' is missing: {}:1: expected path,label, got path,lable; rename 'lable'"),
        ("path,label,fold\n", "unknown column: {}:1: expected path,label[,split...][,group], got fold"),
        ("path,label,split,split1\n", "split 1 twice: {}:1: got path,label,split,split1"),
        ("path,label,label\n", "column 'label' twice: {}:1: got path,label,label"),
        ("path,label,split\na,x,tran\n", "unknown side: {}:2: expected train, test or nothing, got tran; did you"),
        ("path,label\na,x;y\n", "several labels: {}:2: expected one, got x;y; set multi_label: true in the config"),
        ("path,label\na,\n", "no label: {}:2: expected a class name, got nothing"),
        ("path,label\na,x\n./a.mp4,y\n", "video of two classes: {}:3: expected x, got y"),
        ("path,label\na,x\na.mkv,x\n", "video listed twice: {}:3: expected one line a video, got a"),
        ("", "column 'path' is missing: {}:1: expected path,label, got nothing"),
        ("path,label,split../x\n", "unknown column: {}:1: expected path,label[,split...][,group], got split../x"),
        ("path,label\na,x\nb,x\n", "nothing to tell apart: {}: expected two classes or more, got x"),
        ("path,label\na,\"x\n\n\"y\n", "malformed CSV: {}:2: got ',' expected after '\"'; look for a quote"),
        ('path,label\na,x\nb,"y\nc,x\nd,x\n', "malformed CSV: {}:3: got unexpected end of data; look for a quote"),
        ("path,label\na,\"x\ty\"\n", "class name refused: {}: expected printable characters, got 'x\\ty'"),
    ],
)  # fmt: skip
def test_table_says_what_is_wrong_and_where(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "list.csv", text)
    assert refused(source(format="table", root=tmp_path, list=path)).startswith(message.replace("{}", str(path)))


def test_table_label_that_the_class_list_lacks(tmp_path: Path) -> None:
    path, classes = (
        write(tmp_path / "l.csv", "path,label\na,pour\nb,stirr\n"),
        write(tmp_path / "c.txt", "pour\nstir\n"),
    )
    message = f"unknown label: {path}:3: expected a class of {classes}, got stirr; did you mean 'stir'?"
    assert refused(source(format="table", root=tmp_path, list=path, classes=classes)) == message
