"""YAMNet gives Google's numbers, from the public arrays and from a file of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from extract.networks import FromRows, NetworkError, build, save_network
from tests.media import SHARED, needs_shared

FOLDER = SHARED / "weights/yamnet"


def relative(got: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got.numpy() - expected) / np.linalg.norm(expected))


def reference(what: str) -> np.ndarray:
    """(6, ...): one for each sound."""
    with np.load(FOLDER / "reference_outputs.npz", allow_pickle=False) as arrays:
        return np.stack([arrays[key] for key in sorted(arrays.files) if key.endswith(f"/{what}")])


@needs_shared
def test_the_public_weights_give_the_reference_outputs(tmp_path: Path) -> None:
    network = build("yamnet", library="framepool", weights=FOLDER / "yamnet_folded_fp32.npz")
    (tmp_path / "ours.safetensors").write_bytes(save_network(network))
    again = build("yamnet", library="framepool", weights=tmp_path / "ours.safetensors")
    rows = FromRows(network.input.reads, network.input.mean, network.input.std)
    patches = rows(torch.from_numpy(reference("logmel")))  # (6, 1, 96, 64)
    with torch.no_grad():
        embeddings, scores = network.trunk(patches), network(patches).sigmoid()
        assert torch.equal(again(patches).sigmoid(), scores)
    assert embeddings.shape == (6, 1024) and network.num_classes == 521 and network.fresh == ()
    assert relative(embeddings, reference("embedding")) < 1e-5
    assert relative(scores, reference("scores")) < 1e-5
    assert np.abs(embeddings.numpy() - reference("embedding")).max() < 1e-3


def same_convolution(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's SAME, by its definition: (H, W), (3, 3) -> (ceil(H / stride), ceil(W / stride))."""
    sides = [-(-side // stride) for side in x.shape]
    rest = [max((out - 1) * stride + 3 - side, 0) for out, side in zip(sides, x.shape, strict=True)]
    padded = np.pad(x, [(n // 2, n - n // 2) for n in rest])
    places = [[padded[i * stride :, j * stride :][:3, :3] for j in range(sides[1])] for i in range(sides[0])]
    return np.array([[(place * kernel).sum() for place in row] for row in places])


@pytest.mark.parametrize(("layer", "stride"), [("layer2_dw", 1), ("layer3_dw", 2)])
def test_padding_is_tensorflows(layer: str, stride: int) -> None:
    torch.manual_seed(0)
    convolution = build("yamnet", library="framepool").trunk.get_submodule(layer)
    channels = int(convolution.in_channels)  # type: ignore[arg-type]
    x = torch.randn(1, channels, 12, 8)
    with torch.no_grad():
        got = convolution(x)[0, 0].numpy()
    kernel = convolution.weight[0, 0].detach().numpy()  # type: ignore[union-attr, index, operator]
    np.testing.assert_allclose(got, same_convolution(x[0, 0].numpy(), kernel, stride), atol=1e-5)


def test_arrays_that_do_not_fit(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **{"layer1.weight": np.zeros((32, 1, 3, 3), np.float32), "_mel": np.zeros(3)})
    with pytest.raises(NetworkError, match=r"w.npz: they lack key 'fc.bias' \(55 missing, 0 unknown of 56 keys\)"):
        build("yamnet", library="framepool", weights=tmp_path / "w.npz")
    np.savez(tmp_path / "o.npz", layer1=np.array([{}]))
    with pytest.raises(NetworkError, match=r"weights do not load: .*o.npz: .*; nothing in the file was executed"):
        build("yamnet", library="framepool", weights=tmp_path / "o.npz")
