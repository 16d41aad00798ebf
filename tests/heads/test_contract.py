"""What every registered head promises; a new head joins by a line in `made.CASES`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import heads
from extract.networks.weights import fill, load_state, save_state
from features.errors import UserError
from heads.base import Head
from tests.heads.made import CASES, VECTORS, rows

ALL = pytest.mark.parametrize("case", CASES)
CLASSES = 5


def make(case: str, seed: int = 0) -> Head:
    name, shapes, options = CASES[case]
    torch.manual_seed(seed)
    head = heads.build(name, shapes, CLASSES, **options)
    if head.fitted:
        features, masks = inputs(case, videos=30, length=4)
        head.fit([(features, masks, torch.nn.functional.one_hot(torch.arange(30) % CLASSES, CLASSES).float())])
    return head.eval()


def inputs(case: str, videos: int = 4, length: int = 6, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Videos of `length`, `length - 1`, ... rows."""
    _, shapes, _ = CASES[case]
    counts = (length - torch.arange(videos)).clamp_min(1)
    masks = {m: torch.arange(length) < counts[:, None] for m in shapes}
    return {m: rows(shape, videos, length, seed=seed) for m, shape in shapes.items()}, masks


def close(a: Tensor, b: Tensor, case: str = "") -> None:
    """bf16 kernels may take another order of sums in another batch."""
    tolerance = 3e-2 if case.endswith("bf16") else 1e-5
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_every_head_has_a_case() -> None:
    assert {name for name, _, _ in CASES.values()} == set(heads.HEADS)


@ALL
@pytest.mark.parametrize("length", [1, 2, 7])
def test_any_length_gives_finite_logits(case: str, length: int) -> None:
    logits = make(case)(*inputs(case, videos=3, length=length))
    assert logits.shape == (3, CLASSES)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@ALL
def test_padded_rows_never_matter(case: str) -> None:
    head, (features, masks) = make(case), inputs(case)
    noisy = {
        m: torch.where(masks[m].view(*masks[m].shape, *[1] * (x.ndim - 2)), x, rows(x.shape[2:], *x.shape[:2], seed=9))
        for m, x in features.items()
    }
    close(head(features, masks), head(noisy, masks), case)
    if all(x.is_floating_point() for x in features.values()):
        broken = {m: x.masked_fill(~masks[m][..., None], float("nan")) for m, x in features.items()}
        close(head(features, masks), head(broken, masks), case)


@ALL
def test_company_in_the_batch_never_matters(case: str) -> None:
    head, (features, masks) = make(case), inputs(case)
    together = head(features, masks)
    for video in range(4):
        length = int(next(iter(masks.values()))[video].sum())
        alone = head(
            {m: x[[video], :length] for m, x in features.items()}, {m: x[[video], :length] for m, x in masks.items()}
        )
        close(alone[0], together[video], case)


@ALL
def test_order_of_rows_does_not_matter(case: str) -> None:
    """All heads so far promise this; one that does not will say so in its case."""
    head, (features, masks) = make(case), inputs(case, videos=1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    close(head(features, masks), head({m: x[:, order] for m, x in features.items()}, masks), case)


@ALL
def test_a_video_without_rows_gives_finite_logits(case: str) -> None:
    head, (features, masks) = make(case), inputs(case)
    for mask in masks.values():
        mask[1] = False
    logits = head(features, masks)
    assert logits.isfinite().all()
    if len(masks) > 1:  # the other modality still speaks
        masks["flow"][1, 0] = True
        assert not torch.equal(head(features, masks)[1], logits[1])


@ALL
def test_gradients_reach_every_parameter(case: str) -> None:
    head = make(case).train()
    features, masks = inputs(case)
    logits = head(features, masks)
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    if head.fitted:
        return
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        cancels = name.endswith(("weights.bias", "score.bias"))  # constants cancel in the softmax
        assert cancels or parameter.grad.abs().max() > 0, name


@ALL
def test_gradients_stay_finite_beside_a_video_without_rows(case: str) -> None:
    head = make(case).train()
    features, masks = inputs(case)
    for mask in masks.values():
        mask[2] = False
    head(features, masks).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@ALL
def test_saves_and_loads(case: str, tmp_path: Path) -> None:
    head, (features, masks) = make(case), inputs(case)
    path = tmp_path / "w.safetensors"
    path.write_bytes(save_state(head.state_dict(), {}))
    name, shapes, options = CASES[case]
    other = heads.build(name, shapes, CLASSES, **options).eval()
    fill(other, load_state(path)[0], str(path))
    assert torch.equal(head(features, masks), other(features, masks))


@ALL
def test_bf16_is_close(case: str) -> None:
    head, (features, masks) = make(case), inputs(case)
    exact = head(features, masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(features, masks).float()
    assert (rough - exact).norm() <= 0.05 * exact.norm() + 0.02


@ALL
def test_evaluation_is_repeatable_and_training_uses_only_torchs_seed(case: str) -> None:
    head, (features, masks) = make(case), inputs(case)
    assert torch.equal(head(features, masks), head(features, masks))
    head.train()
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(head(features, masks))
    close(results[0], results[1], case)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown head: got atention_cluster; did you mean 'attention_cluster'"):
        heads.build("atention_cluster", VECTORS, 3)
    with pytest.raises(UserError, match=r"unknown key: head average: .*droput; did you mean 'dropout'"):
        heads.build("average", VECTORS, 3, droput=0.1)


def test_vector_heads_refuse_maps_and_tsn_refuses_vectors() -> None:
    with pytest.raises(
        UserError, match=r"average reads vectors: pixels: expected rows of shape \(D,\), got \(8, 8, 3\)"
    ):
        heads.build("average", {"pixels": (8, 8, 3)}, 3)
    with pytest.raises(UserError, match="tsn reads one store of maps"):
        heads.build("tsn", {"rgb": (8,)}, 3, network={"name": "resnet10t"})
