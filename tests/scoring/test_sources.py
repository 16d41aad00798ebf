"""What is found in folders, tars and lists; and F29: what is refused, with its number, and nothing written."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from extract.config import Limits
from extract.samples import Job, samples
from extract.samplings import Uniform
from extract.sources import Clip, walk
from extract.span import Span
from features.errors import UserError
from features.outcome import Outcome
from tests.hostile import sound
from tests.media import write_video
from tests.scoring.world import add_member, tar_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources") / "clips"
    for name in ("b.mp4", "a/two.mkv", "a/one.avi"):
        write_video(folder / name, codec="mpeg4" if name.endswith("avi") else "libx264", seed=len(name))
    return folder


NAMES = ["a/one.avi", "a/two.mkv", "b.mp4"]


def files(folder: Path) -> list[tuple[str, Path]]:
    return [(f"./{name}", folder / name) for name in NAMES]


def refused(source: Path) -> dict[str, str]:
    return {clip.name: clip.refused.reason for clip in walk(source) if clip.refused is not None}


def test_a_folder_a_tar_and_a_list_name_the_same_videos(folder: Path, tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "x.tar", [("a", folder / "a"), ("b.mp4", folder / "b.mp4")])
    listed = tmp_path / "list.txt"
    listed.write_bytes("\ufeff./a/one.avi\r\n\r\na/two.mkv \nb.mp4".encode())
    assert [clip.name for clip in walk(folder)] == NAMES
    assert sorted(clip.name for clip in walk(tar)) == NAMES
    assert [clip.name for clip in walk(listed, folder)] == NAMES
    assert [clip.name for clip in walk(folder, None, ["*.mp4", "*.mkv"])] == ["a/two.mkv", "b.mp4"]
    (alone,) = walk(folder / "b.mp4")
    assert alone == Clip(str(folder), "b.mp4", folder / "b.mp4", top=f"{folder}/")
    below = {clip.key for clip in walk(folder / "a")}
    assert below == {clip.key for clip in walk(folder) if clip.name.startswith("a/")}, "from wherever it is seen"
    keys = {source: [clip.key for clip in walk(source, folder)] for source in (folder, tar, listed)}
    assert keys[folder] == keys[listed], "the same files, however they are found"
    assert len({*keys[folder], *keys[tar]}) == 6


def test_a_video_is_known_by_where_it_lies(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder, by another root: the same file is the same video, and another one is another."""
    other = shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "list.txt").write_text("b.mp4")
    (mine,), (theirs,) = (list(walk(tmp_path / "list.txt", root)) for root in (folder, other))
    assert mine.name == theirs.name and mine.key != theirs.key
    monkeypatch.chdir(folder)
    here = [clip.key for clip in walk(Path())]
    assert here == [clip.key for clip in walk(folder)]
    monkeypatch.chdir(other)
    assert not set(here) & {clip.key for clip in walk(Path())}


def test_what_could_not_be_read_is_another_video_once_it_can(folder: Path, tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "x.tar", files(folder)).read_bytes()
    (tmp_path / "list.txt").write_text("later.mp4")
    missing = list(walk(tmp_path / "list.txt"))
    cut_at = whole.rindex(b"b.mp4\0") + 600
    (tmp_path / "x.tar").write_bytes(whole[:cut_at])
    cut = list(walk(tmp_path / "x.tar"))
    shutil.copyfile(folder / "b.mp4", tmp_path / "later.mp4")
    (tmp_path / "x.tar").write_bytes(whole)
    for before, after in ((missing, list(walk(tmp_path / "list.txt"))), (cut, list(walk(tmp_path / "x.tar")))):
        known = [clip.key for clip in before if clip.media]
        assert len(known) < len(before) and all(clip.media for clip in after)
        assert [clip.key for clip in after][: len(known)] == known
        assert not {clip.key for clip in after[len(known) :]} & {clip.key for clip in before}


def test_a_damaged_archive_is_said_whatever_is_asked_for(folder: Path, tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "x.tar", files(folder)).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[: whole.index(b"./a/two.mkv")] + b"no header at all" * 64)
    found = list(walk(tmp_path / "x.tar", None, ["*.mp4"]))
    assert [clip.name for clip in found] == ["x.tar"]
    assert found[0].refused is not None and "archive damaged after 1 members" in found[0].refused.reason


