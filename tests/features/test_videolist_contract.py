"""What every format of video list promises. A new format adds one example and inherits the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from features.errors import UserError
from features.recipe import Config
from features.videolist import VideoList, annotation_files, append, load, problems, read, resolve, save
from features.videolist.config import VideoSource


class Dataset(Config):
    """As a dataset's config holds a source."""

    videos: Annotated[VideoSource, Field(discriminator="format")]


def source(**keys: Any) -> Any:
    """A source as it comes out of YAML."""
    return Dataset.parse(
        {"videos": {k: str(v) if isinstance(v, Path) else v for k, v in keys.items()}}, "x.yaml"
    ).videos


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def touch(root: Path, *names: str) -> Path:
    for name in names:
        write(root / name, "")
    root.mkdir(parents=True, exist_ok=True)
    return root


def ucf101(folder: Path) -> Any:
    names = ["Archery/v_Archery_g01_c01", "Archery/v_Archery_g08_c01"]
    names += ["HandstandPushups/v_HandStandPushups_g01_c01", "HandstandPushups/v_HandStandPushups_g08_c01"]
    write(folder / "lists/classInd.txt", "1 ApplyLipstick\n2 Archery\n3 HandstandPushups\n")
    for split in (1, 2, 3):
        test, train = (names[0::2], names[1::2]) if split == 1 else (names[1::2], names[0::2])
        train_lines = [f"{name}.avi {2 if 'Archery' in name else 3}\n" for name in train]
        write(folder / f"lists/trainlist0{split}.txt", "".join(train_lines))
        write(folder / f"lists/testlist0{split}.txt", "".join(f"{name}.avi\n" for name in test))
    touch(folder / "videos", *(f"{name}.mp4" for name in names))
    return source(format="ucf101", root=folder / "videos", lists=folder / "lists")


HMDB51 = {
    "kick_ball": ["-_#20!_(a)[b]&c;_kick_ball_f_cm_np1_le_med_0.avi", "Goal_kick_ball_f_cm_np1_le_med_1.avi"],
    "kick": [
        "AMADEUS_kick_f_cm_np1_ba_med_0.avi",
        "AMADEUS_kick_f_cm_np1_ba_med_1.avi",
        "Pirates_kick_u_nm_np1_fr_bad_2.avi",
    ],
}


def hmdb51(folder: Path) -> Any:
    flags = {"kick_ball": ("12", "21", "12"), "kick": ("112", "221", "012")}
    for name, clips in HMDB51.items():
        for split in (1, 2, 3):
            lines = [f"{clip} {flag} \n" for clip, flag in zip(clips, flags[name][split - 1], strict=True)]
            write(folder / f"lists/{name}_test_split{split}.txt", "".join(lines))
        touch(folder / "videos", *(f"{name}/{clip}" for clip in clips))
    return source(format="hmdb51", root=folder / "videos", lists=folder / "lists")


KINETICS = "label,youtube_id,time_start,time_end,split\n"


def kinetics(folder: Path) -> Any:
    train = 'making tea,-0Zpw4uZ7bY,10,20,train\n"massaging person\'s head",aAaAaAaAaAa,0,10,train\n'
    write(folder / "train.csv", KINETICS + train)
    write(folder / "val.csv", KINETICS + "making tea,bbbbbbbbbbb,7,17,validate\n")
    touch(folder / "videos", "making_tea/-0Zpw4uZ7bY_000010_000020.mp4", "making_tea/bbbbbbbbbbb_000007_000017.mkv")
    touch(folder / "videos", "massaging person's head/aAaAaAaAaAa_000000_000010.webm")
    return source(format="kinetics", root=folder / "videos", train=folder / "train.csv", val=folder / "val.csv")


CHARADES = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"


def charades(folder: Path) -> Any:
    write(folder / "classes.txt", "c000 Holding some clothes\nc001 Putting clothes somewhere\nc002 Taking clothes\n")
    actions = "c002 11.90 21.20;c000 0.00 12.60;c002 1.0 2.0"
    rows = f'46GP8,HR43,Hallway,6,7,Yes,"One, two.",food;stove,A person.,{actions},24.83\n'
    rows += '0IH69,6RE8,Bedroom,6,,Yes,A "quiet" one.,book,A person.,,30.25\n'
    write(folder / "train.csv", CHARADES + rows)
    write(folder / "test.csv", CHARADES + "KRF68,YA10,Garage,6,7,Yes,A.,door,B.,c000 22.60 27.80,30.33\n")
    touch(folder / "videos", "46GP8.mp4", "0IH69.mp4", "KRF68.mp4")
    keys = {name: folder / f"{name}.csv" for name in ("train", "test")}
    return source(format="charades", root=folder / "videos", classes=folder / "classes.txt", **keys)


def folders(folder: Path) -> Any:
    touch(folder / "videos", *(f"{name}/deep/{name}_g{n:02d}.mp4" for name in ("sit", "run") for n in range(12)))
    touch(folder / "videos", "frames.json", "run/notes.txt", "run/._hidden.mp4")
    return source(format="folder", root=folder / "videos", group="_(g[0-9]+)$")


