"""Runtimes agree with each other and with a network's known outputs; what was converted once stays converted (F40)."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from contextvars import Context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from extract.config import NUMERICS, NetworkConfig, Rgb, Transform, Trunk
from extract.convert import converter, prepare
from extract.runtime import Engine, Model, engine, feature_shape, steps
from extract.samplings import Clips, Uniform
from features.errors import UserError
from features.recipe import file_sha256
from tests.extract.photos import config, photos, reference, relative
from tests.media import needs_shared, write_network

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runtime")
    write_network(folder / "w.safetensors", "test_resnet")
    return folder


def model(folder: Path, **fields: Any) -> Model:
    network = NetworkConfig(name="test_resnet", weights=folder / "w.safetensors")
    values = {"kind": "rgb", "network": network, "transform": Transform(resize=64, crop=64), "batch": 4, **fields}
    return Model(Rgb.model_validate(values), folder / "w.safetensors")


def noise(count: int, seed: int = 0) -> Pixels:
    """(n, 64, 64, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def imported(name: str) -> bool:
    return name in sys.modules


def rows(which: Model, folder: Path, batches: list[Pixels], threads: int = 1) -> npt.NDArray[np.float32]:
    facts = prepare(which, folder / "cache")
    return through(engine(which, facts, folder / "cache", threads=threads), batches)


def through(run: Engine, batches: list[Pixels]) -> npt.NDArray[np.float32]:
    """Two batches ahead, as a lane does it."""
    tickets: list[Any] = []
    found = []
    for batch in batches:
        tickets.append(run.start(batch))
        if len(tickets) == 3:
            found.append(run.finish(tickets.pop(0)))
    found += [run.finish(ticket) for ticket in tickets]
    run.close()
    return np.concatenate(found)


def batches(pixels: Pixels, size: int = 4) -> list[Pixels]:
    return [pixels[at : at + size] for at in range(0, len(pixels), size)]


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_runtime_agrees_with_the_plain_network(folder: Path, runtime: str) -> None:
    import torch

    from extract.networks import build

    network, pixels = build("test_resnet", weights=folder / "w.safetensors"), noise(10)
    spec = network.input
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    with torch.no_grad():
        plain = network.trunk((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    got = rows(model(folder, runtime=runtime), folder, batches(pixels))
    assert got.dtype == np.float32 and got.shape == (10, network.feature_dim)
    assert relative(got, plain) < 1e-5


def test_runtimes_batch_shapes_and_threads_agree(folder: Path) -> None:
    first = rows(model(folder, runtime="openvino"), folder, batches(noise(10)))
    for runtime in ("openvino", "torch"):
        assert relative(rows(model(folder, runtime=runtime), folder, batches(noise(10)), threads=2), first) < 1e-5
    assert relative(rows(model(folder, batch=10), folder, [noise(10)]), first) < 1e-5


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_bf16_is_a_choice_and_near(folder: Path, runtime: str) -> None:
    exact = rows(model(folder, runtime=runtime), folder, batches(noise(8)))
    rounded = rows(model(folder, runtime=runtime, precision="bf16"), folder, batches(noise(8)))
    assert rounded.dtype == np.float32
    assert relative(rounded, exact) < 0.05


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_short_batch_gives_the_bytes_of_a_padded_one(folder: Path, runtime: str) -> None:
    """Whatever the slots of the batch held before: the rest is zeros."""
    which = model(folder, runtime=runtime)
    pixels = noise(9)
    first = rows(which, folder, [pixels[:4], pixels[4:8], pixels[8:]])
    alone = rows(which, folder, [pixels[8:]])
    padded = rows(which, folder, [np.concatenate([pixels[8:], np.zeros_like(pixels[:3])])])
    assert first[8:].tobytes() == alone.tobytes() == padded[:1].tobytes()
    assert first.tobytes() == rows(which, folder, [pixels[:4], pixels[4:8], pixels[8:]]).tobytes()


def test_facts_are_what_the_weights_lead_to(folder: Path) -> None:
    from extract.networks import build

    facts = prepare(model(folder), folder / "cache")
    assert facts["weights_sha256"] == file_sha256(folder / "w.safetensors")
    assert facts["row_shape"] == [build("test_resnet").feature_dim] == list(feature_shape(model(folder)))
    assert facts["transform"]["crop"] == 64 and facts["transform"]["interpolation"] in ("bilinear", "bicubic")
    default = model(folder, transform=Transform()).build()[1]["transform"]
    assert default["resize"] >= default["crop"] > 0 and len(default["mean"]) == len(default["std"]) == 3


def test_the_second_time_converts_nothing_and_imports_no_torch(folder: Path) -> None:
    prepare(model(folder), folder / "cache")
    before = {p: p.stat().st_mtime_ns for p in (folder / "cache").glob("test_resnet-*/*")}
    code = (
        "import sys; from pathlib import Path; from tests.extract.test_runtime import *\n"
        "folder = Path(sys.argv[1]); which = model(folder)\n"
        "got = rows(which, folder, [noise(4)])\n"
        "print(*[m for m in ('torch', 'timm', 'torchvision') if m in sys.modules], got.shape[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == ["4"]
    assert {p: p.stat().st_mtime_ns for p in (folder / "cache").glob("test_resnet-*/*")} == before


def test_one_process_converts_the_networks_of_a_job_and_ends_with_it(folder: Path, tmp_path: Path) -> None:
    def job() -> None:
        with converter() as pool:
            process = pool.submit(os.getpid).result()
            for batch in (5, 6):
                prepare(model(folder, batch=batch), tmp_path)
                with converter() as inner:
                    assert inner.submit(os.getpid).result() == process
            assert pool.submit(imported, "timm").result(), "there they were converted"
        assert not psutil.pid_exists(process)

    Context().run(job)  # the tests' own is not open in there


def test_paths_are_from_where_who_asks_stands(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not from where the process that converts was begun."""
    write_network(tmp_path / "other" / "w.safetensors", "test_resnet", seed=1)
    with converter() as pool:
        pool.submit(os.getpid).result()
        monkeypatch.chdir(tmp_path)
        facts = prepare(model(Path("other")), Path("cache"))
    assert facts["weights_sha256"] == file_sha256(tmp_path / "other" / "w.safetensors")


def test_where_the_frames_are_makes_no_other_network_but_how_many_does(folder: Path) -> None:
    some = [model(folder, sampling=Uniform(n=n), precision="int8") for n in (3, 4)]
    assert {m.key() for m in some} == {model(folder).key()}
    assert len({m.quantised_key() for m in some}) == 2, "it has seen other frames"
    network = NetworkConfig(name="r2plus1d_18", library="torchvision", weights="DEFAULT")
    clips = [Trunk(kind="trunk", network=network, sampling=Clips(frames=n)) for n in (8, 16)]
    assert len({Model(config, "DEFAULT").key() for config in clips}) == 2


def test_every_other_network_has_a_place_of_its_own(folder: Path, tmp_path: Path) -> None:
    write_network(tmp_path / "w.safetensors", "test_resnet", seed=1)
    crop = Transform(resize=64, crop=32)
    models = [model(folder), model(tmp_path), model(folder, batch=5), model(folder, transform=crop)]
    models.append(model(folder, runtime="torch"))
    assert len({m.key() for m in models}) == len(models)
    assert model(folder, precision="bf16").key() == model(folder).key()


def test_changed_code_converts_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model(folder).key()
    monkeypatch.setitem(NUMERICS, "rgb", NUMERICS["rgb"] + 1)
    assert model(folder).key() != before


@pytest.mark.parametrize("has", [True, False])
def test_what_the_steps_of_bf16_are_here(folder: Path, monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8", *(["BF16"] if has else [])]

    monkeypatch.setattr("extract.openvino_core.CORE", Core())
    monkeypatch.setattr("extract.networks.bf16.has_bf16", lambda device: has)
    for runtime in ("openvino", "torch"):
        assert steps(model(folder, runtime=runtime, precision="bf16").config) == ("bf16" if has else "fp32")


def test_weights_that_do_not_fit_are_the_users_to_mend(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"weights do not load: .*w.safetensors"):
        prepare(model(tmp_path), tmp_path / "cache")  # the message crosses a process border
    with pytest.raises(UserError, match=r"weights do not fit: .*they are of name 'test_resnet', .* 'resnet5'"):
        model(folder, network=NetworkConfig(name="resnet5", weights=folder / "w.safetensors")).build()


VIT = "vit_tiny_patch16_224"
CLIPS = {"kind": "trunk", "sampling": Clips(frames=4)}


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        (VIT, {}, "VisionTransformer .* 3x64x64: Input height .*; set a crop that it takes, such as 224, or ch"),
        ("test_resnet", CLIPS, "ResNet .* 3x4x64x64: .*; it reads pictures: choose one of clips, or kind: rgb"),
        ("r2plus1d_18", {}, "VideoResNet .* 3x64x64: .*; it reads clips: choose one of pictures, or kind: trunk"),
    ],
)
def test_rows_that_a_network_cannot_take_are_said_before_it_runs(name: str, fields: dict[str, Any], said: str) -> None:
    library = "torchvision" if name == "r2plus1d_18" else "timm"
    network = {"name": name, "library": library, "weights": "none.safetensors"}
    values = {"network": network, "transform": {"resize": 64, "crop": 64}, **fields}
    which = (Trunk if fields else Rgb).model_validate({"kind": "rgb", **values})
    with pytest.raises(UserError, match=f"network does not take its rows: network {name}: got {said}"):
        feature_shape(Model(which, None))


def test_rows_that_a_network_cannot_take_are_not_converted(tmp_path: Path) -> None:
    write_network(tmp_path / "w.safetensors", VIT)
    which = model(tmp_path, network=NetworkConfig(name=VIT, weights=tmp_path / "w.safetensors"))
    with pytest.raises(UserError, match=f"network does not take its rows: network {VIT}: got VisionTransformer"):
        prepare(which, tmp_path / "cache")


def test_a_mean_alone_is_of_as_many_colours_as_the_networks_std(folder: Path) -> None:
    which = model(folder, transform=Transform(resize=64, crop=64, mean=(0.5,)))
    with pytest.raises(UserError, match="mean and std differ in length: network test_resnet: got 1 and 3; set both"):
        feature_shape(which)
    alike = Transform(resize=64, crop=64, mean=(0.5,), std=(0.5,))
    assert feature_shape(model(folder, transform=alike)) == feature_shape(model(folder))


@pytest.mark.skipif(sys.platform != "linux", reason="the stack of signals is changed on Linux")
def test_after_engines_a_signal_is_still_handled(folder: Path) -> None:
    """What stops a job in good order must not be a segmentation fault."""
    which = model(folder)
    facts = prepare(which, folder / "cache")
    engines = [engine(which, facts, folder / "cache", threads=1) for _ in range(2)]
    while engines:
        engines.pop(0).close()
    gc.collect()
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(7))
        signal.raise_signal(signal.SIGUSR1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_device_that_is_not_here(folder: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    which = model(folder, device="cuda")
    with pytest.raises(UserError, match="no CUDA device here: test_resnet; set `device: cpu`, or run elsewhere"):
        engine(which, prepare(which, folder / "cache"), folder / "cache", threads=1)


@needs_shared
@pytest.mark.parametrize("runtime", ["openvino", pytest.param("torch", marks=pytest.mark.slow)])
def test_the_shared_mobilenet_gives_its_reference_features(runtime: str, tmp_path: Path) -> None:
    which = Model(config(runtime), config(runtime).network.weights)  # type: ignore[arg-type]
    got = rows(which, tmp_path, batches(photos(), 8), threads=2)
    expected = reference()["features"]
    assert got.shape == expected.shape
    assert relative(got, expected) < 1e-4
    assert max(relative(g, e) for g, e in zip(got, expected, strict=True)) < 1e-4
    assert relative(got.astype(np.float16), expected) < 5e-4
