"""The list as a file, its order, what is said about it, and its size."""

from __future__ import annotations

import csv
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.errors import FramepoolError, UserError
from features.videolist import Video, VideoList, append, load, problems, read, resolve, save
from features.videolist.names import refusal
from tests.features.test_videolist_contract import KINETICS, hmdb51, source, write

words = st.text(min_size=1, max_size=8)
good_paths = st.just("") | words.filter(lambda text: not refusal(text))


@st.composite
def video_lists(draw: st.DrawFn) -> VideoList:
    classes = draw(st.lists(words, min_size=1, max_size=4, unique=True))
    splits = draw(st.lists(words, max_size=3, unique=True))
    labels = st.sets(st.integers(0, len(classes) - 1)).map(lambda found: tuple(sorted(found)))
    sides = st.tuples(*[st.sampled_from(["train", "test", ""]) for _ in splits])
    video = st.builds(Video, words, good_paths, labels, sides, st.text(max_size=8))
    videos = draw(st.lists(video, max_size=5, unique_by=lambda video: video.id))
    return VideoList(tuple(videos), tuple(classes), tuple(splits), draw(st.booleans()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(video_lists())
def test_round_trip(tmp_path: Path, videos: VideoList) -> None:
    save(videos, tmp_path / "videos.csv")
    assert load(tmp_path / "videos.csv") == videos


def test_a_plain_csv_reader_can_read_it(tmp_path: Path) -> None:
    """As pandas.read_csv(path, comment="#") does: outside of quotes, # starts a comment wherever it is in a line."""
    example = hmdb51(tmp_path)
    videos = resolve(read(example), example.root)
    save(videos, tmp_path / "videos.csv")
    lines = (tmp_path / "videos.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert list(rows[0]) == ["id", "path", "labels", "group", "split 1", "split 2", "split 3"]
    assert [row["path"] for row in rows] == [video.path for video in videos.videos]
    assert [row["split 2"] for row in rows] == [video.splits[1] for video in videos.videos]
    assert any("#" in row["path"] for row in rows)
    assert not [line for line in lines[2:] if "#" in re.sub('"[^"]*"', "", line)]


def test_it_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = VideoList((Video("a", "a.mp4", (0,), ("train",), ""),), ("x",), ("1",))
    save(videos, tmp_path / "videos.csv")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("features.atomic.Disk.write", full)
    with pytest.raises(FramepoolError, match="No space left on device"):
        save(VideoList((), ("x",), ("1",)), tmp_path / "videos.csv")
    assert load(tmp_path / "videos.csv") == videos


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# framepool", "# other", "damaged video list: {}:1: expected # framepool video list 1, got # oth"),
        ('"classes"', "classes", "damaged video list: {}:2: expected # {classes, splits, multi_label}, got "),
        ('"split 1"', '"split 2"', "damaged video list: {}:3: expected id,path,labels,group,split 1, got id,path,"),
        ('"b"', '"a"', "damaged video list: {}:5: expected a row of a video, got a,,1,,test"),
        ('"1","",', '"2","",', "damaged video list: {}:5: expected a row of a video, got b,,2,,test"),
        ('"test"', '"tset"', "damaged video list: {}:5: expected a row of a video, got b,,1,,tset"),
        (',"test"', "", "damaged video list: {}:5: expected 5 columns, got b,,1,"),
        ("a.mp4", "../a.mp4", "damaged video list: {}:4: expected a path below the root, got ../a.mp4"),
        ('"test"', '"test', "damaged video list: {}: expected a CSV file, got unexpected end of data"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "videos.csv"
    save(
        VideoList((Video("a", "a.mp4", (0,), ("train",), ""), Video("b", "", (1,), ("test",), "")), ("x", "y"), ("1",)),
        path,
    )
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError) as error:
        load(path)
    assert str(error.value).startswith(message.replace("{}", str(path)))


def test_a_missing_list_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"video list is missing: .*videos.csv; run `framepool index` to make it"):
        load(tmp_path / "videos.csv")


@pytest.mark.parametrize("file", ["-0Zpw4uZ7bY.mp4", "~home.mp4", "|pipe.mp4", "12:30.mp4"])
def test_a_file_that_was_found_is_found_again(tmp_path: Path, file: str) -> None:
    """Whatever it begins with: below a root it is no option, no home and no protocol."""
    found = VideoList((Video("a", file, (0,), ("train",), ""), Video("b", "", (1,), ("test",), "")), ("x", "y"), ("1",))
    save(found, tmp_path / "videos.csv")
    assert load(tmp_path / "videos.csv") == found
    for away in (f"../{file}", f"/{file}"):
        save(replace(found, videos=(found.videos[0]._replace(path=away), found.videos[1])), tmp_path / "videos.csv")
        with pytest.raises(UserError, match=r"damaged video list: .*expected a path below the root"):
            load(tmp_path / "videos.csv")


def test_append_takes_the_order_of_the_old_and_the_rest_of_the_new() -> None:
    old = VideoList(tuple(Video(id, f"{id}.avi", (0,), ("train",), "") for id in "dcb"), ("x",), ("1",))
    new = VideoList(
        tuple(Video(id, "", (1,), ("", "test"), "g") for id in "abcd"[:3] + "e"), ("w", "x"), ("1", "2"), True
    )
    both = append(old, new)
    assert [video.id for video in both.videos] == ["a", "c", "b", "e"]  # a in the place of d, which is gone
    assert set(both.videos) == set(new.videos)
    assert (both.classes, both.splits, both.multi_label) == (new.classes, new.splits, new.multi_label)


@pytest.mark.parametrize(
    ("now", "order"),
    [
        ("abdefghij", "abjdefghi"),  # the last one takes the place of c
        ("abcdefgh", "abcdefgh"),
        ("abcdefg", "abcdefg"),
        ("bdfhj", "jbhdf"),
        ("fghij", "jihgf"),
        ("acdefghijk", "akcdefghij"),  # a new one takes it
        ("acdefghijkl", "akcdefghijl"),
        ("adefghijk", "akjdefghi"),
        ("xy", "xy"),
    ],
)
def test_lines_less_touch_their_own_places_and_the_last(now: str, order: str) -> None:
    def of(ids: str) -> VideoList:
        return VideoList(tuple(Video(id, "", (0,), ("train",), "") for id in ids), ("x",), ("1",))

    before, after = of("abcdefghij"), append(of("abcdefghij"), of(now))
    assert "".join(video.id for video in after.videos) == order
    assert append(after, of(now)) == after  # jobs come to the same order before and after it is written
    kept = {video.id for video in before.videos} & set(now)
    gone, new = len(before.videos) - len(kept), len(now) - len(kept)
    moved = [a for a, b in zip(before.videos, after.videos, strict=False) if a != b and a.id in kept]
    assert len(moved) <= max(0, gone - new)


def test_problems() -> None:
    def make(id: str, label: int, sides: tuple[str, str], group: str, path: str = "x.mp4") -> Video:
        return Video(id, path, (label,), sides, group)

    videos = (
        make("a", 0, ("train", "train"), "g1"),
        make("b", 0, ("test", "train"), "g1", ""),
        make("c", 1, ("test", "train"), "", ""),
        make("d", 0, ("train", "train"), ""),
    )
    assert problems(VideoList(videos, ("run", "sit"), ("1", "2"))) == [
        "2 of 4 videos have no file: b, c",
        "split 1: classes without training videos, 1 of them: sit",
        "split 2: no test videos",
        "split 1: groups in both training and test, 1 of them: g1",
    ]
    one = VideoList((videos[0], videos[3]._replace(splits=("test", "test"))), ("run",), ("1",))
    assert problems(one) == ["only one class: run; there is nothing to tell apart"]


@pytest.mark.parametrize("count", [20_000, pytest.param(300_000, marks=pytest.mark.slow)])
def test_memory_is_a_kilobyte_a_video(tmp_path: Path, count: int) -> None:
    """300,000 videos take less than 300 MB from the lists to the file."""
    rows = [f"label {n % 400},{n:011d},{n % 300},{n % 300 + 10}" for n in range(count)]
    train = write(tmp_path / "train.csv", KINETICS + "".join(f"{row},train\n" for row in rows[1000:]))
    val = write(tmp_path / "val.csv", KINETICS + "".join(f"{row},val\n" for row in rows[:1000]))
    del rows
    example = source(format="kinetics", root=tmp_path, train=train, val=val)
    tracemalloc.start()
    try:
        videos = resolve(read(example), tmp_path)
        save(append(videos, videos), tmp_path / "videos.csv")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(videos.videos) == count
    assert peak < 1000 * count


def test_times_of_labels_survive_and_nonsense_is_refused(tmp_path: Path) -> None:
    videos = (Video("a", "", (0, 1), ("train",), ""), Video("b", "", (), ("test",), ""))
    found = VideoList(videos, ("x", "y"), ("1",), True, {"a": ((0, 0.1, 1 / 3), (1, 2.0, 3.5)), "b": ()})
    path = tmp_path / "videos.csv"
    save(found, path)
    assert load(path) == found
    text = path.read_text()
    for broken in ("1 0.1 x", "2 0.1 0.2", "0 0.1"):
        path.write_text(text.replace("1 2.0 3.5", broken))
        with pytest.raises(UserError, match=r"damaged video list: .*:4: expected a row of a video"):
            load(path)
