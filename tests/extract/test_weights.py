"""Weights of networks: saved and loaded again; they fit exactly or are refused in one line (F44, F45)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from extract.networks import (
    NetworkError,
    build,
    load_state,
    save_network,
    save_state,
    state_sha256,
)
from tests.media import write_network


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_saved_and_loaded_again(tmp_path: Path, name: str) -> None:
    path = write_network(tmp_path / "n.safetensors", name, num_classes=5)
    first, second = build(name, weights=path), build(name, weights=path)
    images = torch.randn(2, 3, 64, 64) if name == "test_resnet" else torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(first(images), second(images))
    assert first.num_classes == 5 and first.weights_sha256 == second.weights_sha256 == state_sha256(first.state_dict())
    assert save_network(first) == path.read_bytes()
    assert build(name, weights=str(path), num_classes=0)(images).shape == (2, first.feature_dim)  # type: ignore[arg-type]
    assert build(name, weights=path, num_classes=9)(images).shape == (2, 9)


def test_other_weights_have_another_digest() -> None:
    torch.manual_seed(0)
    state = build("test_resnet").state_dict()
    before = state_sha256(state)
    assert state_sha256(dict(reversed(state.items()))) == before
    key = next(iter(state))
    state[key] = state[key] + 1
    assert state_sha256(state) != before


def state_of(name: str = "test_resnet") -> dict[str, torch.Tensor]:
    """As the library saves it: its own keys, no notes."""
    import timm

    torch.manual_seed(0)
    return dict(timm.create_model(name).state_dict())


def test_a_librarys_own_file_fits_in_every_wrapping(tmp_path: Path) -> None:
    state = state_of()
    (tmp_path / "a.safetensors").write_bytes(save_state(state, {}))
    safetensors.torch.save_file(state, tmp_path / "b.safetensors")
    torch.save(state, tmp_path / "c.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "d.pth")
    torch.save({"model": state}, tmp_path / "e.pt")
    averaged = {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in state.items()}}
    torch.save({"model_ema": averaged, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.7)}, tmp_path / "f.pth")
    torch.save({"model": {"state_dict": {f"_orig_mod.{k}": v for k, v in state.items()}}}, tmp_path / "g.pt")
    safetensors.torch.save_file({f"module.{k}": v for k, v in state.items()}, tmp_path / "h.safetensors")
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "i.pt")
    digests = {build("test_resnet", weights=p).weights_sha256 for p in sorted(tmp_path.iterdir())}
    assert len(digests) == 1


class Recipe:
    """What a training of somebody's saved beside its weights."""


def test_a_file_with_more_than_one_set_of_weights_or_with_other_things_says_so(tmp_path: Path) -> None:
    state, path = state_of(), tmp_path / "w.pth"
    torch.save({"state_dict": state, "state_dict_ema": state}, path)
    with pytest.raises(NetworkError, match="expected one state dict, got state_dict and state_dict_ema; save the one "):
        load_state(path)
    torch.save({"state_dict": state, "recipe": Recipe()}, path)
    with pytest.raises(NetworkError, match=r"it holds a tests\S+Recipe beside the tensors: save the state dict alone"):
        load_state(path)


