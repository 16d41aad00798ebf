"""Flash-MNIST and the noisy digits: what a video shows, where its pictures come from, and the road into a store."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from extract.config import Frames
from extract.fingerprint import Item
from extract.shard import Task, extract_shard
from features.errors import UserError
from features.store import read_shard
from pipelines.datasets import digits, flash
from pipelines.datasets.flash import FlashDigits, NoisyDigits
from tests.workflow import world


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten digits, each a bar in a place of its own that noise never fills; shorter in the test pictures."""
    found: dict[str, Any] = {}
    for side, first, copies in (("train", 0, 3), ("test", 14, 2)):
        labels = np.repeat(np.arange(10), copies)
        images = np.zeros((len(labels), 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 2, first:] = 255
        images[:, 20:, :4] = 100 if side == "train" else 90
        found |= {f"x_{side}": images, f"y_{side}": labels}
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, **found)
    return path


def shown(frame: np.ndarray[Any, Any], side: str) -> list[int]:
    bars = frame[:20].reshape(10, 2, 28) == 255
    whole, half = bars.all(axis=(1, 2)), bars[:, :, 14:].all(axis=(1, 2))
    return np.flatnonzero(whole if side == "train" else half & ~whole).tolist()


@pytest.mark.parametrize("side", ["train", "test"])
def test_a_video_shows_the_digits_of_its_class_once_or_twice(pictures: Path, side: str) -> None:
    maker = flash.made(FlashDigits(format="flash_digits", digits=pictures))
    counts = []
    for mask in (0, 1, 0b1000000011, 1023):
        for take in range(40):
            frames = maker.frames(f"{side}/{mask:04d}/{take:04d}")
            assert frames.shape == (25, 28, 28, 1) and frames.dtype == np.uint8
            found = [shown(frame[..., 0], side) for frame in frames]
            assert max(map(len, found)) <= 1, "a digit has a frame to itself"
            flat = [d for frame in found for d in frame]
            assert set(flat) == set(flash.digits_in(mask))
            counts += [flat.count(d) for d in set(flat)]
    assert set(counts) == {1, 2} and 0.4 < np.mean(np.array(counts) == 2) < 0.6
    assert [] in found, "the rest is noise"


def test_digits_may_share_a_frame(pictures: Path) -> None:
    maker = flash.made(FlashDigits(format="flash_digits", digits=pictures, allow_collisions=True))
    most = [max(len(shown(f[..., 0], "train")) for f in maker.frames(f"train/1023/{k:04d}")) for k in range(20)]
    assert max(most) > 1


def test_noise_follows_the_grey_levels_of_the_pictures(pictures: Path) -> None:
    source = NoisyDigits(format="noisy_digits", digits=pictures, histogram="train")
    frames = np.concatenate([flash.made(source).frames(f"train/0010/{k:04d}") for k in range(400)])
    images = np.load(pictures)["x_train"]
    for level in (0, 100, 255):
        assert (frames == level).mean() == pytest.approx((images == level).mean(), abs=3e-3)
    assert set(np.unique(frames)) == {0, 100, 255}
    both = flash.made(source.model_copy(update={"histogram": "all"}))
    assert 90 in np.unique(np.concatenate([both.frames(f"train/0010/{k:04d}") for k in range(50)]))


def test_every_picture_is_in_as_many_noisy_frames(pictures: Path) -> None:
    source = NoisyDigits(format="noisy_digits", digits=pictures, copies=2, noise=5, test_noise=4)
    videos = flash.videolist(source)
    assert videos.classes == (*map(str, range(10)), "noise")
    sides = [[v for v in videos.videos if v.splits == (side,)] for side in ("train", "test")]
    assert [len(side) for side in sides] == [10 * 3 * 2 + 5, 10 * 2 + 4]
    for video in sides[0][:60]:
        [frame] = flash.made(source).frames(video.id)
        assert shown(frame[..., 0], "train") == list(video.labels)


def test_a_video_follows_from_seed_and_id(pictures: Path) -> None:
    source = FlashDigits(format="flash_digits", digits=pictures)
    first, again = flash.made(source), flash.made(source)
    again.frames("train/0007/0000")
    np.testing.assert_array_equal(first.frames("test/0003/0001"), again.frames("test/0003/0001"))
    other = flash.made(source.model_copy(update={"seed": 1}))
    assert (first.frames("test/0003/0001") != other.frames("test/0003/0001")).any()
    assert (first.frames("test/0003/0001") != first.frames("test/0003/0002")).any()


def test_classes_are_sets_in_equal_numbers(pictures: Path) -> None:
    videos = flash.videolist(FlashDigits(format="flash_digits", digits=pictures, train=3, test=2, kinds=4))
    assert len(videos.classes) == 16 and videos.classes[:5] == ("none", "0", "1", "0+1", "2")
    assert [v.labels[0] for v in videos.videos if v.splits == ("train",)] == [m for m in range(16) for _ in range(3)]
    assert sum(v.splits == ("test",) for v in videos.videos) == 32


