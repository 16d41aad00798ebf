"""Attention clusters against their formulae, written out slowly; parameter counts and initial values as published."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import heads
from tests.heads.made import rows


def slow(head: Any, x: np.ndarray[Any, Any], weighting: str, shift: bool) -> np.ndarray[Any, Any]:
    """One video (L,D), one modality: the concatenated units (N*D,), formula by formula."""
    p = {k: v.detach().double().numpy() for k, v in head.clusters["rgb"].named_parameters()}
    units = []
    for k in range(4):
        if weighting == "fc1":
            scores = [p["weights.weight"][k] @ row + p["weights.bias"][k] for row in x]
        elif weighting == "fc2":
            w1, b1 = (p[f"weights.hidden.{name}"][k * 10 : k * 10 + 10] for name in ("weight", "bias"))
            w2, b2 = p["weights.score"][k], p["weights.bias"][k]
            scores = [w2 @ np.tanh(w1 @ row + b1) + b2 for row in x]
        else:
            scores = [0.0 for _ in x]
        e = np.exp(np.array(scores) - max(scores))
        v = (e / e.sum()) @ x
        if shift:
            u = p["shift.alpha"][k] * v + p["shift.beta"][k]
            v = u / (np.sqrt(4) * np.sqrt((u * u).sum()))
        units.append(v)
    return np.concatenate(units)


@pytest.mark.parametrize("weighting", ["average", "fc1", "fc2"])
@pytest.mark.parametrize("shift", [True, False])
def test_agrees_with_the_formulae(weighting: str, shift: bool) -> None:
    head: Any = heads.build("attention_cluster", {"rgb": (9,)}, 3, clusters=4, weighting=weighting, shift=shift).eval()
    features, lengths = rows((9,), 3, 6), [6, 4, 1]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    logits = head({"rgb": features}, {"rgb": mask}).detach().double().numpy()
    weight, bias = (p.detach().double().numpy() for p in (head.classifier.weight, head.classifier.bias))
    for video, length in enumerate(lengths):
        g = slow(head, features[video, :length].double().numpy(), weighting, shift)
        if shift:
            assert np.linalg.norm(g) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(logits[video], weight @ g + bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "m", "k"), [(1, 8, 3), (64, 1280, 6), (128, 50, 1024)])
def test_parameter_counts(n: int, m: int, k: int) -> None:
    def count(**options: Any) -> int:
        return sum(
            p.numel() for p in heads.build("attention_cluster", {"rgb": (m,)}, k, clusters=n, **options).parameters()
        )

    classifier = (n * m + 1) * k
    assert count(weighting="fc1", shift=True) == n * (m + 1) + 2 * n + classifier  # w and b, alpha and beta, FC
    assert count(weighting="fc1", shift=False) == n * (m + 1) + classifier
    assert count(weighting="fc2", shift=True) == n * (10 * m + 10 + 10 + 1) + 2 * n + classifier  # W1, b1, w2, b2
    assert count(weighting="average", shift=False) == classifier


def test_initial_values() -> None:
    torch.manual_seed(0)
    head: Any = heads.build("attention_cluster", {"rgb": (50,)}, 3, clusters=4096)
    for values in (head.clusters["rgb"].shift.alpha, head.clusters["rgb"].shift.beta):
        assert float(values.detach().std()) == pytest.approx(4096**-0.25, rel=0.05)  # Glorot, fans sqrt(N)
    assert float(head.clusters["rgb"].weights.weight.detach().abs().max()) == pytest.approx(50**-0.5, rel=1e-3)


def test_attention_weights_on_request() -> None:
    head: Any = heads.build(
        "attention_cluster", {"rgb": (9,), "audio": (5,)}, 3, clusters={"rgb": 4, "audio": 2}
    ).eval()
    mask = torch.tensor([[True, True, False], [False, False, False]])
    found = head.attention({"rgb": rows((9,), 2, 3), "audio": rows((5,), 2, 3)}, {"rgb": mask, "audio": mask})
    assert found["rgb"].shape == (2, 4, 3)
    assert found["audio"].shape == (2, 2, 3)
    torch.testing.assert_close(found["rgb"][0].sum(dim=1), torch.ones(4))
    assert (found["rgb"][0, :, 2] == 0).all()
    assert (found["rgb"][1] == 0).all()


def test_a_zero_unit_does_not_divide_by_zero() -> None:
    head: Any = heads.build("attention_cluster", {"rgb": (9,)}, 3, clusters=2, dropout=0).train()
    with torch.no_grad():
        head.clusters["rgb"].shift.beta.zero_()
    head({"rgb": torch.zeros(2, 4, 9)}, {"rgb": torch.ones(2, 4, dtype=torch.bool)}).sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shift", [True, False])
def test_a_wide_cluster_learns_the_same_in_memory_that_it_keeps(
    precision: str, shift: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores and gradients of two steps, of batches of two sizes, against torch's own layers with the same mask."""
    options = {"clusters": {"rgb": 4, "flow": 3}, "shift": shift, "dropout": 0.5}
    torch.manual_seed(0)
    plain: Any = heads.build("attention_cluster", {"rgb": (9,), "flow": (4,)}, 3, **options).train()
    wide = copy.deepcopy(plain)
    found = []
    for head in (plain, wide):
        if head is wide:
            monkeypatch.setattr("heads.dropout._WIDE", 1)
            monkeypatch.setattr("heads.attention_cluster._MANY", 1)
            monkeypatch.setattr("heads.memory._CACHED", 100)  # two videos at a time
        for videos in (4, 3):
            torch.manual_seed(videos)
            features = {"rgb": rows((9,), videos, 6), "flow": rows((4,), videos, 6, seed=1)}
            masks = {"rgb": torch.ones(videos, 6, dtype=torch.bool), "flow": torch.arange(6).expand(videos, 6) < 4}
            head.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = head(features, masks).float()
            torch.nn.functional.cross_entropy(logits, torch.arange(videos) % 3).backward()  # type: ignore[no-untyped-call]
            found.append((logits.detach().clone(), {n: p.grad.clone() for n, p in head.named_parameters()}))
    tolerance = {"fp32": 1e-5, "bf16": 3e-2}[precision]
    for (logits, grads), (other, others) in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(logits, other, rtol=tolerance, atol=tolerance)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, others[name], rtol=tolerance, atol=tolerance, msg=name)
    again = {"rgb": rows((9,), 3, 6), "flow": rows((4,), 3, 6)}, {m: torch.ones(3, 6, dtype=torch.bool) for m in masks}
    first = wide(*again)
    wide(*again)
    with pytest.raises(RuntimeError, match="came between another and its way back"):
        first.sum().backward()
    assert wide.classifier.kept("grad", (3, 48)).shape == (3, 48)
    assert copy.deepcopy(wide).classifier.kept is not wide.classifier.kept