def table(folder: Path) -> Any:
    rows = "kitchen/a.mp4,pour,train,test,anna\nkitchen/b.avi,stir,test,train,berta\nc.mkv,pour,,train,carla\n"
    write(folder / "list.csv", "path,label,split1,split2,group\n" + rows)
    touch(folder / "videos", "kitchen/a.mp4", "kitchen/b.webm", "c.mkv")
    return source(format="table", root=folder / "videos", list=folder / "list.csv")


FORMATS: dict[str, Callable[[Path], Any]] = {
    "ucf101": ucf101, "hmdb51": hmdb51, "kinetics": kinetics, "charades": charades, "folder": folders, "table": table,
}  # fmt: skip


def lists(example: Any) -> list[Path]:
    """The annotation files that hold text; a folder per class has none."""
    return [path for path in annotation_files(example) if path.is_file()]


@pytest.fixture(params=FORMATS)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return FORMATS[request.param](tmp_path)


def test_list_is_consistent(example: Any) -> None:
    found = read(example)
    assert len({video.id for video in found.videos}) == len(found.videos) > 1
    assert {label for video in found.videos for label in video.labels} == set(range(len(found.classes)))
    for video in found.videos:
        assert video.path == ""
        assert not video.id.endswith((".avi", ".mp4"))
        assert len(video.splits) == len(found.splits)
        assert set(video.splits) <= {"train", "test", ""}
        assert video.labels == tuple(sorted(set(video.labels)))
        assert found.multi_label or len(video.labels) == 1
    for number in range(len(found.splits)):
        assert {"train", "test"} <= {video.splits[number] for video in found.videos}
    assert read(example) == found


def test_every_video_is_found(example: Any) -> None:
    found = resolve(read(example), example.root)
    assert all((example.root / video.path).is_file() for video in found.videos)
    assert len({video.path for video in found.videos}) == len(found.videos)
    assert not [line for line in problems(found) if "no file" in line or "groups in both" in line]


def test_list_survives_its_file(example: Any, tmp_path: Path) -> None:
    for found in (read(example), resolve(read(example), example.root)):
        save(found, tmp_path / "videos.csv")
        assert load(tmp_path / "videos.csv") == found


def test_append_keeps_places(example: Any) -> None:
    found = read(example)
    old = VideoList(found.videos[:0:-1], found.classes, found.splits, found.multi_label)
    assert append(found, found) == found
    assert append(old, found).videos == (*old.videos, found.videos[0])


def test_annotation_files_are_those_that_are_read(example: Any) -> None:
    assert bool(lists(example)) == (example.format != "folder")
    for path in lists(example):
        text = path.read_bytes()
        path.unlink()
        if example.format == "hmdb51" and path.name.endswith("split1.txt"):
            path.with_name("other_test_split1.txt").write_bytes(b"a.avi 1\n")  # one of a class's three is missing
        with pytest.raises(UserError, match=r"annotation file is missing: .*README"):
            read(example)
        for other in path.parent.glob("other_*"):
            other.unlink()
        path.write_bytes(text)


def test_bytes_that_mean_nothing_change_nothing(example: Any) -> None:
    """A byte order mark, CRLF, blank lines, spaces at the ends."""
    found = read(example)
    for path in lists(example):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b" \r\n") + b"\r\n  \r\n")
    assert read(example) == found


def test_bytes_that_are_no_text_are_named(example: Any) -> None:
    for path in lists(example):
        before = path.read_bytes()
        path.write_bytes(before + b"\xff\xfe")
        line = before.count(b"\n") + 1
        with pytest.raises(UserError) as error:
            read(example)
        assert str(error.value) == f"not text: {path}:{line}: expected UTF-8, got byte 0xff"
        path.write_bytes(before)


def test_line_given_twice_is_named(example: Any) -> None:
    for path in lists(example):
        before = path.read_text()
        path.write_text(before + before.splitlines()[-1] + "\n")
        with pytest.raises(UserError, match="twice") as error:
            read(example)
        assert f"{path}:{before.count(chr(10)) + 1}" in str(error.value)
        path.write_text(before)


def test_empty_lists_stop(example: Any) -> None:
    for path in lists(example):
        if "class" in path.name.lower():
            continue
        path.write_text(path.read_text().splitlines()[0] + "\n" if path.suffix == ".csv" else "")
    for path in example.root.rglob("*.*"):
        path.unlink()
    with pytest.raises(UserError, match=r"empty list: .*: expected at least one video, got none"):
        read(example)


def test_missing_root_means_missing_files(example: Any, tmp_path: Path) -> None:
    if example.format != "folder":
        found = resolve(read(example), tmp_path / "nowhere")
        assert {video.path for video in found.videos} == {""}
        assert problems(found)[0].startswith(f"{len(found.videos)} of {len(found.videos)} videos have no file: ")


def test_unknown_key_names_the_nearest(example: Any) -> None:
    with pytest.raises(UserError, match=r"unknown key: x.yaml: \$\.videos\.rot; did you mean 'root'\?"):
        source(format=example.format, rot="a", **example.model_dump(exclude={"format"}, exclude_none=True))
