"""Names that strangers write, and the files that they may and may not lead to (F28, F29)."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from features.errors import UserError
from features.videolist import Video, VideoList, read, resolve
from features.videolist.names import refusal, video_id
from tests.features.test_videolist_contract import source, touch, write

HOSTILE = {
    "../../etc/passwd": "a way out of the root",
    "a/../../b.mp4": "a way out of the root",
    "..": "a way out of the root",
    "/etc/passwd": "an absolute path",
    "~/a.mp4": "a home folder",
    "~root": "a home folder",
    "file:" + "///etc/passwd": "a protocol",
    "http://example.org/a.mp4": "a protocol",
    "concat:a.mp4|b.mp4": "a protocol",
    "subfile,,start,0,end,9,,:a.mp4": "a protocol",
    "pipe:0": "a protocol",
    "C:a.mp4": "a protocol",
    "-i": "a leading -",
    "|cmd": "a pipe",
    "a\0.mp4": "a control character",
    "a\nb.mp4": "a control character",
    "a\x1b[31m.mp4": "a control character",
    "a\u2028b.mp4": "a control character",
    "..\\..\\a.mp4": "a backslash",
    "a\\b.mp4": "a backslash",
    ".": "no name",
    "./": "no name",
    "": "no name",
}


def a_list(*ids: str) -> VideoList:
    return VideoList(tuple(Video(id, "", (0,), ("train",), "") for id in ids), ("x",), ("1",))


def paths(root: Path, *ids: str) -> list[str]:
    return [video.path for video in resolve(a_list(*ids), root).videos]


def refused(root: Path, *ids: str) -> str:
    with pytest.raises(UserError) as error:
        resolve(a_list(*ids), root)
    return str(error.value)


@pytest.mark.parametrize("entry", HOSTILE)
def test_hostile_entries_are_refused_with_their_line(tmp_path: Path, entry: str) -> None:
    cell = entry.replace('"', '""')
    path = write(tmp_path / "list.csv", f'path,label\na.mp4,x\n"{cell}",x\n')
    with pytest.raises(UserError) as error:
        read(source(format="table", root=tmp_path, list=path))
    got = f"{HOSTILE[entry]} in {entry!r}"
    assert str(error.value) == f"entry refused: {path}:3: expected a path below the root, got {got}"
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("entry", "id"),
    [
        ("a b/c d.mp4", "a b/c d"),
        ("./a//b.MP4", "a/b"),
        ("a.b.c.webm", "a.b.c"),
        ("clip.0001", "clip.0001"),
        ("label/-0Zpw4uZ7bY_000001_000011.mp4", "label/-0Zpw4uZ7bY_000001_000011"),
        ("x/[a](b)!&;#.avi", "x/[a](b)!&;#"),
        ("at 12:30.mp4", "at 12:30"),
        ("x" * 1000 + ".avi", "x" * 1000),
        ("cafe\u0301.mp4", "caf\u00e9"),
    ],
)
def test_odd_names_are_taken(entry: str, id: str) -> None:
    assert video_id(entry, Path("l"), 1) == id


def test_dots_belong_to_the_name(tmp_path: Path) -> None:
    touch(tmp_path, "clip.v2.mp4", "clip.mkv", "a.b.webm", "u.mp4.avi", "x.raw")
    names = ("clip.v2", "clip.v2.avi", "clip", "a.b.avi", "u.mp4.mkv", "x.raw")
    ids = [video_id(name, Path("l"), 1) for name in names]
    assert paths(tmp_path, *ids) == ["clip.v2.mp4", "clip.v2.mp4", "clip.mkv", "a.b.webm", "u.mp4.avi", "x.raw"]


def test_stem_matches_whatever_the_container(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.mkv", "a/y.MP4", "z.webm", "bare", "a/x.txt", "a/x.jpg", "b/x.mp4")
    assert paths(tmp_path, "a/x", "a/y", "z", "bare", "a/gone", "gone/x") == [
        "a/x.mkv",
        "a/y.MP4",
        "z.webm",
        "bare",
        "",
        "",
    ]


def test_two_files_of_one_stem_are_both_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.mkv", "a/x.avi", "a/y.mp4")
    assert paths(tmp_path, "a/y") == ["a/y.mp4"]
    assert (
        refused(tmp_path, "a/x")
        == f"two files for one video: {tmp_path}/a: expected one, got 'x.avi' and 'x.mkv'; keep one"
    )


def test_case_is_a_last_resort(tmp_path: Path) -> None:
    """YouTube ids differ by case alone: a file that is listed as it is spelled is never another video's."""
    touch(tmp_path, "making tea/abC.mp4", "making tea/abc.mp4")
    assert paths(tmp_path, "making_tea/abC", "making_tea/abc", "Making_tea/ABC") == [
        "making tea/abC.mp4",
        "making tea/abc.mp4",
        "",
    ]
    assert refused(tmp_path, "making_tea/ABC").startswith("two files for one video")
    (tmp_path / "making tea/abC.mp4").unlink()
    assert paths(tmp_path, "making_tea/ABC") == ["making tea/abc.mp4"]
    got = "got 'making_tea/ABC' and 'making_tea/ABc'"
    assert refused(tmp_path, "making_tea/ABC", "making_tea/ABc").endswith(f"tea/abc.mp4: expected one, {got}")


