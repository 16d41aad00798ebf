"""`framepool score`: the same rows wherever the videos are, equal to those of the cached road; resumed and refused."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import framepool
from extract.sources import Clip, walk
from extract.whole import Extraction
from features.errors import UserError
from features.outcome import NAMES
from features.store import read_shard, shards
from heads.results import read_predictions
from pipelines.scoring import machine
from pipelines.scoring.machine import Machine, Options
from tests.faults.world import contents
from tests.media import damaged_media, write_network, write_video
from tests.scoring import world
from tests.workflow.world import store

Call = Callable[[str], tuple[int, str]]


def by_video(out: Path) -> dict[str, dict[str, Any]]:
    rows = world.rows_of(out)
    found = {row["video"]: {k: v for k, v in row.items() if k != "source"} for row in rows}
    assert len(found) == len(rows)
    return found


def close(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> None:
    """The same rows, scores to 1e-5."""
    assert a.keys() == b.keys()
    for video, row in a.items():
        for name, value in row.items():
            if name in ("logits", "probabilities", "probability"):
                assert np.allclose(value or 0, b[video][name] or 0, atol=1e-5, rtol=0)
            else:
                assert value == b[video][name], (video, name)


def test_folder_tar_and_list_give_the_rows_of_the_cached_road(here: Path, call: Call) -> None:
    run = world.run_of("average")
    videos = sorted((here / "videos").rglob("*.avi"))
    names = [video.relative_to(here / "videos").as_posix() for video in videos]
    world.tar_of(here / "videos.tar", zip(names, videos, strict=True))
    (here / "list.txt").write_text("\n".join(reversed(names)))
    for source, out in (("videos", "f.parquet"), ("videos.tar", "t.jsonl"), ("list.txt --root videos", "l.parquet")):
        code, said = call(f"score {run} {source} --out {out} --logits --threads 1")
        assert code == 0 and f"{out}: 9 videos scored in" in said and "(9 ok)" in said, said
    folder = by_video(here / "f.parquet")
    assert list(folder) == names and len(folder) == 9
    close(folder, by_video(here / "t.jsonl"))
    close(folder, by_video(here / "l.parquet"))
    cached = read_predictions(run)
    assert len(cached.ids) == 2
    for video, logits in zip(cached.ids, cached.logits, strict=True):
        row = folder[f"{video}.avi"]
        assert np.abs(np.array(row["logits"]) - logits).max() <= 1e-5
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert row["label"] == ("Jump", "Run")[logits.argmax()] and abs(row["probability"] - shares.max()) < 1e-5
        assert row["labels"][0] == row["label"] and row["duration_s"] == pytest.approx(0.8)


def test_what_is_no_video_has_its_outcome_and_a_grown_folder_its_new_rows(here: Path, call: Call) -> None:
    run, top = world.run_of("average"), here / "archive"
    expected = {file.relative_to(top).as_posix(): outcome for file, outcome in damaged_media(top).values()}
    expected["whole.avi"] = "ok"
    line = f"score {run} archive --out s.csv --threads 1"
    assert call(line)[0] == 0
    with (here / "s.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["video"]: row["outcome"] for row in rows} == expected
    assert all(row["outcome"] in NAMES and (row["reason"] or row["outcome"] == "ok") for row in rows)
    assert {row["label"] != "" for row in rows if row["outcome"] in ("ok", "partial")} == {True}
    assert {row["label"] for row in rows if row["outcome"] not in ("ok", "partial")} == {""}
    first = (here / "s.csv").read_bytes()
    assert "0 videos scored" in (said := call(line)[1]) and "6 were there before" in said
    assert (here / "s.csv").read_bytes() == first
    for number in range(10):
        write_video(top / "more" / f"=cmd{number}.mp4", frames=6, seed=number)
    assert "10 videos scored" in call(line)[1]
    whole = (here / "s.csv").read_bytes()
    assert whole.startswith(first)
    with (here / "s.csv").open() as stream:
        later = [row["video"] for row in csv.DictReader(stream)][len(rows) :]
    assert sorted(later) == sorted(f"more/=cmd{n}.mp4" for n in range(10))


def test_what_failed_is_scored_once_it_was_mended(here: Path, call: Call) -> None:
    run, top = world.run_of("average"), here / "archive"
    top.mkdir()
    whole = sorted((here / "videos").rglob("*.avi"))[0]
    (top / "a.avi").write_bytes(b"")
    shutil.copy(whole, top / "b.avi")
    line = f"score {run} archive --out s.jsonl --threads 1"
    assert "1 undecodable" in call(line)[1] and "nothing new" in call(line)[1]
    shutil.copy(whole, top / "a.avi")
    assert "1 videos scored" in (said := call(line)[1]) and "(1 ok)" in said
    assert "nothing new" in call(line)[1]
    assert [(r["video"], r["outcome"]) for r in world.rows_of(here / "s.jsonl")] == [
        ("a.avi", "undecodable"),
        ("b.avi", "ok"),
        ("a.avi", "ok"),
    ]


def test_a_video_is_scored_once_from_whatever_folder(here: Path, call: Call) -> None:
    run = world.run_of("average")
    assert "9 videos scored" in call(f"score {run} videos --out s.jsonl --threads 1")[1]
    assert "nothing new" in call(f"score {run} videos/Jump --out s.jsonl --threads 1")[1]
    assert "nothing new" in call(f"score {run} {here}/videos --out s.jsonl --also {here / run} --threads 1")[1]


def test_a_later_member_of_the_same_name_is_said(here: Path, call: Call) -> None:
    one, two, *_ = sorted((here / "videos").rglob("*.avi"))
    tar = world.tar_of(here / "x.tar", [("a.avi", one), ("b.avi", one)])
    line = f"score {world.run_of('average')} x.tar --out s.jsonl --threads 1"
    assert "(2 ok)" in call(line)[1]
    world.tar_of(tar, [("a.avi", one), ("b.avi", one), ("a.avi", two)])
    assert "(1 refused)" in call(line)[1] and "nothing new" in call(line)[1]
    world.tar_of(tar, [("a.avi", one), ("b.avi", one), ("a.avi", two), ("a.avi", one)])
    assert "(1 refused)" in call(line)[1] and "nothing new" in call(line)[1]
    reasons = [row["reason"] for row in world.rows_of(here / "s.jsonl")[2:]]
    assert len(set(reasons)) == 2 and all(said.startswith("a member before has its name; this one") for said in reasons)


def test_a_member_is_scored_once_from_sources_that_overlap(here: Path, call: Call) -> None:
    one, two, *_ = sorted((here / "videos").rglob("*.avi"))
    (here / "clips").mkdir(exist_ok=True)
    world.tar_of(here / "clips/x.tar", [("a.avi", one), ("b.avi", two)])
    line = f"score {world.run_of('average')} clips clips/x.tar clips/ --out s.jsonl --threads 1"
    assert "2 videos scored" in (said := call(line)[1]) and "(2 ok)" in said
    assert "nothing new" in call(line)[1]


def test_a_line_of_a_list_that_moves_is_the_same(here: Path, call: Call) -> None:
    line = f"score {world.run_of('average')} list.txt --out s.jsonl --threads 1"
    (here / "list.txt").write_text("gone.mp4\n")
    assert "(1 undecodable)" in call(line)[1]
    (here / "list.txt").write_text("\ngone.mp4\n")
    assert "nothing new" in call(line)[1]


def test_what_the_command_writes_is_not_scored(here: Path, call: Call) -> None:
    line = (
        f"score {world.run_of('average')} . --out s.jsonl --keep-features kept --only *.avi --only kept/* --threads 1"
    )
    assert "(9 ok)" in (said := call(line)[1]), said
    assert "nothing new" in call(line)[1]
    call(f"score {world.run_of('average')} . --out all.jsonl --threads 1")
    assert not [row for row in world.rows_of(here / "all.jsonl") if row["video"].startswith("work/cache/")]


def test_refused_ones_do_not_pile_up(here: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MOST_REFUSED", 4)
    names = [f"missing{n}.avi" for n in range(11)]
    names[6:6] = [v.relative_to(here / "videos").as_posix() for v in sorted((here / "videos").rglob("*.avi"))][:2]
    (here / "list.txt").write_text("\n".join(names))
    code, said = call(f"score {world.run_of('average')} list.txt --root videos --out s.jsonl --threads 1")
    found = by_video(here / "s.jsonl")
    assert code == 0 and found.keys() == set(names), said
    assert [row["outcome"] for row in found.values()].count("ok") == 2


def test_a_formula_is_no_formula_in_csv(here: Path, call: Call) -> None:
    write_video(here / "archive" / "=cmd.mp4", frames=4)
    assert call(f"score {world.run_of('average')} archive --out s.csv --threads 1")[0] == 0
    assert ",'=cmd.mp4," in (here / "s.csv").read_text()


def test_several_runs_and_a_fusion_share_one_extractor(here: Path, call: Call) -> None:
    average, ridge, late = (world.run_of(head) for head in ("average", "ridge", "late"))
    line = f"score {average} videos --also {ridge} --also {late} --out s.jsonl --logits --threads 1"
    assert call(line)[0] == 0
    rows = world.rows_of(here / "s.jsonl")
    assert len(rows) == 27
    assert [row["run"].split("-")[0] for row in rows[:3]] == ["average", "ridge", "late"]
    for run in (average, ridge, late):
        cached = read_predictions(run)
        for video, logits in zip(cached.ids, cached.logits, strict=True):
            (own,) = [r for r in rows if r["video"] == f"{video}.avi" and r["run"].startswith(run.parent.name)]
            assert np.abs(np.array(own["logits"]) - logits).max() <= 1e-5
    with pytest.raises(UserError, match=r"a fusion has no head of its own: .*ask its members"):
        framepool.run(late).logits(framepool.load("tiny", "rgb"), [])
    machine = Machine(Options(runs=(average, ridge, late), threads=1))
    assert len(machine.names) == len(machine.stages.found) == 1


def test_features_are_kept_as_the_store_has_them(here: Path, call: Call) -> None:
    code, said = call(f"score {world.run_of('average')} videos --out s.jsonl --keep-features kept --threads 1")
    assert code == 0, said
    (kept,) = (here / "kept").glob("rgb-*")
    theirs, rows = store(here), {}
    assert kept.name == theirs.name
    for folder, strip in ((theirs, ""), (kept, "videos/")):
        for number in shards(folder):
            shard = read_shard(folder, number)
            for v, video in enumerate(shard.manifest.ids):
                part = slice(shard.offsets[v], shard.offsets[v + 1])
                name = video.removeprefix(strip).removesuffix(".avi")
                rows.setdefault(name, []).append((shard.frames[part], shard.time_us[part], shard.manifest.outcomes[v]))
    assert len(rows) == 9
    for ours, own in rows.values():
        assert ours[0].dtype == own[0].dtype and np.allclose(ours[0], own[0], rtol=1e-3, atol=1e-6)
        assert np.array_equal(ours[1], own[1]) and ours[2] == own[2]


def test_a_folder_whose_name_is_not_utf8(here: Path, call: Call) -> None:
    odd = Path(os.fsdecode(b"caf\xe9"))
    odd.mkdir()
    shutil.copy(next((here / "videos").glob("*/*.avi")), odd / "a.avi")
    for out in ("s.jsonl", "s.csv"):
        code, said = call(f"score {world.run_of('average')} {odd} --out {out} --keep-features kept-{out} --threads 1")
        assert code == 0, said
    assert world.rows_of(here / "s.jsonl")[0]["source"] == r"caf\udce9"


def test_kept_features_are_of_one_list_of_scores(here: Path, call: Call) -> None:
    clip = next((here / "videos").glob("*/*.avi")).relative_to(here)
    line = f"score {world.run_of('average')} {clip} --keep-features kept --threads 1 --out"
    assert call(f"{line} s.jsonl")[0] == 0
    (kept,) = (here / "kept").glob("rgb-*")
    before = contents(kept)
    code, said = call(f"{line} other.jsonl")
    assert code == 2 and "features of other videos: kept: expected" in said and "choose another --keep-features" in said
    assert contents(kept) == before
    for path in (here / "s.jsonl", here / "s.jsonl.state"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(kept / "00000.zarr", kept / "00001.zarr")
    shutil.copy(kept / "00000.json", kept / "00001.json")
    assert call(f"{line} s.jsonl")[0] == 0
    assert contents(kept) == before
    (here / "kept" / "scores.json").unlink()
    assert call(f"{line} s.jsonl")[0] == 2


def test_windows_have_rows_and_merge_into_segments(here: Path, call: Call) -> None:
    write_video(here / "long.mp4", frames=40, fps=10)
    run = world.run_of("average")
    assert call(f"score {run} long.mp4 --out w.jsonl --window 1 --stride 0.5 --threads 1")[0] == 0
    rows = world.rows_of(here / "w.jsonl")
    assert [(row["start_s"], row["end_s"]) for row in rows] == [(n / 2, n / 2 + 1) for n in range(7)]
    segments = world.rows_of(here / "w.segments.jsonl")
    assert sum(segment["windows"] for segment in segments) == 7
    assert segments[0]["start_s"] == 0 and segments[-1]["end_s"] == 4
    for segment in segments:
        own = [r for r in rows if segment["start_s"] <= r["start_s"] and r["end_s"] <= segment["end_s"]]
        assert {row["label"] for row in own} == {segment["label"]} or len(segments) > 1
        if len(segments) == 1:
            assert segment["probability"] == pytest.approx(np.mean([row["probability"] for row in own]))
    code, said = call(f"score {run} long.mp4 --out w.jsonl --window 2 --threads 1")
    assert code == 2 and "scores of another making: w.jsonl: window_s: expected 1.0, got 2.0" in said


def test_a_window_without_a_frame_has_a_row_too(here: Path, call: Call) -> None:
    """Of a recording that stood still: two seconds, nothing for a while, two more."""
    with av.open(str(here / "still.mkv"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in (*range(20), *range(90, 110)):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 2 * k, np.uint8), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert call(f"score {world.run_of('average')} still.mkv --out w.jsonl --window 2 --threads 1")[0] == 0
    rows = world.rows_of(here / "w.jsonl")
    assert [(row["start_s"], row["outcome"]) for row in rows] == [
        (0, "ok"), (2, "too_short"), (4, "too_short"), (6, "too_short"), (8, "ok"), (10, "ok"),
    ]  # fmt: skip
    assert [row["label"] is None for row in rows] == [False, True, True, True, False, False]
    assert {row["reason"] for row in rows if row["label"] is None} == {"no row in this window"}


def test_other_weights_are_refused_before_they_are_opened(here: Path, call: Call) -> None:
    run, bomb = world.run_of("average"), here / "network.safetensors"
    kept = bomb.read_bytes()
    bomb.write_bytes(b"not weights at all")
    assert call(f"score {run} videos --out own.jsonl --threads 1")[0] == 0, "a run has its own"
    shutil.rmtree(run.parent / "extractors")
    (here / "work" / "cache").unlink()  # a link
    code, said = call(f"score {run} videos --out s.jsonl --threads 1")
    assert code == 2 and "weights are not there" in said and "got another file" in said
    (run / "extractors").mkdir()
    (run / "extractors" / f"{hashlib.sha256(kept).hexdigest()[:16]}.safetensors").write_bytes(kept)
    assert call(f"score {run} videos --out s.jsonl --threads 1")[0] == 0


def test_a_run_needs_no_dataset_but_refuses_another_extractor(here: Path, call: Call) -> None:
    run = shutil.copytree(world.run_of("average"), here / "moved")
    shutil.rmtree(here / "config")
    assert call(f"score {run} videos --out s.jsonl --threads 1")[0] == 0
    record = json.loads((run / "run.json").read_text())
    record["stores"]["rgb"]["facts"]["steps"] = "bf16"  # of a processor that has it, or that has not
    (run / "run.json").write_text(json.dumps(record))
    assert call(f"score {run} videos --out u.jsonl --threads 1")[0] == 0
    record["extractors"]["rgb"]["config"]["sampling"]["n"] = 5
    (run / "run.json").write_text(json.dumps(record))
    code, said = call(f"score {run} videos --out t.jsonl --threads 1")
    assert code == 2 and "not the run's extractor: " in said
    record["stores"]["rgb"]["facts"]["weights_sha256"] = "0" * 64
    del record["extractors"]
    (run / "run.json").write_text(json.dumps(record))
    code, said = call(f"score {run} videos --out t.jsonl --threads 1")
    assert code == 2 and "unknown dataset" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "score RUN videos --out s.txt",
            "unknown format of scores: s.txt: expected .parquet, .csv or .jsonl, got",
        ),
        ("score videos videos --out s.csv", "not a finished run: videos: expected a run.json in it"),
        ("score RUN nowhere --out s.csv", "cannot read source: nowhere: got No such file"),
        ("score RUN videos --out s.csv --stride 2", "a stride without a window"),
        ("score RUN videos --out s.csv --keep-features k --workers 2", "features are kept of whole videos"),
        ("score RUN videos --out config --out videos.csv", "scores of something else: videos.csv: got no state"),
    ],
)
def test_mistakes_are_one_line(here: Path, call: Call, line: str, message: str) -> None:
    (here / "videos.csv").write_text("mine")
    code, said = call(line.replace("RUN", str(world.run_of("average"))) + " --threads 1")
    assert code == 2 and said.startswith(f"framepool: {message}"), said
    assert (here / "videos.csv").read_text() == "mine"


def test_scores_that_are_not_finite_are_no_scores(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = list(walk(Path("videos")))[:3]
    with Machine(Options(runs=(world.run_of("average"),), threads=1)) as machine:
        forward = machine.runs[0].head.forward  # type: ignore[union-attr]

        def broken(features: Any, masks: Any) -> Any:
            logits = forward(features, masks)
            if len(logits) > 1:
                logits[1] = float("nan")
            return logits

        monkeypatch.setattr(machine.runs[0].head, "forward", broken)
        found = [done.rows[0] for done in machine.score(clips)]
        assert [row["outcome"] for row in found] == ["ok"] * 3  # alone each of them is sound
        monkeypatch.setattr(machine.runs[0].head, "forward", lambda *batch: forward(*batch) * float("nan"))
        found = [done.rows[0] for done in machine.score(clips)]
        assert [(row["outcome"], row["label"]) for row in found] == [("non_finite", None)] * 3


def test_a_machine_reads_again_and_again_and_asks_for_no_more_than_it_holds(here: Path) -> None:
    clips = list(walk(Path("videos")))
    asked: list[str] = []

    def given(clips: list[Clip]) -> Any:
        for clip in clips:
            asked.append(clip.name)
            yield clip

    with Machine(Options(runs=(world.run_of("average"),), threads=1)) as machine:
        first = next(stream := machine.score(given(clips * 20)))
        assert len(asked) < 9 * 20, "a long archive is not read to its end before the first row comes"
        rest = [first, *stream]
        assert len(rest) == 180
        again = list(machine.score(clips))
    assert [d.rows[0]["video"] for d in again] == [clip.name for clip in clips]
    assert all(
        np.isclose(a.rows[0]["probability"], b.rows[0]["probability"]) for a, b in zip(rest, again, strict=False)
    )


@pytest.mark.slow
def test_stages_that_read_one_source_share_it(tmp_path: Path) -> None:
    """Two networks on one store of pictures: decoded once, each picture through one lane of pictures."""
    from extract.config import MapTransform, NetworkConfig, Pixels, Rgb, Transform
    from extract.samplings import Uniform
    from extract.stage import Stage

    video = write_video(tmp_path / "v.mp4", frames=9)
    pixels = Stage.of(
        Pixels(kind="pixels", sampling=Uniform(n=4), transform=MapTransform(resize=64, crop=64)),
        weights=None,
        cache=tmp_path / "cache",
    )
    stages = {}
    for seed in range(2):
        path = write_network(tmp_path / f"{seed}.safetensors", "test_resnet", seed=seed)
        config = Rgb(kind="rgb", source="pixels", network=NetworkConfig(name="test_resnet", weights=path))
        config = config.model_copy(update={"transform": Transform(crop=64)})
        stages[f"net{seed}"] = Stage.of(config, weights=path, cache=tmp_path / "cache", before=pixels)
    with Extraction({**stages, "pixels": pixels}, workers=1) as extraction:
        assert len(extraction._lanes) == 1
        (found,) = extraction.read([(0, video)])
    assert {name: rows[0][1].shape for name, rows in found.rows.items()} == {
        "pixels": (4, 64, 64, 3),
        "net0": (4, 96),
        "net1": (4, 96),
    }
    assert not np.allclose(found.rows["net0"][0][1], found.rows["net1"][0][1])
