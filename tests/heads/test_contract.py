"""What every registered head promises; a new head joins by a line in `made.CASES`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import heads
from extract.networks.bf16 import has_bf16
from extract.networks.weights import fill, load_state, save_state
from features.batches import Features, all_rows
from features.errors import UserError
from heads.base import Head, masked_mean
from tests.heads.made import CASES, ORDERED, VECTORS, ZERO_ROW_SPEAKS, rows

ALL = pytest.mark.parametrize("case", CASES)
CLASSES = 5


def make(case: str, seed: int = 0, **more: Any) -> Head:
    name, shapes, options = CASES[case]
    torch.manual_seed(seed)
    head = heads.build(name, shapes, CLASSES, **{**options, **more})
    if head.fitted:
        features, masks = inputs(case, videos=30, length=4)
        head.fit([(features, masks, torch.nn.functional.one_hot(torch.arange(30) % CLASSES, CLASSES).float())])
    if case == "temporal_inception":  # with the statistics of an untrained batch norm its last channel may be dead
        for _ in range(40):
            head.train()(*inputs(case))
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
        broken = {m: x.clone() for m, x in features.items()}
        for m, x in broken.items():
            x[~masks[m]] = float("nan")
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
def test_order_of_rows_matters_only_where_it_should(case: str) -> None:
    head, (features, masks) = make(case), inputs(case, videos=1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    logits, other = head(features, masks), head({m: x[:, order] for m, x in features.items()}, masks)
    if case in ORDERED:
        assert (logits - other).abs().max() > 1e-4
    else:
        close(logits, other, case)


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
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        cancels = name.endswith(("weights.bias", "score.bias", "key.bias"))  # constants cancel in the softmax
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


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this CPU has no bf16: no step is in it here")
@ALL
def test_bf16_is_close(case: str) -> None:
    head, (features, masks) = make(case), inputs(case)
    exact = head(features, masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(features, masks).float()
    assert (rough - exact).norm() <= 0.05 * exact.norm() + 0.02


def test_means_of_a_bf16_step_are_as_exact_as_their_rows() -> None:
    values, mask = rows((9,), 3, 5), torch.arange(5) < torch.tensor([[5], [3], [0]])
    with torch.autocast("cpu", torch.bfloat16):
        found, rounded = masked_mean(values, mask), masked_mean(values.bfloat16(), mask)
    assert torch.equal(found, masked_mean(values, mask))
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), found, rtol=2e-2, atol=2e-2)


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


VECTOR_HEADS = pytest.mark.parametrize("case", [c for c, (_, shapes, _) in CASES.items() if shapes == VECTORS])


def lacking(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Videos of which the first has no flow, and the second nothing at all."""
    features, masks = inputs(case)
    masks["flow"][:2], masks["rgb"][1] = False, False
    return features, masks


@VECTOR_HEADS
def test_the_mean_stands_in_for_a_modality_that_is_missing(case: str) -> None:
    head = make(case)
    means = {m: torch.randn(shape, generator=torch.Generator().manual_seed(3)) for m, shape in VECTORS.items()}
    head.keep_means(means)
    features, masks = lacking(case)
    given = {m: x.clone() for m, x in features.items()}
    for modality, video in (("flow", 0), ("flow", 1), ("rgb", 1)):
        given[modality][video, 0] = means[modality]
    full = {m: x.clone() for m, x in masks.items()}
    full["flow"][:2, 0], full["rgb"][1, 0] = True, True
    if head._align:  # a row of it beside each of the first modality's
        full["flow"][0], given["flow"][0] = masks["rgb"][0], means["flow"]
    close(head(features, masks), head(given, full))
    assert not masks["flow"][:2].any(), "the caller's mask still says what is missing"


@VECTOR_HEADS
def test_a_head_may_choose_to_go_without(case: str) -> None:
    """Then what is missing counts as zeros, as a mean of zeros does."""
    head, zeros = make(case, missing="none"), make(case)
    assert head.state_dict().keys() == {k for k in zeros.state_dict() if not k.startswith("mean_")}
    zeros.load_state_dict(head.state_dict(), strict=False)
    features, masks = lacking(case)
    noisy = {m: x.masked_fill(~masks[m][..., None], 7.0) for m, x in features.items()}
    close(head(features, masks), head(noisy, masks))
    assert head(features, masks).isfinite().all()
    if case not in ZERO_ROW_SPEAKS:
        close(head(features, masks), zeros(features, masks))


@VECTOR_HEADS
def test_the_mean_is_kept_with_the_weights(case: str, tmp_path: Path) -> None:
    first, second = make(case), make(case, seed=1)
    first.keep_means({m: torch.ones(shape) for m, shape in VECTORS.items()})
    (tmp_path / "w.safetensors").write_bytes(save_state(first.state_dict(), {}))
    fill(second, load_state(tmp_path / "w.safetensors")[0], "w")
    close(first(*lacking(case)), second(*lacking(case)))


@VECTOR_HEADS
def test_what_stands_in_depends_on_nothing_else(case: str) -> None:
    """Neither on what stands in the padding, nor on the company; and a copied head has means of its own."""
    head = make(case)
    head.keep_means({m: torch.full(shape, 0.5) for m, shape in VECTORS.items()})
    features, masks = lacking(case)
    together = head(features, masks)
    broken = {m: x.clone() for m, x in features.items()}
    for m, x in broken.items():
        x[~masks[m]] = float("nan")
    close(together, head(broken, masks))
    for video in range(4):
        one = {m: x[[video]] for m, x in features.items()}, {m: x[[video]] for m, x in masks.items()}
        close(head(*one)[0], together[video])
    other = copy.deepcopy(head)
    other.keep_means({m: torch.full(shape, -1.0) for m, shape in VECTORS.items()})
    close(head(features, masks), together)
    assert (other(features, masks)[:2] - together[:2]).abs().max() > 5e-5
    close(other(features, masks)[2:], together[2:])


@VECTOR_HEADS
def test_aligned_modalities(case: str) -> None:
    """Sound at the times of pictures, against a loop; where there is no sound its mean is beside each picture."""
    generator = np.random.default_rng(0)
    times = {"rgb": [np.arange(n) * 40_000 for n in (6, 3, 0)], "flow": [np.arange(n) * 90_000 for n in (4, 0, 2)]}
    arrays = {
        m: [generator.standard_normal((len(t), *VECTORS[m]), dtype=np.float32) for t in times[m]] for m in VECTORS
    }
    head, means = make(case, align="rgb"), {m: torch.full(shape, 0.5) for m, shape in VECTORS.items()}
    head.keep_means(means)
    batch = Features.of(["a", "b", "c"], arrays, times).batch(torch.arange(3), all_rows, align="rgb")
    features, masks = head.completed(*batch)
    assert masks["rgb"].sum(dim=1).tolist() == masks["flow"].sum(dim=1).tolist() == [6, 3, 1]
    for row, time in enumerate(times["rgb"][0]):
        nearest = arrays["flow"][0][np.abs(times["flow"][0] - time).argmin()]
        np.testing.assert_array_equal(features["flow"][0, row], nearest)
    assert (features["flow"][1, :3] == means["flow"]).all()
    assert (features["rgb"][2, 0] == means["rgb"]).all() and (features["flow"][2, 0] == means["flow"]).all()
    plain = make(case, missing="none")
    plain.load_state_dict({k: v for k, v in head.state_dict().items() if not k.startswith("mean_")})
    close(head(*batch), plain(features, masks))