def test_scikit_learns_digits_are_drawn_as_mnists() -> None:
    found = digits.load("scikit-learn")
    assert sum(map(len, found["train"])) + sum(map(len, found["test"])) == 1797
    images = np.concatenate(found["test"])
    assert images.shape[1:] == (28, 28) and images.max() == 255
    assert not images[:, :4].any() and not images[:, :, -4:].any()


def write_idx(folder: Path, pictures: Path, *, packed: bool) -> None:
    """MNIST's four files; the pictures packed, as they are downloaded, or as torchvision unpacks them."""
    kept = np.load(pictures)
    for side, name in (("train", "train"), ("test", "t10k")):
        images, labels = kept[f"x_{side}"], kept[f"y_{side}"].astype(np.uint8)
        head = b"\0\0\x08\x03" + b"".join(int(n).to_bytes(4, "big") for n in images.shape)
        data, path = head + images.tobytes(), folder / f"{name}-images-idx3-ubyte"
        if packed:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data))
        else:
            path.write_bytes(data)
        head = b"\0\0\x08\x01" + len(labels).to_bytes(4, "big")
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


def test_mnists_own_files(tmp_path: Path, pictures: Path) -> None:
    write_idx(tmp_path, pictures, packed=True)
    for side in ("train", "test"):
        for own, other in zip(digits.load(tmp_path)[side], digits.load(pictures)[side], strict=True):
            np.testing.assert_array_equal(own, other)
    assert digits.identity(tmp_path) != digits.identity(pictures)


