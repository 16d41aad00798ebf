"""The shard loop against plain decoding and a plain network; and what it refuses (F34, F35, F36, F40)."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extract.config import Imported, MapTransform, NetworkConfig, Pixels, Rgb, Transform, recipe
from extract.decoders import Decoders, End
from extract.fingerprint import Item, fingerprint, list_digest
from extract.lanes import PLACE, Batch, Writer
from extract.networks import build, save_network
from extract.networks.bf16 import has_bf16
from extract.progress import Progress
from extract.samples import Job, samples
from extract.samplings import Uniform
from extract.shard import Task, extract_shard
from features.errors import FramepoolError
from features.foreign import opened
from features.journal import INDEX, Journal
from features.outcome import Name, Outcome
from features.recipe import file_sha256
from features.store import read_shard, verify_shard
from tests.faults import world
from tests.media import share_networks, write_network, write_video

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of several lengths, one of them no video, and the weights of two networks."""
    folder = tmp_path_factory.mktemp("shard")
    for number in range(6):
        write_video(folder / "videos" / f"{number}.mp4", frames=6 + 3 * (number % 4), seed=number)
    (folder / "videos" / "2.mp4").write_text("no video")
    write_network(folder / "w.safetensors", "test_vit")
    write_network(folder / "other.safetensors", "test_vit", seed=1)
    share_networks(folder / "cache")
    return folder


def task(folder: Path, store: Path, weights: str | None = "w.safetensors", **fields: Any) -> Task:
    """Frames as they are where there are no weights; else through the network, in batches of 4."""
    config: Pixels | Rgb
    sampling = Uniform(n=7)
    path = folder / weights if weights else None
    if path is None:
        config = Pixels(kind="pixels", sampling=sampling, transform=MapTransform(resize=SIZE, crop=SIZE))
    else:
        network = NetworkConfig(name="test_vit", weights=path, options={})
        transform = Transform(resize=160, crop=160)
        config = Rgb(kind="rgb", sampling=sampling, network=network, transform=transform, batch=4, runtime="torch")
    values: dict[str, Any] = {
        "extractor": "x",
        "config": config,
        "recipe": recipe(config, file_sha256(path) if path else None),
        "weights": path,
        "shard": 0,
        "items": tuple(Item(f"video{n}", f"{n}.mp4") for n in range(6)),
        "root": folder / "videos",
        "store": store,
        "cache": folder / "cache",
    }
    return Task(**{**values, **fields})


def plain(job: Task, size: int) -> list[tuple[list[int], Any, Outcome]]:
    """Times, samples (L, H, W, 3) and outcome of each video, decoded here."""
    how = Job(job.config.sampling, size, size, "bicubic" if job.weights else "bilinear", job.config.limits)
    found = []
    for video in job.items:
        *rows, outcome = (item for _, item in samples(job.root / video.path, {0: how}))
        found.append(([r[0] for r in rows], [r[1] for r in rows], outcome))  # type: ignore[index]
    return found  # type: ignore[return-value]


def test_pixels_are_the_decoded_frames(folder: Path, tmp_path: Path) -> None:
    job = task(folder, tmp_path, None)
    manifest = extract_shard(job, workers=2)
    shard = read_shard(tmp_path, 0)
    assert shard.frames.shape[1:] == (SIZE, SIZE, 3) and shard.frames.dtype == np.uint8
    for video, (times_us, images, outcome) in enumerate(plain(job, SIZE)):
        mine = slice(shard.offsets[video], shard.offsets[video + 1])
        assert manifest.outcomes[video] == outcome
        assert shard.time_us[mine].tolist() == times_us
        assert [f.tobytes() for f in shard.frames[mine]] == [np.ascontiguousarray(i).tobytes() for i in images]
    assert [o.outcome for o in manifest.outcomes] == ["ok", "ok", "undecodable", "ok", "ok", "ok"]