def test_a_source_is_looked_at_before_the_first_video(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read source"):
        walk(tmp_path / "gone")
    (tmp_path / "x.tar.gz").touch()
    with pytest.raises(UserError, match="packed archive"):
        walk(tmp_path / "x.tar.gz")


def test_what_is_written_is_no_video(folder: Path, tmp_path: Path) -> None:
    top = shutil.copytree(folder, tmp_path / "top")
    for name in ("s.parquet/00000.parquet", "s.parquet.state/state.json"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("ours")
    skip = [Path(os.path.relpath(top)) / "s.parquet", top / "s.parquet.state"]
    assert [clip.name for clip in walk(top, None, (), skip)] == NAMES


def test_names_as_people_write_them(folder: Path, tmp_path: Path) -> None:
    """Spaces of other widths and joined emoji; a line break alone cannot be written down."""
    names = ["Bild 9.41\u202fPM.mp4", "動画\u3000 1.mp4", "a\xa0b.mp4", "👩\u200d💻.mp4"]
    for name in (*names, "a\nb.mp4"):
        shutil.copy(folder / "b.mp4", tmp_path / name)
    found = list(walk(tmp_path))
    assert len([clip for clip in found if clip.media]) == 4 and all(clip.name.isprintable() for clip in found)
    assert [clip.refused.reason for clip in found if clip.refused] == ["a control character"]
    listed = tmp_path.parent / "list.txt"
    listed.write_text("\n".join(names))
    assert {clip.key for clip in walk(listed, tmp_path)} == {clip.key for clip in found if clip.media}


def test_tars_that_were_joined_and_tars_that_are_no_videos(folder: Path, tmp_path: Path) -> None:
    one, two = (tar_of(tmp_path / f"{n}.tar", [(f"{n}.mp4", folder / "b.mp4")]) for n in "ab")
    both = tmp_path / "both" / "ab.tar"
    both.parent.mkdir()
    both.write_bytes(one.read_bytes() + two.read_bytes())
    assert refused(both)["ab.tar"].startswith("archive damaged after 1 members: more follows its end")
    (both.parent / "link.tar").symlink_to("ab.tar")
    assert refused(both.parent)["link.tar"] == "a link to a tar: give that as a source of its own"
    listed = tmp_path / "list.txt"
    listed.write_text("a.tar")
    assert refused(listed) == {"a.tar": "line 1: a tar: give it as a source of its own"}


def test_a_file_of_sound_is_no_list(tmp_path: Path) -> None:
    path = sound(tmp_path / "a.wav")
    assert [clip.media for clip in walk(path)] == [path]


def test_a_folder_as_deep_as_paths_go(tmp_path: Path) -> None:
    depth, here = 1500, os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("v.mp4").write_bytes(b"")
    finally:
        os.chdir(here)
    (found,) = walk(tmp_path)
    assert found.name == "d/" * depth + "v.mp4"
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # deeper than pytest goes to clean up


def test_a_member_decodes_as_the_file_does(folder: Path, tmp_path: Path) -> None:
    job = Job(Uniform(n=5), 32, 32, "bilinear", Limits())
    for clip in walk(tar_of(tmp_path / "x.tar", files(folder))):
        assert isinstance(clip.media, Span)
        ours, theirs = (list(samples(media, {0: job})) for media in (clip.media, folder / clip.name))
        assert ours[-1] == theirs[-1] and ours[-1][1].outcome == "ok"  # type: ignore[union-attr]
        for (_, mine), (_, own) in zip(ours[:-1], theirs[:-1], strict=True):
            assert mine[0] == own[0] and np.array_equal(mine[1], own[1])  # type: ignore[index]


def test_a_tar_in_a_folder_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    tar = tar_of(tmp_path / "deep" / "x.tar", files(folder))
    assert [(clip.source, clip.name) for clip in walk(tmp_path)] == [(str(tar), name) for name in NAMES]


HOSTILE = {
    "../../etc/passwd": "a way out of the root",
    "/etc/passwd": "an absolute path",
    "~/x.mp4": "a home folder",
    "pipe:0": "a protocol",
    "-i": "a leading -",
    "|cmd": "a pipe",
    "a\x1b[31m.mp4": "a control character",
    "a\nb.mp4": "a control character",
    "c:\\x.mp4": "a backslash",
    "inner.tar": "an archive in an archive",
    "bomb.ZIP": "an archive in an archive",
}


def test_hostile_members_are_refused_with_their_number(tmp_path: Path) -> None:
    tar_path = tmp_path / "hostile.tar"
    with tarfile.open(tar_path, "w") as tar:
        for name in HOSTILE:
            add_member(tar, name, b"data")
        add_member(tar, "soft", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add_member(tar, "hard", type=tarfile.LNKTYPE, linkname="-i")
        add_member(tar, "device", type=tarfile.BLKTYPE)
        add_member(tar, "fifo", type=tarfile.FIFOTYPE)
        add_member(tar, "folder", type=tarfile.DIRTYPE)
        add_member(tar, "fine.mp4", b"data")
    before = sorted(tmp_path.rglob("*"))
    found = list(walk(tar_path))
    assert [clip.name for clip in found if clip.media] == ["fine.mp4"]
    reasons = [clip.refused.reason for clip in found if clip.refused]
    assert reasons[: len(HOSTILE)] == [f"member {n}: {reason}" for n, reason in enumerate(HOSTILE.values(), 1)]
    assert [reason.split(": ")[1] for reason in reasons[len(HOSTILE) :]] == ["a link"] * 2 + ["not a regular file"] * 2
    assert all(clip.name.isprintable() for clip in found)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archive_that_lies_about_sizes(folder: Path, tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "whole.tar", files(folder)).read_bytes()
    last = (folder / "b.mp4").stat().st_size
    cut = tmp_path / "cut.tar"
    at = whole.rindex(b"./b.mp4") + 512
    cut.write_bytes(whole[: at + last // 2])
    assert refused(cut) == {
        "b.mp4": f"member 3: {last} bytes, but the archive ends before",
        "cut.tar": "archive damaged after 3 members: unexpected end of data",
    }
    assert [clip.name for clip in walk(cut) if clip.media] == NAMES[:2]


def test_damage_in_the_middle_is_said_and_not_taken_for_the_end(folder: Path, tmp_path: Path) -> None:
    data = bytearray(tar_of(tmp_path / "whole.tar", files(folder)).read_bytes())
    at = data.index(b"./a/two.mkv")
    data[at : at + 64] = b"\xff" * 64
    path = tmp_path / "damaged.tar"
    path.write_bytes(data)
    assert [clip.name for clip in walk(path) if clip.media] == NAMES[:1]
    (reason,) = refused(path).values()
    assert reason.startswith("archive damaged after 1 members: ")


@pytest.mark.parametrize("size", [-(1 << 20), 1 << 40])
def test_a_header_that_would_fill_the_memory_or_turn_back(tmp_path: Path, size: int) -> None:
    """A pax header of a terabyte, or of less than nothing (CVE-2025-8194)."""
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.XHDTYPE, size
    path = tmp_path / "header.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)
    (clip,) = walk(path)
    assert clip.refused == Outcome(outcome="undecodable", reason=clip.refused.reason if clip.refused else "")
    assert clip.refused is not None and "archive damaged after 0 members" in clip.refused.reason


def test_many_members_take_no_memory_each(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "many.tar"
    header = tarfile.TarInfo("x.mp4").tobuf()
    path.write_bytes(header * 5_000 + b"\0" * 1024)
    tracemalloc.start()
    assert sum(1 for _ in walk(path)) == 5_000
    assert tracemalloc.get_traced_memory()[1] < 3 << 20
    tracemalloc.stop()


def test_links_in_a_folder_are_followed_inside_it_only(folder: Path, tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "inside").mkdir(parents=True)
    (top / "real.mp4").write_bytes((folder / "b.mp4").read_bytes())
    os.symlink("real.mp4", top / "good.mp4")
    os.symlink(folder / "b.mp4", top / "out.mp4")
    os.symlink(top / "inside", top / "loop")
    os.symlink("nowhere", top / "to_nothing")
    os.mkfifo(top / "fifo.mp4")
    (top / "a\nb.mp4").write_bytes(b"x")
    found = {clip.name: clip.refused.reason if clip.refused else None for clip in walk(top)}
    assert found == {
        "a\\nb.mp4": "a control character",
        "fifo.mp4": "not a regular file",
        "good.mp4": None,
        "loop": "a link to what is no file",
        "out.mp4": "a link that leads out of the folder",
        "real.mp4": None,
        "to_nothing": "a link to what is no file",
    }


def test_lines_of_a_list_are_refused_with_their_number(folder: Path, tmp_path: Path) -> None:
    os.symlink(folder / "b.mp4", tmp_path / "link.mp4")
    listed = tmp_path / "list.txt"
    listed.write_text("../b.mp4\nnot_there.mp4\nlink.mp4\nhttp://x/y.mp4\n")
    assert refused(listed) == {
        "../b.mp4": "line 1: a way out of the root",
        "not_there.mp4": "line 2: no such file under the root",
        "link.mp4": "line 3: a link that leads out of the root",
        "http://x/y.mp4": "line 4: a protocol",
    }


def test_what_cannot_be_a_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read source: .*nowhere: got No such file"):
        list(walk(tmp_path / "nowhere"))
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(b"")
    with pytest.raises(UserError, match=r"packed archive: .*: expected a \.tar, got \.gz; unpack it"):
        list(walk(packed))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="expected a folder, a tar, a list or a video"):
        list(walk(tmp_path / "fifo"))


def test_a_span_reads_like_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    reference = io.BytesIO(bytes(range(10, 60)))
    with Span(path, 10, 50, "x.mp4").stream() as stream:
        assert stream.name == "member.mp4"
        for where, whence, count in ((0, 0, 7), (-3, 2, 9), (5, 0, 0), (2, 1, 100), (60, 0, 4)):
            assert stream.seek(where, whence) == reference.seek(where, whence)
            assert stream.read(count) == reference.read(count)
            assert stream.tell() == reference.tell()
        with pytest.raises(OSError, match="before the start"):
            stream.seek(-1)
