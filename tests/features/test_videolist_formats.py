"""Each format by its own rules, on lists as they are published."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from features.errors import UserError
from features.videolist import Video, VideoList, annotation_files, problems, read, resolve
from tests.features.test_videolist_contract import (
    CHARADES,
    HMDB51,
    KINETICS,
    charades,
    hmdb51,
    kinetics,
    source,
    ucf101,
    write,
)
from tests.media import SHARED, needs_shared


def refused(example: Any) -> str:
    with pytest.raises(UserError) as error:
        read(example)
    return str(error.value)


def by_id(found: VideoList) -> dict[str, Video]:
    return {video.id: video for video in found.videos}


@needs_shared
def test_ucf101_official_splits_cut_to_six_classes() -> None:
    root = SHARED / "ucf6"
    found = resolve(read(source(format="ucf101", root=root, lists=SHARED / "ucf101-splits")), root)
    assert len(found.videos) == 731
    names = ["Archery", "BasketballDunk", "HorseRace", "PlayingPiano", "PlayingViolin", "Surfing"]
    assert found.classes == tuple(names)
    counts = [Counter(video.splits[number] for video in found.videos) for number in range(3)]
    assert [(c["train"], c["test"], c[""]) for c in counts] == [(529, 202, 0), (527, 204, 0), (517, 214, 0)]
    assert all(video.path == f"{video.id}.mp4" and (root / video.path).is_file() for video in found.videos)
    assert all(found.classes[video.labels[0]] == video.id.split("/")[0] for video in found.videos)
    assert {video.group for video in found.videos} == {f"{name}/g{n:02d}" for name in names for n in range(1, 26)}
    assert problems(found) == []


def test_ucf101(tmp_path: Path) -> None:
    found = read(ucf101(tmp_path))
    assert found.classes == ("Archery", "HandstandPushups")  # those that occur, in the order of the index
    name = "HandstandPushups/v_HandStandPushups_g01_c01"
    assert by_id(found)[name] == Video(name, "", (1,), ("test", "train", "train"), "HandstandPushups/g01")


def test_ucf101_folders_and_files_are_matched_in_any_case(tmp_path: Path) -> None:
    example = ucf101(tmp_path)
    path = example.lists / "trainlist01.txt"
    path.write_text(path.read_text().replace("HandstandPushups/v_HandStand", "HandStandPushups/v_Handstand"))
    (example.lists / "testlist02.txt").write_text("Archery/v_Archery_g08_c01.avi\n")
    (example.lists / "testlist03.txt").write_text("Archery/v_Archery_g08_c01.avi\n")
    video = by_id(resolve(read(example), example.root))[
        "HandStandPushups/v_Handstandpushups_g08_c01".replace("dp", "dP")
    ]
    assert video.labels == (1,)
    assert video.path == "HandstandPushups/v_HandStandPushups_g08_c01.mp4"


OTHER = "label of another class: {}: expected 2 (Archery, its folder), got "


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("train", "Archery/a.avi", "line without a label: {}: expected <path> <class number>, got Archery/a.avi"),
        ("train", "Archery/a.avi 3", OTHER + "3 (HandstandPushups)"),
        ("train", "Archery/a.avi 4", OTHER + "4 (no class)"),
        ("test", "Archery/a.avi 1", OTHER + "1 (ApplyLipstick)"),
        (
            "test",
            "Archry/a.avi",
            "unknown class: {}: expected a class of classInd.txt, got Archry; did you mean 'Archery'?",
        ),
        (
            "test",
            "v_Archery_g02_c01.avi",
            "video without a class folder: {}: expected <class>/v_<class>_g<group>_c<clip>.avi, got v_Arch",
        ),
        (
            "test",
            "Archery/v_Archery_g01_c01.avi",
            "video on two sides: {}: expected train in split 2, as above, got test for Archery/v_Archery_g01_c01",
        ),
        (
            "test",
            "Archery/v_Archery_g08_c01.mp4",
            "video listed twice: {}: expected one line a video, got Archery/v_Archery_g08_c01",
        ),
        ("test", "Archery/../../a.avi", "entry refused: {}: expected a path below the root, got a way out of the root"),
        ("classes", "Walking", "malformed class: {}: expected <number> <class>, got Walking"),
        ("classes", "3 Walking", "class listed twice: {}: expected one line a class, got 3 Walking"),
    ],
)
def test_ucf101_says_what_is_wrong_and_where(tmp_path: Path, file: str, line: str, message: str) -> None:
    example = ucf101(tmp_path)
    path = example.lists / {"classes": "classInd.txt"}.get(file, f"{file}list02.txt")
    path.write_text(path.read_text() + line + "\n")
    place = f"{path}:{len(path.read_text().splitlines())}"
    assert refused(example).startswith(message.replace("{}", place))


def test_ucf101_class_file_in_another_order_or_shifted_is_caught(tmp_path: Path) -> None:
    """F30: the numbers of the training lists are checked against the names of the folders."""
    example = ucf101(tmp_path)
    for names in (
        ["Archery", "ApplyLipstick", "HandstandPushups"],
        ["x", "ApplyLipstick", "Archery", "HandstandPushups"],
    ):
        text = "".join(f"{number} {name}\n" for number, name in enumerate(names, 1))
        write(example.lists / "classInd.txt", text)
        assert refused(example).startswith(f"label of another class: {example.lists}/trainlist01.txt:1: expected ")


def test_hmdb51(tmp_path: Path) -> None:
    example = hmdb51(tmp_path)
    write(example.lists / "._kick_test_split1.txt", "what macOS leaves in archives")
    found = resolve(read(example), example.root)
    assert found.classes == ("kick", "kick_ball")  # the order of names; that of files is the other way round
    assert found.splits == ("1", "2", "3")
    kicks = [f"kick/{name.removesuffix('.avi')}" for name in HMDB51["kick"]]
    assert [video.id for video in found.videos[:3]] == kicks
    assert [video.splits for video in found.videos[:3]] == [
        ("train", "test", ""), ("train", "test", "train"), ("test", "train", "test")
    ]  # fmt: skip
    assert [video.group for video in found.videos] == [
        "kick/AMADEUS", "kick/AMADEUS", "kick/Pirates", "kick_ball/-_#20!_(a)[b]&c;", "kick_ball/Goal"
    ]  # fmt: skip
    assert found.videos[3].path == f"kick_ball/{HMDB51['kick_ball'][0]}"


@pytest.mark.parametrize("line", ["a.avi", "a.avi 3", "a.avi x", "1"])
def test_hmdb51_malformed_line(tmp_path: Path, line: str) -> None:
    example = hmdb51(tmp_path)
    path = write(example.lists / "kick_test_split2.txt", f"b.avi 1\n{line}\n")
    assert refused(example) == f"malformed line: {path}:2: expected <name>.avi <0, 1 or 2>, got {line}"


def test_hmdb51_without_lists(tmp_path: Path) -> None:
    example = source(format="hmdb51", root=tmp_path, lists=tmp_path / "lists")
    assert refused(example).startswith(
        f"folder of lists is missing: {tmp_path}/lists: got No such file or directory; put"
    )
    write(tmp_path / "lists/readme.txt", "")
    assert refused(example).startswith(f"no lists: {tmp_path}/lists: expected files <class>_test_split<1, 2 or 3>.txt")


def test_kinetics(tmp_path: Path) -> None:
    example = kinetics(tmp_path)
    found = resolve(read(example), example.root)
    assert found.classes == ("making tea", "massaging person's head")
    assert found.splits == ("val",)
    first = "making_tea/-0Zpw4uZ7bY_000010_000020"
    assert found.videos[0] == Video(first, f"{first}.mp4", (0,), ("train",), "-0Zpw4uZ7bY")
    assert found.videos[1].path == "massaging person's head/aAaAaAaAaAa_000000_000010.webm"
    assert found.videos[2].splits == ("test",)


def test_kinetics_with_a_test_list(tmp_path: Path) -> None:
    example = kinetics(tmp_path)
    path = write(tmp_path / "test.csv", KINETICS + "making tea,ccccccccccc,1,11,test\n")
    found = read(example.model_copy(update={"test": path}))
    assert found.splits == ("val", "test")
    assert [video.splits for video in found.videos] == [("train", "train")] * 2 + [("test", ""), ("", "test")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "making teas,d,1,11,val",
            "unknown label: {}: expected a label of train.csv, got making teas; did you mean 'making tea'?",
        ),
        ("making tea,d,1,11,train", "row of another file: {}: expected split val, got train"),
        ("making tea,d,1.5,11,val", "malformed time: {}: expected whole seconds, got '1.5' to '11'"),
        ("making tea,d,-1,11,val", "malformed time: {}: expected whole seconds, got '-1' to '11'"),
        ("making tea,,1,11,val", "malformed row: {}: expected a label and a YouTube id, got 'making tea', ''"),
        ("making tea,../x,1,11,val", "malformed row: {}: expected a label and a YouTube id, got 'making tea', '../x'"),
        ("making tea,\\x,1,11,val", "entry refused: {}: expected a path below the root, got a backslash in "),
        (
            "making tea,-0Zpw4uZ7bY,10,20,val",
            "video on two sides: {}: expected train in split val, as above, got test for making_tea/-0Z",
        ),
        ("making tea,d,1,11", f"row does not fit the header: {{}}: expected 5 columns ({KINETICS.strip()}), got 4"),
        (
            "making tea,d,1,11,val,x",
            f"row does not fit the header: {{}}: expected 5 columns ({KINETICS.strip()}), got 6",
        ),
        (
            '"making tea,d,1,11,val',
            "malformed CSV: {}: got unexpected end of data; look for a quote that is not closed",
        ),
    ],
)
def test_kinetics_says_what_is_wrong_and_where(tmp_path: Path, row: str, message: str) -> None:
    example = kinetics(tmp_path)
    text = example.val.read_text() + row
    example.val.write_text(text)
    assert refused(example).startswith(message.replace("{}", f"{example.val}:3"))


def test_kinetics_missing_column(tmp_path: Path) -> None:
    example = kinetics(tmp_path)
    write(example.val, "label,youtube-id,time_start,time_end,split,is_cc\n")
    expected, got = KINETICS.strip(), "label,youtube-id,time_start,time_end,split,is_cc"
    hint = "rename 'youtube-id'"
    assert (
        refused(example) == f"column 'youtube_id' is missing: {example.val}:1: expected {expected}, got {got}; {hint}"
    )


def more_kinetics(folder: Path) -> Any:
    """Five clips of three classes."""
    example = kinetics(folder)
    with example.train.open("a") as stream:
        stream.write("yoga,ccccccccccc,3,13,train\nyoga,ddddddddddd,3,13,train\n")
    with example.val.open("a") as stream:
        stream.write("yoga,eeeeeeeeeee,3,13,val\n")
    return example


def kept(example: Any, *texts: str) -> tuple[tuple[str, ...], list[str]]:
    """Classes, and the YouTube ids of the videos, with files of these texts as its subset."""
    paths = [write(example.train.parent / f"subset{k}.txt", text) for k, text in enumerate(texts)]
    found = read(example.model_copy(update={"subset": tuple(paths)}))
    assert all(video.id.startswith(found.classes[video.labels[0]].replace(" ", "_")[:4]) for video in found.videos)
    return found.classes, [video.group for video in found.videos]


def test_a_subset_of_kinetics_by_classes(tmp_path: Path) -> None:
    example = more_kinetics(tmp_path)
    classes, ids = kept(example, "yoga\r\nmaking_tea\n")
    assert classes == ("making tea", "yoga")
    assert ids == ["-0Zpw4uZ7bY", "ccccccccccc", "ddddddddddd", "bbbbbbbbbbb", "eeeeeeeeeee"]
    assert tmp_path / "subset0.txt" in annotation_files(
        example.model_copy(update={"subset": (tmp_path / "subset0.txt",)})
    )


@pytest.mark.parametrize(
    "names",
    [
        ("ddddddddddd\n-0Zpw4uZ7bY\nnot_there__\n", "eeeeeeeeeee\n"),
        ("yoga/ddddddddddd_000003_000013.mp4\n-0Zpw4uZ7bY_000010_000020\neeeeeeeeeee\n",),
    ],
)
def test_a_subset_of_kinetics_by_ids(tmp_path: Path, names: tuple[str, ...]) -> None:
    """As Mini-Kinetics comes: files of training and of validation ids, some of which are gone."""
    classes, ids = kept(more_kinetics(tmp_path), *names)
    assert classes == ("making tea", "yoga") and ids == ["-0Zpw4uZ7bY", "ddddddddddd", "eeeeeeeeeee"]


def test_a_subset_by_classes_and_ids(tmp_path: Path) -> None:
    _, ids = kept(more_kinetics(tmp_path), "yoga\nmaking tea\n", "aAaAaAaAaAa\nccccccccccc\nbbbbbbbbbbb\n")
    assert ids == ["ccccccccccc", "bbbbbbbbbbb"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "yoga\nmaking teas\n",
            "unknown class: {}:2: expected a class of the list, got making teas; did you mean 'mak",
        ),
        ("zzz\n", "a subset of nothing: {}: expected classes or YouTube ids of the list, got 1 ids, zzz is one"),
        ("\n", "empty list: {}: expected classes or ids, one a line, got nothing"),
        ("yoga\n", "cannot keep only these classes: {}: expected two classes of the list or more"),
    ],
)
def test_a_subset_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    example = more_kinetics(tmp_path)
    path = write(tmp_path / "subset.txt", text)
    assert refused(example.model_copy(update={"subset": (path,)})).startswith(message.replace("{}", str(path)))


def test_charades(tmp_path: Path) -> None:
    found = read(charades(tmp_path))
    assert found.multi_label
    assert found.classes == ("c000 Holding some clothes", "c002 Taking clothes")
    assert found.videos == (
        Video("46GP8", "", (0, 1), ("train",), "HR43"),
        Video("0IH69", "", (), ("train",), "6RE8"),
        Video("KRF68", "", (0,), ("test",), "YA10"),
    )
    assert found.actions == {
        "46GP8": ((1, 11.9, 21.2), (0, 0.0, 12.6), (1, 1.0, 2.0)),
        "0IH69": (),
        "KRF68": ((0, 22.6, 27.8),),
    }
    example = charades(tmp_path)
    write(example.test, CHARADES + "KRF68,YA10,Garage,6,7,Yes,A.,door,B.,c001 1 2;c002 22.60 27.80,30.33\n")
    only = read(example.model_copy(update={"only": ("c001 Putting clothes somewhere", "c002 Taking clothes")}))
    assert only.actions == {"46GP8": ((1, 11.9, 21.2), (1, 1.0, 2.0)), "KRF68": ((0, 1.0, 2.0), (1, 22.6, 27.8))}


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ("c003 0.0 1.0", "unknown class: {}: expected a class of the class list, got c003; did you mean 'c00"),
        ("c000 0.0 1.0;c001", "malformed action: {}: expected <class> <start> <end>, got c001"),
        ("c000 0.0 late", "malformed action: {}: expected <class> <start> <end>, in seconds, got c000 0.0 late"),
        ("c000 -1 2", "malformed action: {}: expected <class> <start> <end>, in seconds, got c000 -1 2"),
        ("c000 0 nan", "malformed action: {}: expected <class> <start> <end>, in seconds, got c000 0 nan"),
    ],
)
def test_charades_says_what_is_wrong_and_where(tmp_path: Path, actions: str, message: str) -> None:
    example = charades(tmp_path)
    write(example.test, f"{CHARADES}A,B,C,1,1,Yes,S,O,D,{actions},1.0\n")
    assert refused(example).startswith(message.replace("{}", f"{example.test}:2"))