@pytest.fixture(scope="module")
def extracted(folder: Path) -> Path:
    extract_shard(task(folder, folder / "store"), workers=1)
    return folder / "store"


def test_features_are_those_of_each_video_alone(folder: Path, extracted: Path) -> None:
    job, shard = task(folder, extracted), read_shard(extracted, 0)
    network = build("test_vit", weights=folder / "w.safetensors")
    spec = network.input
    assert spec.interpolation == "bicubic" and shard.frames.shape[1:] == (network.feature_dim,)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    for video, (_, images, outcome) in enumerate(plain(job, 160)):
        mine = shard.frames[shard.offsets[video] : shard.offsets[video + 1]].astype(np.float32)
        assert len(mine) == outcome.rows == len(images)
        if images:
            pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
            with torch.no_grad():
                expected = network.trunk((pixels / 255 - mean) / std).numpy()
            assert np.linalg.norm(mine - expected) / np.linalg.norm(expected) < 5e-4
    facts = shard.manifest.facts
    assert "steps" not in facts
    assert facts["weights_sha256"] == file_sha256(folder / "w.safetensors")


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("weights", [None, "w.safetensors"], ids=["pixels", "rgb"])
def test_the_bytes_do_not_depend_on_the_workers(
    folder: Path, extracted: Path, tmp_path: Path, workers: int, weights: str | None
) -> None:
    if weights is None:
        extracted = tmp_path / "one"
        extract_shard(task(folder, extracted, None), workers=1)
    extract_shard(task(folder, tmp_path / "store", weights), workers=workers)
    assert world.contents(tmp_path / "store") == world.contents(extracted)


def scaled(folder: Path, factor: float) -> str:
    """The same network with features `factor` times as large: its last layer norm is what scales them."""
    network = build("test_vit", weights=folder / "w.safetensors")
    norms = [m for m in network.trunk.modules() if isinstance(m, torch.nn.LayerNorm)]
    with torch.no_grad():
        norms[-1].weight *= factor
        norms[-1].bias *= factor
    name = f"scaled{factor:g}.safetensors"
    (folder / name).write_bytes(save_network(network))
    return name


def test_what_float16_cannot_hold_costs_only_its_video(folder: Path, extracted: Path, tmp_path: Path) -> None:
    """The factor is such that the features of some videos fit into float16 and those of the others do not."""
    small = read_shard(extracted, 0)
    peaks = {
        v: float(np.abs(small.frames[a:b].astype(np.float32)).max())
        for v, (a, b) in enumerate(zip(small.offsets[:-1], small.offsets[1:], strict=True))
        if b > a
    }
    low, high = sorted(peaks.values())[1:3]
    factor = 65504 / ((low + high) / 2)
    assert high / low > 1.001
    manifest = extract_shard(task(folder, tmp_path, scaled(folder, factor)), workers=1)
    shard = read_shard(tmp_path, 0)
    assert verify_shard(tmp_path, 0) == manifest
    lost = {v for v, peak in peaks.items() if peak >= high}
    assert 0 < len(lost) < len(peaks)
    for video, outcome in enumerate(manifest.outcomes):
        mine = shard.frames[shard.offsets[video] : shard.offsets[video + 1]].astype(np.float32)
        before = small.frames[small.offsets[video] : small.offsets[video + 1]].astype(np.float32)
        if video in lost:
            assert outcome.outcome == "non_finite" and outcome.rows == 0 == len(mine)
            large = np.abs(before).max(axis=1) * factor > 65_400  # overflow is at 65,520; rounding is 5e-4 of it
            times_s = small.time_us[small.offsets[video] :][: len(before)][large] / 1e6
            expected = {f"non-finite feature at {time_s:.3f} s, from the features of test_vit" for time_s in times_s}
            assert outcome.reason in expected
            assert outcome.decoded > 0
        else:
            assert outcome == small.manifest.outcomes[video]
            np.testing.assert_allclose(mine, before * factor, rtol=2e-2, atol=2e-3 * 65504)