def test_accents_match_in_any_form_and_twins_are_told_apart(tmp_path: Path) -> None:
    composed, split = "caf\u00e9", "cafe\u0301"
    assert unicodedata.normalize("NFC", split) == composed
    touch(tmp_path, f"{split}/{split}.mp4")
    assert paths(tmp_path, f"{composed}/{composed}") == [f"{split}/{split}.mp4"]
    touch(tmp_path, f"{split}/{composed}.mp4")
    got = r"got 'cafe\\u0301.mp4' and 'caf\\xe9.mp4'"
    assert got.replace("\\\\", "\\") in refused(tmp_path, f"{composed}/{composed}")
    path = write(tmp_path / "list.csv", f"path,label\n{composed}.mp4,x\n{split}.mp4,x\n")
    with pytest.raises(UserError, match=r"video listed twice: .*:3: expected one line a video"):
        read(source(format="table", root=tmp_path, list=path))


def test_links_stay_inside_the_root(tmp_path: Path) -> None:
    root, outside = touch(tmp_path / "root", "real/a.mp4"), touch(tmp_path / "root2", "secret.mp4")
    (root / "in.mp4").symlink_to("real/a.mp4")
    (root / "dangling.mp4").symlink_to("nowhere.mp4")
    (root / "out.mp4").symlink_to(outside / "secret.mp4")
    (root / "outfolder").symlink_to(outside)
    (root / "infolder").symlink_to("real")
    (root / "round.mp4").symlink_to("round.mp4")
    (root / "ring").symlink_to("ring")
    (tmp_path / "link").symlink_to("root")
    assert paths(root, "in", "dangling", "infolder/a", "ring/a") == ["in.mp4", "", "infolder/a.mp4", ""]
    assert paths(tmp_path / "link", "in", "real/a") == ["in.mp4", "real/a.mp4"]  # the root itself may be a link
    fix = "set root to a folder that holds the files"
    assert refused(root, "out") == f"link leads out of the root: {root}/out.mp4: got {outside}/secret.mp4; {fix}"
    assert refused(root, "outfolder/secret") == f"link leads out of the root: {root}/outfolder: got {outside}; {fix}"
    assert refused(root, "round") == f"link leads round in a circle: {root}/round.mp4"


def test_folders_are_no_videos(tmp_path: Path) -> None:
    touch(tmp_path, "a/frame.jpg", "b.mp4/frame.jpg", "c/frame.jpg", "c.mp4")
    for name, file in (("a", "a"), ("b", "b.mp4")):
        assert refused(tmp_path, name) == f"not a video: {tmp_path}/{file}: expected a file, got a folder"
    assert paths(tmp_path, "c") == ["c.mp4"]
    assert refused(tmp_path / "c.mp4", "c") == f"cannot read folder: {tmp_path}/c.mp4: got Not a directory"


def test_names_that_no_disk_can_hold_are_missing(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    assert paths(tmp_path, "x" * 1000, "x" * 1000 + "/a", "a/" * 3000 + "a", "a.mp4/b") == ["", "", "", ""]


def test_each_folder_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *(f"{folder}/{n}.mp4" for folder in "abc" for n in range(20)))
    read_folders, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: read_folders.append(path) or scandir(path))  # type: ignore[func-returns-value]
    resolve(a_list(*(f"{folder}/{n}" for folder in "abcd" for n in range(30))), tmp_path)
    assert sorted(read_folders) == [str(tmp_path), *(str(tmp_path / folder) for folder in "abc")]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("ab./\\~-|: \0\n\u0301") | st.characters(), max_size=12))
@example("\ud800")
def test_what_is_not_refused_stays_below_the_root(tmp_path: Path, entry: str) -> None:
    """Whatever is written in a list: its id is below the root, and resolving it finds nothing outside."""
    root = tmp_path / "root"
    touch(root, "a.mp4", "a/b.mp4")
    touch(tmp_path, "b.mp4")
    if refusal(unicodedata.normalize("NFC", entry)):
        with pytest.raises(UserError, match="entry refused"):
            video_id(entry, Path("l"), 1)
        return
    id = video_id(entry, Path("l"), 1)
    joined = os.path.normpath(os.path.join(root, id))
    assert joined.startswith(f"{root}/")
    assert "\0" not in id and "\n" not in id and "\\" not in id
    try:
        found = paths(root, id)[0]
    except UserError as error:
        assert "expected a file, got a folder" in str(error)
    else:
        assert found in ("", "a.mp4", "a/b.mp4")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=20))
@example("../b")
@example("/etc/passwd")
def test_resolving_alone_never_leaves_the_root(tmp_path: Path, id: str) -> None:
    """Even an id that no list would give leads nowhere: names are compared with what a folder holds."""
    root = touch(tmp_path / "root", "a.mp4")
    touch(tmp_path, "b.mp4")
    assert paths(root, id)[0] in ("", "a.mp4")