def test_mnist_is_downloaded_once(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's files are where it leaves them; when they are there, nobody asks it."""
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def download(root: str, *, download: bool) -> None:
        asked.append(root)
        if len(asked) == 1:
            raise RuntimeError("no net")
        folder = Path(root) / "MNIST" / "raw"
        folder.mkdir(parents=True)
        write_idx(folder, pictures, packed=False)

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    with pytest.raises(UserError, match=r"MNIST cannot be downloaded: work/downloads/MNIST/raw: got no net; give"):
        digits.load("DEFAULT")
    for _ in range(2):
        digits._read.cache_clear()
        for own, other in zip(digits.load("DEFAULT")["test"], digits.load(pictures)["test"], strict=True):
            np.testing.assert_array_equal(own, other)
    assert asked == ["work/downloads"] * 2


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none.npz", None, "digits are not there: .*none.npz: expected a file or folder, got nothing; give `digits`"),
        ("text.npz", b"hello", "not a file of digits"),
        ("empty.npz", b"", "not a file of digits"),
        ("half.npz", b"PK\x03\x04" + bytes(100), "not a file of digits"),
        (
            "packed",
            {"train-images-idx3-ubyte.gz": gzip.compress(bytes(99))[:-12], "train-labels-idx1-ubyte": b""},
            "not a file of digits: .*images-idx3-ubyte.gz: got Compressed file ended",
        ),
        ("t10k", {}, "digits are not there: .*train-images-idx3-ubyte"),
        ("folder", {"train-images-idx3-ubyte": b"\0\0\x08\x03\0"}, "digits are not there: .*train-labels"),
        ("cut", {"train-images-idx3-ubyte": b"\0\0\x08\x03\0", "train-labels-idx1-ubyte": b""}, "MNIST's idx format"),
    ],
)
def test_what_is_no_digits_is_said(tmp_path: Path, name: str, data: Any, message: str) -> None:
    path = tmp_path / name
    if isinstance(data, bytes):
        path.write_bytes(data)
    elif data is not None:
        path.mkdir()
        for file, content in data.items():
            (path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        digits.load(path)


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    images, labels = np.zeros((10, 8, 8), np.uint8), np.arange(10)
    np.savez(tmp_path / "small.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(UserError, match=r"not pictures of digits: .*, got uint8 \(10, 8, 8\)"):
        digits.load(tmp_path / "small.npz")


TINY: dict[str, Any] = {
    "title": "Tiny",
    "videos": {"format": "flash_digits", "digits": "scikit-learn", "kinds": 2, "train": 8, "test": 4},
    "shard_size": 20,
    "extractors": {
        "frames": {"kind": "frames", "store": False},
        "cnn": {
            "kind": "rgb",
            "source": "frames",
            "network": {"name": "flash_cnn", "library": "framepool", "weights": {"run": "cnn", "dataset": "noise"}},
            "batch": 64,
        },
    },
    "heads": {"noisy_or": {"kind": "noisy_or", "features": ["cnn"], "hidden": 8, "codes": "+", "train": {"epochs": 2}}},
}
NOISE: dict[str, Any] = {
    "title": "Noise",
    "videos": {
        "format": "noisy_digits",
        "digits": "scikit-learn",
        "kinds": 2,
        "copies": 1,
        "noise": 9,
        "test_noise": 9,
    },
    "extractors": {"frames": {"kind": "frames"}},
    "heads": {
        "cnn": {
            "kind": "tsn",
            "features": ["frames"],
            "network": {"name": "flash_cnn", "library": "framepool"},
            "augment": "none",
            "sample": {"train": 1, "test": 1},
            "train": {"epochs": 1},
        }
    },
}


@pytest.mark.slow
def test_from_noise_to_a_head_across_two_datasets(tmp_path: Path) -> None:
    """The CNN of one dataset makes the features of another; a stored and a virtual source of frames."""
    world.write_config(tmp_path, TINY)
    world.write_config(tmp_path, NOISE, "noise")
    world.snakemake(tmp_path)
    assert world.planned(tmp_path) == {}
    [store] = (tmp_path / "work/tiny/features").glob("cnn-*")
    rows = [len(read_shard(store, shard).frames) for shard in range(3)]
    assert rows == [20 * 25, 20 * 25, 8 * 25]
    assert (tmp_path / "results/tiny/index.html").is_file()


@pytest.mark.slow
def test_the_small_twin_fills_its_table(tmp_path: Path) -> None:
    """`config/flash-digits.yaml` as it is shipped, with fewer videos, epochs and cells."""
    shipped = {
        n: yaml.safe_load((world.REPO / "config" / f"{n}.yaml").read_text()) for n in ("flash-digits", "digits-noise")
    }
    twin = shipped["flash-digits"]
    twin["videos"] |= {"train": 40, "test": 8}
    units = twin["sweeps"]["units"]
    units["rows"] = {"clusters": [1, 8]}
    units["columns"] = {name: units["columns"][name] for name in ("average", "FC1 + shift")}
    for head in (units["head"], twin["heads"]["noisy_or"], twin["heads"]["noisy_or_counted"]):
        head["train"] = {**head["train"], "epochs": 8}
    del twin["heads"]["noisy_or_classes"], twin["heads"]["noisy_or_exclusive"]
    for name, config in shipped.items():
        world.write_config(tmp_path, config, name)
    world.snakemake(tmp_path, "results/flash-digits")
    with (tmp_path / "results/flash-digits/tables/units.csv").open() as stream:
        best = {(row["column"], row["row"]): float(row["best_epoch"]) for row in csv.DictReader(stream)}
    assert best["FC1 + shift", "8"] > 0.9 > best["average", "1"] > 0.2
    page = (tmp_path / "results/flash-digits/index.html").read_text()
    assert units["title"] in page and "noisy_or_counted" in page


def test_another_datasets_training_is_planned_with_it(tmp_path: Path) -> None:
    world.write_config(tmp_path, TINY)
    world.write_config(tmp_path, NOISE, "noise")
    assert world.planned(tmp_path) == {"extract": 5, "gather": 2, "train": 2, "index": 1, "assemble": 1}
    back = {"kind": "rgb", "source": "frames", "batch": 64}
    back["network"] = TINY["extractors"]["cnn"]["network"] | {"weights": {"run": "x", "dataset": "tiny"}}
    circle = NOISE | {"extractors": NOISE["extractors"] | {"more": back}}
    world.write_config(tmp_path, circle, "noise")
    assert "datasets wait for each other" in world.snakemake(tmp_path, code=None)


def test_made_frames_become_a_store_however_often_the_job_is_stopped(tmp_path: Path) -> None:
    """The frames themselves, kept: each video's, in the order of the list; the same after a stop in the middle."""
    source = FlashDigits(format="flash_digits", digits="scikit-learn", kinds=2, train=3, test=2)
    items = tuple(Item(video.id, "") for video in flash.videolist(source).videos)

    class Stopping:
        shape = flash.SHAPE

        def __init__(self, left: int) -> None:
            self.left = left

        def frames(self, video: str) -> Any:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return flash.made(source).frames(video)

    def task(folder: str, left: int) -> Task:
        config = Frames(kind="frames")
        recipe = {"kind": "frames", "generator": flash.recipe(source)}
        where = {"root": tmp_path, "store": tmp_path / folder, "cache": tmp_path / "cache"}
        return Task("frames", config, recipe, None, 0, items, **where, generator=Stopping(left))  # type: ignore[arg-type]

    extract_shard(task("whole", 99), workers=1)
    with pytest.raises(KeyboardInterrupt):
        extract_shard(task("stopped", 11), workers=1)
    extract_shard(task("stopped", 99), workers=1)
    whole, stopped = (read_shard(tmp_path / name, 0) for name in ("whole", "stopped"))
    np.testing.assert_array_equal(whole.frames, stopped.frames)
    for number, item in enumerate(items):
        own = whole.frames[whole.offsets[number] : whole.offsets[number + 1]]
        np.testing.assert_array_equal(own, flash.made(source).frames(item.id))


@pytest.mark.parametrize(
    ("extractor", "videos", "message"),
    [
        ({"kind": "frames"}, {"format": "folder", "root": "."}, "another kind than frames in extractors.mine"),
        ({"kind": "pixels"}, TINY["videos"], "kind: frames or a source in extractors.mine"),
    ],
)
def test_frames_belong_to_videos_that_are_made(tmp_path: Path, extractor: Any, videos: Any, message: str) -> None:
    heads = {"average": {"kind": "average", "features": ["mine"]}}
    config = {"title": "x", "videos": videos, "extractors": {"mine": extractor}, "heads": heads}
    world.write_config(tmp_path, config)
    assert message in world.framepool(tmp_path, "index", "tiny", code=2)