def test_features_that_overflow_everywhere_leave_a_shard_without_rows(folder: Path, tmp_path: Path) -> None:
    """Also with a precision whose error is measured: infinity over infinity is no error to note."""
    job = task(folder, tmp_path, scaled(folder, 1e38))
    assert isinstance(job.config, Rgb)
    config = job.config.model_copy(update={"precision": "bf16"})
    manifest = extract_shard(replace(job, config=config, recipe=recipe(config, "w")), workers=1)
    assert {o.outcome for o in manifest.outcomes} == {"non_finite", "undecodable"}
    assert manifest.rows == 0 and verify_shard(tmp_path, 0) == manifest


def test_the_error_of_a_reduced_precision_is_recorded(folder: Path, tmp_path: Path) -> None:
    job = task(folder, tmp_path)
    assert isinstance(job.config, Rgb)
    config = job.config.model_copy(update={"precision": "bf16"})
    statistics = extract_shard(replace(job, config=config, recipe=recipe(config, "w")), workers=1).statistics
    error = statistics["relative_error"]
    assert error < 0.1 and (error > 0) == has_bf16(torch.device("cpu"))


def test_steps_in_bf16_and_in_fp32_do_not_mix(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = task(folder, tmp_path)
    assert isinstance(job.config, Rgb)
    config = job.config.model_copy(update={"precision": "bf16"})
    job = replace(job, config=config, recipe=recipe(config, "w"))
    here = has_bf16(torch.device("cpu"))
    assert extract_shard(job, workers=1).facts["steps"] == ("bf16" if here else "fp32")
    monkeypatch.setattr("extract.networks.bf16.has_bf16", lambda device: not here)
    with pytest.raises(FramepoolError, match=r"with steps of another precision: .*; bf16 is fp32 on a"):
        extract_shard(replace(job, shard=1), workers=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 7e4])
def test_the_writer_refuses_what_is_not_finite(tmp_path: Path, value: float) -> None:
    journal = Journal(tmp_path, {"row_shape": [3], "dtype": "float16"})
    index = np.array([(0, 0), (0, 40_000), (1, 0)], INDEX)
    rows = np.ones((3, 3), np.float32)
    rows[1, 2] = value
    batch = Batch(np.zeros((3, 1, 1, 3), np.uint8), index, 3)
    batch.ends = [End(0, Outcome(outcome="ok", rows=2, decoded=9)), End(1, Outcome(outcome="ok", rows=1))]
    with Writer(journal, Progress("x", 2, 0), "layer layer3 of resnet50") as writer:
        writer.put(batch, rows)
    journal.close()
    reason = "non-finite feature at 0.040 s, from layer layer3 of resnet50"
    assert journal.outcomes[0] == Outcome(outcome="non_finite", reason=reason, decoded=9)
    assert journal.outcomes[1] == Outcome(outcome="ok", rows=1)


@pytest.mark.parametrize(
    ("value", "outcome", "reason"),
    [
        (np.nan, "non_finite", "a row that is not finite, for uint8"),
        (300.0, "undecodable", "numbers from 1 to 300, uint8 holds 0 to 255"),
        (-1.0, "undecodable", "numbers from -1 to 1, uint8 holds 0 to 255"),
    ],
)
def test_imported_rows_that_bytes_cannot_hold(tmp_path: Path, value: float, outcome: Name, reason: str) -> None:
    rows = np.ones((3, 2), np.float32)
    np.save(tmp_path / "good.npy", rows)
    rows[1, 1] = value
    np.save(tmp_path / "bad.npy", rows)
    items = (Item("bad", "bad.npy"), Item("good", "good.npy"))
    made = Imported(kind="imported", path=tmp_path, dtype="uint8")
    collection = opened(tmp_path, None, None, None, ["bad", "good"])
    fields = {"config": made, "recipe": recipe(made), "items": items, "root": tmp_path, "collection": collection}
    extract_shard(task(tmp_path, tmp_path / "store", None, **fields), workers=1)
    shard = read_shard(tmp_path / "store", 0)
    assert shard.manifest.outcomes == (Outcome(outcome=outcome, reason=reason), Outcome(outcome="ok", rows=3))
    assert shard.frames.tolist() == [[1, 1]] * 3


