"""Golden numbers: what fixed weights make of fixed inputs. A change to them needs a new `NUMERICS` and a reason.

python -m tests.golden.make > tests/golden/numbers.json
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

import heads
from extract.flow import flow
from extract.logmel import logmel
from extract.networks import Library, build
from heads.optimise import make_optimizer
from tests.heads.made import CASES

NETWORKS: tuple[tuple[str, Library, tuple[int, ...]], ...] = (
    ("test_resnet", "timm", (3, 64, 64)),
    ("resnet18", "timm", (3, 64, 64)),
    ("mobilenetv2_100", "timm", (3, 64, 64)),
    ("yamnet", "framepool", (1, 96, 64)),
    ("r3d_18", "torchvision", (3, 4, 32, 32)),
    ("r2plus1d_18", "torchvision", (3, 4, 32, 32)),
    ("r3d34", "framepool", (3, 4, 32, 32)),
    ("i3d", "framepool", (3, 9, 33, 32)),
    ("kft_trunk", "framepool", (3, 8, 112, 112)),
    ("c3d", "framepool", (3, 16, 112, 112)),
)
SHOWN = 9
TRAINED = (
    *("average", "attention_cluster-fc1", "attention_cluster-fc2", "flatten", "ts_lstm", "temporal_inception"),
    *("bilstm", "stacked_lstm", "vtn-paper", "vtn-code", "netvlad", "nextvlad", "noisy_or"),
    *("noisy_or-exclusive", "noisy_or-counted", "kft-3d", "kft-2d", "i3d"),
)
END_POINTS = (
    *(
        "Conv3d_1a_7x7",
        "MaxPool3d_2a_3x3",
        "Conv3d_2b_1x1",
        "Conv3d_2c_3x3",
        "MaxPool3d_3a_3x3",
        "Mixed_3b",
        "Mixed_3c",
    ),
    *("MaxPool3d_4a_3x3", "Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"),
    *("MaxPool3d_5a_2x2", "Mixed_5b", "Mixed_5c"),
)


def wave(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Numbers in [-1, 1] that no generator of random numbers has a part in."""
    count = int(np.prod(shape))
    return np.sin(0.7 * np.arange(count) + 0.3 * np.sqrt(np.arange(count))).astype(np.float32).reshape(shape)


def named_weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that follow from the names and shapes of a network's, whoever wrote the network."""
    found = dict(state)
    for key, value in state.items():
        if not value.is_floating_point():
            continue
        drawn = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(value.shape))
        if key.endswith("running_var"):
            drawn = 1 + 0.1 * np.abs(drawn)
        elif value.ndim > 1:
            drawn *= (2 / max(1, int(np.prod(value.shape[1:])))) ** 0.5
        else:
            drawn = 0.1 * drawn + (1.0 if key.endswith("weight") else 0.0)
        found[key] = torch.from_numpy(drawn.astype(np.float32)).reshape(value.shape)
    return found


def shown(values: torch.Tensor, count: int = SHOWN) -> list[float]:
    """Some of them, from the first to the last: of every branch that a layer joins."""
    flat = values.flatten()
    return [float(flat[k]) for k in np.linspace(0, len(flat) - 1, count).round().astype(int)]


def features(name: str, library: Library, shape: tuple[int, ...]) -> list[float]:
    """Some features of a network whose every weight follows from its name."""
    network = build(name, library=library, num_classes=0)
    network.load_state_dict(named_weights(network.state_dict()))
    with torch.inference_mode():
        return shown(network.trunk(torch.from_numpy(wave(1, *shape)))[0])


def end_points(network: torch.nn.Module, ends: Iterable[str]) -> list[float]:
    """Some numbers at every end point of I3D, ours or the public one (piergiaj/pytorch-i3d, whose keys are the same and
    whose layers have the same names): they agree to 1e-5 of the largest."""
    x, found = torch.from_numpy(wave(1, 3, 9, 65, 64)), []
    with torch.inference_mode():
        for end in ends:
            x = network.get_submodule(end)(x)
            found += shown(x / x.abs().max())
    return found


def i3d() -> list[float]:
    trunk = build("i3d", library="framepool").trunk
    trunk.load_state_dict(named_weights(trunk.state_dict()))
    return end_points(trunk.eval(), END_POINTS)


def trained(case: str) -> list[float]:
    """Losses of three steps of a head by its own recipe, and what it says of the same videos then."""
    name, shapes, options = CASES[case]
    torch.manual_seed(0)
    head = heads.build(name, shapes, 5, **options).train()
    head.load_state_dict(named_weights(head.state_dict()))
    train = heads.HEADS[name][1].parse({"features": list(shapes)}, case).train  # type: ignore[attr-defined]
    optimizer = make_optimizer(train, head.named_parameters(), head.lr_factors())
    features = {m: torch.from_numpy(wave(6, 7, *shape)) for m, shape in shapes.items()}
    masks = {m: torch.arange(7) < torch.tensor([7, 6, 5, 4, 2, 1])[:, None] for m in shapes}
    losses = []
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(head(features, masks), torch.arange(6) % 5)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        return [*losses, *shown(head.eval()(features, masks))]


def moving() -> tuple[np.ndarray[Any, np.dtype[np.uint8]], np.ndarray[Any, np.dtype[np.uint8]]]:
    """A texture, and the same a pixel and a half to the right and half a pixel up."""
    y, x = np.mgrid[0:48, 0:64].astype(np.float64)

    def picture(dx: float, dy: float) -> np.ndarray[Any, np.dtype[np.uint8]]:
        value = np.sin((x - dx) / 3) + np.cos((y - dy) / 4) + np.sin((x - dx + y - dy) / 5)
        return np.rint(127 + 40 * value).astype(np.uint8)

    return picture(0, 0), picture(1.5, -0.5)


def numbers() -> dict[str, list[float]]:
    found = {name: features(name, library, shape) for name, library, shape in NETWORKS}
    found["i3d end points"] = i3d()
    found |= {f"{case}, trained": trained(case) for case in TRAINED}
    motion = flow(*moving())
    found["tvl1"] = [float(v) for v in (*motion[:, 20, 30], *motion[:, 24, 40], motion.mean())]
    found["logmel"] = [float(v) for v in logmel(wave(15_600))[40, ::13]]
    return found


if __name__ == "__main__":
    json.dump(numbers(), sys.stdout, indent=1)
    print()
