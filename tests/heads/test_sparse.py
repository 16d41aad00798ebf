"""Products of what dropout keeps: against products of matrices with the same mask, and who is kept how often."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from heads.config import TrainConfig
from heads.denormals import flushed
from heads.dropout import DropoutLinear
from heads.optimise import make_optimizer
from heads.sparse import Sparse
from tests.heads.test_training import CLUSTER, bytes_of, go

TENTH = 6554  # of 2^16


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def matrices(videos: int, sizes: list[int], outputs: int) -> tuple[list[Tensor], Tensor, Tensor]:
    inputs = [torch.randn(videos, size) for size in sizes]
    return inputs, torch.randn(sum(sizes), outputs), torch.randn(videos, outputs)


@pytest.mark.parametrize(
    ("videos", "sizes", "outputs"), [(5, [600, 7], 65), (1, [1], 1), (33, [8192, 8193, 300], 64), (3, [256, 64], 100)]
)
@pytest.mark.parametrize("levels", [TENTH, 1 << 15, 65535])
def test_product_and_both_gradients(videos: int, sizes: list[int], outputs: int, levels: int) -> None:
    torch.manual_seed(0)
    sparse = Sparse()
    for count in (videos, max(1, videos - 2), videos):  # memory of another batch is written anew
        inputs, weight, dy = matrices(count, sizes, outputs)
        found, grad = sparse.forward(levels, inputs, weight), torch.full_like(weight, torch.nan)
        back = torch.cat(sparse.backward(dy, weight, grad), dim=1)
        mask = mask_of(sparse, count)
        kept = torch.cat(inputs, dim=1) * mask
        torch.testing.assert_close(found, kept @ weight, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(grad, kept.t() @ dy, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(back, (dy @ weight.t()) * mask, rtol=1e-4, atol=1e-3)


def mask_of(sparse: Sparse, videos: int) -> Tensor:
    """(B,D) bool: what the last forward pass kept."""
    columns, _, ends = sparse.lists(videos)
    found = torch.zeros(videos, sum(sparse.sizes), dtype=torch.bool)
    for s in sparse.slices:
        at = 0
        for block in range(-(-s.columns // 256)):
            for video in range(videos):
                end = int(ends[s.number][block, video])
                found[video, s.at + 256 * block + torch.from_numpy(columns[s.number][at:end]).long()] = True
                at = end
    return found


def mask(levels: int, videos: int, size: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    sparse = Sparse()
    sparse.forward(levels, [torch.ones(videos, size)], torch.ones(size, 1))
    return mask_of(sparse, videos)


@pytest.mark.parametrize("levels", [1, 655, TENTH, 1 << 15, 65535])
def test_kept_as_often_as_said(levels: int) -> None:
    kept, share = mask(levels, 200, 20_000), levels / 65536
    spread = (share * (1 - share) / kept.numel()) ** 0.5
    assert float(kept.double().mean()) == pytest.approx(share, abs=4 * spread)


def test_every_place_is_kept_for_itself_and_as_the_seed_says() -> None:
    kept = mask(1 << 14, 4000, 300).double()  # over the borders of words, and of a block
    joint = kept.t() @ kept / len(kept)
    expected = torch.full_like(joint, 1 / 16).fill_diagonal_(1 / 4)
    assert float((joint - expected).abs().max()) < 0.035, "no two places go together"
    videos = kept @ kept.t() / kept.shape[1]
    assert float((videos - torch.eye(len(videos)) * videos.diagonal()).max()) < 0.25, "no two videos do"
    assert torch.equal(mask(TENTH, 9, 700), mask(TENTH, 9, 700))
    assert not torch.equal(mask(TENTH, 9, 700), mask(TENTH, 9, 700, seed=1))
    long = mask(1 << 15, 40, 2 * 8192)
    assert not torch.equal(long[:, :8192], long[:, 8192:]), "nor do two slices"


def test_the_same_bytes_whatever_the_threads(threads: None) -> None:
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        inputs, weight, dy = matrices(4, [20_000, 9000], 70)
        sparse, grad = Sparse(), torch.empty_like(weight)
        found.append([sparse.forward(TENTH, inputs, weight), *sparse.backward(dy, weight, grad), grad])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_its_threads_have_no_denormals_either(threads: None) -> None:
    torch.set_num_threads(2)
    inputs, weight = [torch.full((2, 20_000), 1e-30)], torch.full((20_000, 1), 1e-10)
    assert bool((Sparse().forward(65535, inputs, weight) > 0).all())
    with flushed():
        if bool(torch.tensor(1e-30) * torch.tensor(1e-10) == 0):  # else the processor cannot
            assert bool((Sparse().forward(65535, inputs, weight) == 0).all())


@pytest.fixture
def heavy(monkeypatch: pytest.MonkeyPatch) -> DropoutLinear:
    monkeypatch.setattr("heads.dropout._WIDE", 1)
    monkeypatch.setattr("heads.dropout._OUTPUTS", 1)
    torch.manual_seed(0)
    return DropoutLinear(300, 64, 0.9).train()


def plainly(layer: DropoutLinear, *inputs: Tensor) -> Tensor:
    """What `layer` has just computed of them, with torch's own functions."""
    kept = torch.cat(inputs, dim=1) * mask_of(cast(Sparse, layer.sparse), len(inputs[0]))
    return nn.functional.linear(kept * (65536 / TENTH), layer.weight, layer.bias)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_heavy_layer_is_dropout_and_linear(heavy: DropoutLinear, precision: torch.dtype) -> None:
    inputs = [torch.randn(6, 200, requires_grad=True), torch.randn(6, 100, requires_grad=True)]
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        logits = heavy(*inputs)
    logits.square().sum().backward()
    tensors: list[Any] = [*inputs, heavy.weight, heavy.bias]
    found = [t.grad.clone() for t in tensors]
    other = plainly(heavy, *inputs)
    torch.testing.assert_close(logits, other, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, torch.autograd.grad(other.square().sum(), tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gradients_of_a_batch_in_parts_add_up(heavy: DropoutLinear) -> None:
    expected = torch.zeros_like(heavy.weight)
    for part in torch.randn(4, 300).split(2):
        heavy(part).square().sum().backward()
        expected += torch.autograd.grad(plainly(heavy, part).square().sum(), heavy.weight)[0]
    torch.testing.assert_close(heavy.weight.grad, expected, rtol=1e-4, atol=1e-4)


def test_it_is_tested_loaded_and_copied_as_any_linear_layer(heavy: DropoutLinear) -> None:
    x = torch.randn(3, 300)
    plain = nn.Linear(300, 64)
    plain.load_state_dict(heavy.state_dict())
    assert plain.weight.is_contiguous() and torch.equal(plain(x), nn.functional.linear(x, plain.weight, plain.bias))
    torch.testing.assert_close(heavy.eval()(x), plain(x))
    heavy.load_state_dict({name: value * 2 for name, value in plain.state_dict().items()})
    torch.testing.assert_close(heavy(x), 2 * plain(x))
    assert not heavy.weight.is_contiguous(), "an input's weights stay side by side"
    heavy.train()(x)
    other = copy.deepcopy(heavy)
    assert cast(Sparse, other.sparse).kept is not cast(Sparse, heavy.sparse).kept
    assert not other.weight.is_contiguous()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_optimisers_take_it_as_it_lies(heavy: DropoutLinear, optimizer: Any) -> None:
    plain = nn.Linear(300, 64)
    plain.load_state_dict(heavy.state_dict())
    config = TrainConfig(optimizer=optimizer, lr=1e-2, weight_decay=0.1)
    steps = [make_optimizer(config, layer.named_parameters(), {}) for layer in (heavy, plain)]
    for _ in range(3):
        heavy.zero_grad(set_to_none=True)
        heavy(torch.randn(6, 300)).square().sum().backward()
        for name, parameter in plain.named_parameters():
            parameter.grad = heavy.get_parameter(name).grad.contiguous()  # type: ignore[union-attr]
        for step in steps:
            step.step()
    torch.testing.assert_close(heavy.weight.contiguous(), plain.weight)


def test_inputs_that_learn_nothing_have_no_gradient(heavy: DropoutLinear) -> None:
    x, found = torch.randn(6, 300), []
    for needed in (True, False):
        torch.manual_seed(0)
        heavy.zero_grad(set_to_none=True)
        heavy(x.detach().requires_grad_(needed)).square().sum().backward()
        found.append([p.grad.clone() for p in heavy.parameters()])  # type: ignore[union-attr]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    sparse, dy = cast(Sparse, heavy.sparse), torch.ones(6, 64)
    assert sparse.backward(dy, heavy.weight.t(), torch.empty(300, 64), needed=False) == ()


def test_a_pass_between_another_and_its_way_back_is_refused(heavy: DropoutLinear) -> None:
    first = heavy(torch.randn(6, 300))
    heavy(torch.randn(5, 300))
    with pytest.raises(RuntimeError, match="came between another and its way back"):
        first.sum().backward()


@pytest.mark.parametrize("accumulate", [None, 2])
def test_a_training_with_it_goes_on_to_the_same_bytes(
    heavy: DropoutLinear, tmp_path: Path, accumulate: int | None
) -> None:
    config = CLUSTER.model_copy(
        update={"dropout": 0.8, "train": CLUSTER.train.model_copy(update={"accumulate": accumulate, "clip": 1e-3})}
    )

    def stop(line: str) -> None:
        if line.startswith("epoch 2/"):
            raise KeyboardInterrupt

    go(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "parts", config, log=stop)
    go(tmp_path / "parts", config)
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")