class _Alarm(BaseException):
    pass


def test_a_signal_while_batches_are_handed_over_ends_the_writer(tmp_path: Path) -> None:
    """Its handler's exception rises anywhere in `put`; with a `queue.Queue` there one end of five never came."""

    def leave(*_: object) -> None:
        raise _Alarm

    journal = Journal(tmp_path, {"row_shape": [3], "dtype": "float16"})
    batch, rows = Batch(np.zeros((1, 1, 1, 3), np.uint8), np.array([], PLACE), 1), np.ones((0, 3), np.float32)
    before = signal.signal(signal.SIGALRM, leave)
    try:
        for trial in range(60):
            writer = Writer(journal, Progress("x", 2, 0), "x").__enter__()
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.00004 * trial)
                for _ in range(10**9):
                    writer.put(batch, rows)
            except _Alarm:
                end = threading.Thread(target=writer.__exit__, args=(_Alarm,), daemon=True)
                end.start()
                end.join(10)
                assert not end.is_alive()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # what comes without its handler kills
        signal.signal(signal.SIGALRM, before)
    journal.close()


def test_other_weights_under_the_same_recipe_are_refused(folder: Path, extracted: Path, tmp_path: Path) -> None:
    """A file that was replaced may be another network."""
    shutil.copytree(extracted, tmp_path / "store")
    job = task(folder, tmp_path / "store", weights="other.safetensors", recipe=task(folder, tmp_path).recipe)
    before = world.contents(tmp_path / "store")
    for shard in (0, 1):
        with pytest.raises(FramepoolError, match=r"store was made with another weights_sha256: .*store: expected") as e:
            extract_shard(replace(job, shard=shard), workers=1)
        assert "remove the store's folder to make it anew" in str(e.value)
    assert world.contents(tmp_path / "store") == before


def test_a_store_follows_the_run_that_trains_its_weights(folder: Path, extracted: Path, tmp_path: Path) -> None:
    """Trained again it has the old recipe and other weights; and so does what reads the store."""
    shutil.copytree(extracted, tmp_path / "store")
    job = task(folder, tmp_path / "store", weights="other.safetensors", recipe=task(folder, tmp_path).recipe)
    before = read_shard(job.store, 0)
    for shard in (1, 0):
        extract_shard(replace(job, shard=shard, follows=True), workers=1)
        manifest = read_shard(job.store, shard).manifest
        assert manifest.facts["weights_sha256"] == file_sha256(folder / "other.safetensors")
    after = read_shard(job.store, 0)
    assert after.manifest.ids == before.manifest.ids and not np.array_equal(after.frames, before.frames)
    made = world.contents(job.store)
    extract_shard(replace(job, follows=True), workers=1)
    assert world.contents(job.store) == made


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Task:
    """Pixels of a copy of the videos, extracted."""
    shutil.copytree(folder / "videos", tmp_path / "videos")
    job = task(folder, tmp_path / "store", None, root=tmp_path / "videos")
    extract_shard(job, workers=1)
    return job


