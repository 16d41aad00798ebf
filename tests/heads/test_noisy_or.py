"""The noisy-or against its formula, and label codes against the independent parts that they stand for."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import heads
from features.errors import UserError
from heads.noisy_or import _odds
from tests.heads.made import rows

SETS = ("none", "a", "b", "a+b", "c", "a+c", "b+c", "a+b+c")


def test_agrees_with_the_formula() -> None:
    torch.manual_seed(0)
    head: Any = heads.build("noisy_or", {"rgb": (9,), "flow": (4,)}, 3, hidden=5).eval()
    features = {"rgb": rows((9,), 2, 6), "flow": rows((4,), 2, 3)}
    masks = {"rgb": torch.arange(6) < torch.tensor([[6], [2]]), "flow": torch.arange(3) < torch.tensor([[1], [3]])}
    logits = head(features, masks).detach().double().numpy()
    for video in range(2):
        nowhere = np.ones(3)
        for m, x in features.items():
            for row in x[video][masks[m][video]]:
                nowhere *= 1 - torch.sigmoid(head.rows[m](row)).detach().double().numpy()
        np.testing.assert_allclose(logits[video], np.log((1 - nowhere) / nowhere), rtol=1e-4)


def test_one_sure_row_is_enough() -> None:
    head: Any = heads.build("noisy_or", {"rgb": (2,)}, 2, hidden=2).eval()
    first, last = head.rows["rgb"][0], head.rows["rgb"][-1]
    with torch.no_grad():
        first.weight.copy_(torch.eye(2))
        last.weight.copy_(30 * torch.eye(2))
        for layer, bias in ((first, 0.0), (last, -9.0)):
            layer.bias.fill_(bias)
    x = torch.zeros(1, 50, 2)
    x[0, 17, 1] = 1
    logits = head({"rgb": x}, {"rgb": torch.ones(1, 50, dtype=torch.bool)})
    assert logits[0, 1] > 10 and logits[0, 0] < -4


@pytest.mark.parametrize("name", ["noisy_or", "attention_cluster", "average"])
def test_codes_make_the_softmax_that_of_independent_parts(name: str) -> None:
    """log softmax over all sets = sum over parts of log sigmoid(z) or log sigmoid(-z)."""
    torch.manual_seed(0)
    head = heads.build(name, {"rgb": (9,)}, 8, codes="+", classes=SETS).eval()
    batch = {"rgb": rows((9,), 4, 6)}, {"rgb": torch.ones(4, 6, dtype=torch.bool)}
    found = head(*batch).log_softmax(dim=1)
    head._forward_hooks.clear()
    parts = head(*batch)  # (4,3)
    for k, members in enumerate(SETS):
        has = torch.tensor([part in members.split("+") for part in "abc"])
        expected = torch.where(has, parts, -parts).sigmoid().log().sum(dim=1)
        torch.testing.assert_close(found[:, k], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_an_exclusive_row_shows_one_class_or_none(scale: float) -> None:
    torch.manual_seed(0)
    head: Any = heads.build("noisy_or", {"rgb": (9,), "flow": (4,)}, 3, hidden=5, exclusive=True).eval()
    with torch.no_grad():
        for m in head.rows:
            head.rows[m][-1].weight.mul_(scale)
    features = {"rgb": rows((9,), 2, 6), "flow": rows((4,), 2, 3)}
    masks = {"rgb": torch.arange(6) < torch.tensor([[6], [2]]), "flow": torch.arange(3) < torch.tensor([[1], [3]])}
    logits = head(features, masks).detach().double()
    for video in range(2):
        nowhere = torch.zeros(3).double()
        for m, x in features.items():
            scores = head.rows[m](x[video][masks[m][video]]).detach().double()
            whole = torch.cat([scores, torch.zeros(len(scores), 1)], dim=1)
            for k in range(3):
                others = whole.clone()
                others[:, k] = -torch.inf
                nowhere[k] += (others.logsumexp(dim=1) - whole.logsumexp(dim=1)).sum()
        torch.testing.assert_close(logits[video], torch.log(torch.expm1(-nowhere)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sure", [4.0, 20.0, 90.0])
def test_an_exclusive_row_that_is_wrong_learns_however_sure_it_is(sure: float) -> None:
    """The gradient of a class's odds is 1 by its own score, and less what the others share by theirs."""
    scores = torch.tensor([[[sure, -2.0, -3.0]]], requires_grad=True)
    odds = _odds(scores)
    (found,) = torch.autograd.grad(odds[0, 0, 0], scores, retain_graph=True)
    others = torch.tensor([-2.0, -3.0, 0.0]).softmax(dim=0)
    torch.testing.assert_close(found[0, 0], torch.tensor([1.0, -others[0], -others[1]]))
    (found,) = torch.autograd.grad(odds[0, 0, 1], scores)
    assert found.isfinite().all() and found[0, 0, 1] == 1


def test_equal_scores_share_an_exclusive_row() -> None:
    odds = _odds(torch.full((1, 1, 3), 5.0))
    torch.testing.assert_close(odds, torch.full((1, 1, 3), 5.0 - float(np.log(2 * np.exp(5) + 1))))


def test_a_head_with_codes_has_an_output_a_part() -> None:
    names = ["+".join(s) or "none" for n in range(11) for s in itertools.combinations("0123456789", n)]
    head = heads.build("attention_cluster", {"rgb": (50,)}, 1024, clusters=2, codes="+", classes=names)
    assert head.classifier.weight.shape == (10, 100)  # type: ignore[union-attr]


def test_codes_that_cannot_be() -> None:
    with pytest.raises(UserError, match="codes need the names of the classes: expected 3, got 0"):
        heads.build("average", {"rgb": (4,)}, 3, codes="+")
    with pytest.raises(UserError, match=r"classes of the same code: expected names cut at '\+' into different sets"):
        heads.build("average", {"rgb": (4,)}, 2, codes="+", classes=("a+b", "b+a"))
    with pytest.raises(UserError, match="no codes with a head that is not trained in steps: head ridge"):
        heads.build("ridge", {"rgb": (4,)}, 2, codes="+", classes=("a", "b"))