def first_of(state: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    key = next(k for k in state if k.endswith("weight"))
    return {**state, key: change(state[key])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: dict(list(s.items())[1:]), r"they lack key '.*' \(1 missing, 0 unknown of \d+ keys\)"),
        (lambda s: {**s, "extra.key": torch.zeros(1)}, r"they have an unknown key 'extra.key' \(0 missing, 1 unknown"),
        (lambda s: first_of(s, lambda t: t[:1]), r"weight: expected \[\d+, .*\], got \[1, "),
        (lambda s: first_of(s, lambda t: t * float("nan")), r"weights are not finite: .*: .*weight"),
        (lambda s: first_of(s, torch.Tensor.char), r"weight: expected torch.float32, got torch.int8"),
        (lambda s: first_of(s, lambda t: t + 0j), r"weight: expected torch.float32, got torch.complex64"),
        (lambda s: {}, r"they lack key"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(save_state(change(state_of()), {}))
    with pytest.raises(NetworkError, match=message) as error:
        build("test_resnet", weights=path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_weights_of_another_network_or_option_are_refused(tmp_path: Path) -> None:
    path = write_network(tmp_path / "n.safetensors", "test_vit")
    with pytest.raises(NetworkError, match="of name 'test_vit', the config asks for 'test_resnet'"):
        build("test_resnet", weights=path)
    with pytest.raises(NetworkError, match=r"of options \{\}, the config asks for \{'class_token': False\}"):
        build("test_vit", weights=path, options={"class_token": False})


class Bomb:
    """Touches a canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.canary}'",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_pickle_bomb_is_not_executed(tmp_path: Path, suffix: str) -> None:
    path, canary = tmp_path / f"bomb{suffix}", tmp_path / "canary"
    torch.save({"state_dict": {"x": Bomb(canary)}}, path)
    with pytest.raises(NetworkError, match=f"weights do not load: {path}: .*; nothing in the file was executed"):
        build("test_resnet", weights=path)
    assert not canary.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
@pytest.mark.parametrize("data", [b"", b"\0", b"no weights at all", b"\xff" * 64])
def test_broken_files_are_refused_in_one_line(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(data)
    with pytest.raises(NetworkError, match=f"weights do not load: {path}: .+; nothing") as error:
        load_state(path)
    assert "\n" not in str(error.value)


def test_a_reader_that_stumbles_says_that_it_is_no_file_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(b"hello")
    with pytest.raises(NetworkError, match=r"weights do not load: .*w.pt: it is no file of weights \(\d+\); nothing"):
        load_state(path)


def test_a_file_that_holds_something_else(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(NetworkError, match="expected a state dict of tensors, got list"):
        load_state(tmp_path / "list.pt")
    with pytest.raises(
        NetworkError, match=r"weights are not there: .*absent.pt: expected a .safetensors, .npz, .pt or .pth"
    ):
        load_state(tmp_path / "absent.pt")


def test_weights_that_cannot_be_downloaded_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch.hub

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(NetworkError, match=r"weights DEFAULT of resnet18 cannot be had: Name or service .*local file"):
        build("resnet18", library="torchvision", weights="DEFAULT")


def test_saved_with_a_layer_and_loaded_for_another(tmp_path: Path) -> None:
    path, images = tmp_path / "n.safetensors", torch.randn(1, 3, 160, 160)
    torch.manual_seed(0)
    network = build("test_resnet", layer="layer2", num_classes=4)
    path.write_bytes(save_network(network))
    same, other = build("test_resnet", weights=path, layer="layer2"), build("test_resnet", weights=path, layer="layer1")
    whole = build("test_resnet", weights=path)
    with torch.no_grad():
        assert torch.equal(same(images), network(images)) and same.num_classes == 4
        assert other.num_classes == whole.num_classes == 0
        torch.manual_seed(0)
        assert torch.equal(whole(images), build("test_resnet", num_classes=0)(images))
    assert save_network(same) == path.read_bytes()
    assert build("test_resnet", weights=path, num_classes=3)(images).shape == (1, 3)


def test_a_network_of_differences_does_not_read_pictures(tmp_path: Path) -> None:
    network = build("test_resnet", reads="rgbdiff")
    (tmp_path / "w.safetensors").write_bytes(save_network(network))
    assert build("test_resnet", weights=tmp_path / "w.safetensors").input.reads == "rgbdiff"
    with pytest.raises(NetworkError, match=r"w.safetensors: they were trained on rgbdiff, the config reads rgb"):
        build("test_resnet", weights=tmp_path / "w.safetensors", reads="rgb")


def test_files_from_before_frames_and_reads(tmp_path: Path) -> None:
    network = build("test_resnet", num_classes=5)
    old = {**network.notes, "num_classes": 5}
    old["input"] = {"size_px": 96, "mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bicubic", "crop_ratio": 0.9}
    (tmp_path / "old.safetensors").write_bytes(save_state(network.state_dict(), old))
    again = build("test_resnet", weights=tmp_path / "old.safetensors")
    assert (again.input.frames, again.input.reads, again.input.size_px) == (1, "rgb", 96)
    assert again.num_classes == 5 and again.input.mean == (0.1, 0.1, 0.1)