def test_a_finished_shard_is_not_made_again(own: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world.contents(own.store)
    monkeypatch.setattr(Decoders, "__init__", None)
    extract_shard(own, workers=1)
    (own.store / "00000.json").unlink()
    extract_shard(own, workers=1)
    assert world.contents(own.store) == before


def test_a_replaced_video_is_extracted_again(own: Task) -> None:
    before = read_shard(own.store, 0)
    write_video(own.root / "1.mp4", frames=9, seed=77)
    manifest = extract_shard(own, workers=1)
    after = read_shard(own.store, 0)
    assert manifest.list_digest != before.manifest.list_digest
    for video in range(6):
        mine = [s.frames[s.offsets[video] : s.offsets[video + 1]].tobytes() for s in (before, after)]
        assert (mine[0] == mine[1]) == (video != 1)


@pytest.mark.parametrize("removed", [False, True], ids=["as it is", "by the workflow"])
def test_a_video_that_is_mended_in_its_middle_is_extracted_again(folder: Path, tmp_path: Path, removed: bool) -> None:
    """Its size and its ends are as before."""
    shutil.copytree(folder / "videos", tmp_path / "videos")
    path = write_video(tmp_path / "videos" / "long.avi", frames=90, codec="ffv1")
    whole = path.read_bytes()
    assert len(whole) > 3 << 16
    path.write_bytes(whole[: 1 << 16] + bytes(len(whole) - (2 << 16)) + whole[-(1 << 16) :])
    job = task(
        folder, tmp_path / "store", None, root=tmp_path / "videos", items=(Item("a", "1.mp4"), Item("b", path.name))
    )
    hurt = extract_shard(job, workers=1)
    assert hurt.outcomes[1].outcome == "partial" and extract_shard(job, workers=1) == hurt
    path.write_bytes(whole)
    if removed:
        (job.store / "00000.json").unlink()
    mended = extract_shard(job, workers=1)
    assert mended.list_digest == hurt.list_digest and [o.outcome for o in mended.outcomes] == ["ok", "ok"]
    assert not mended.unread and read_shard(job.store, 0).manifest == mended


def test_a_longer_list_is_extracted_again_and_a_missing_file_is_undecodable(own: Task) -> None:
    write_video(own.root / "9.mp4", frames=7, seed=9)
    (own.root / "0.mp4").unlink()
    manifest = extract_shard(replace(own, items=(*own.items, Item("v9", "9.mp4"), Item("gone", ""))), workers=1)
    assert manifest.ids[-2:] == ("v9", "gone")
    assert manifest.outcomes[0] == Outcome(outcome="undecodable", reason="cannot be read: No such file or directory")
    assert manifest.outcomes[6].outcome == "ok"
    assert manifest.outcomes[7] == Outcome(outcome="undecodable", reason="no such file under the root")


def test_a_shard_in_which_nothing_can_be_decoded(folder: Path, tmp_path: Path) -> None:
    job = task(folder, tmp_path, None, items=(Item("a", ""), Item("b", "2.mp4")))
    manifest = extract_shard(job, workers=2)
    assert [o.outcome for o in manifest.outcomes] == ["undecodable", "undecodable"]
    assert read_shard(tmp_path, 0).frames.shape == (0, SIZE, SIZE, 3)
    extract_shard(task(folder, tmp_path, None, items=(Item("a", ""),), shard=1), workers=2)
    assert verify_shard(tmp_path, 1).rows == 0


def test_fingerprints(tmp_path: Path) -> None:
    path = tmp_path / "a"
    seen = set()
    for data in (b"", b"a", b"b", bytes(200_000), bytes(199_999) + b"x", b"x" + bytes(199_999)):
        path.write_bytes(data)
        seen.add(fingerprint(path))
        assert fingerprint(path).startswith(f"{len(data)}-")
    assert len(seen) == 6
    shutil.copy(path, tmp_path / "b")
    assert fingerprint(tmp_path / "b") == fingerprint(path)
    assert fingerprint(tmp_path) == "not a regular file"
    assert fingerprint(tmp_path / "c") == "unreadable: No such file or directory"
    one, timed = (list_digest([Item("a", "a")], tmp_path, timed=way) for way in (False, True))
    os.utime(path, (1, 1))
    assert list_digest([Item("a", "a")], tmp_path) == one
    assert len({one, timed, list_digest([Item("a", "a")], tmp_path, timed=True)}) == 3
    assert len({one, list_digest([Item("b", "a")], tmp_path), list_digest([Item("a", "")], tmp_path)}) == 3
