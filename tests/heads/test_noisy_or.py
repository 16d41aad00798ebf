"""The noisy-or against its formula, and label codes against the independent parts that they stand for."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import heads
from features.errors import UserError
from tests.heads.made import SMALL_CNN, rows

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


def exclusive(classes: tuple[str, ...], shapes: dict[str, tuple[int, ...]], **options: Any) -> Any:
    torch.manual_seed(0)
    return heads.build("noisy_or", shapes, len(classes), codes="+", classes=classes, **options).eval()


@pytest.mark.parametrize(("rows_of", "scale"), [((3, 2), 1), ((60, 40), 1), ((3, 2), 12)])
def test_an_exclusive_row_shows_one_part_or_none(rows_of: tuple[int, int], scale: float) -> None:
    """Against the chance of each set of parts, followed row by row."""
    classes = (*SETS[:6], "d+e+f")  # not all sets
    own = [c.split("+") if c != "none" else [] for c in classes]
    head = exclusive(classes, {"rgb": (9,), "flow": (4,)}, hidden=5, exclusive=True)
    with torch.no_grad():
        for m in head.rows:
            head.rows[m][-1].weight.mul_(scale)
        head.odds.copy_(torch.linspace(-2, 1, 6))
    features = {"rgb": rows((9,), 2, rows_of[0]), "flow": rows((4,), 2, rows_of[1])}
    masks = {m: torch.ones(2, n, dtype=torch.bool) for m, n in zip(features, rows_of, strict=True)}
    masks["rgb"][1, 1:] = False
    found = head(features, masks).detach().double()
    for video in range(2):
        chances = {frozenset[str](): 1.0}
        for m, x in features.items():
            for row in x[video][masks[m][video]]:
                odds = dict(zip("abcdef", head.rows[m](row).detach().double().exp().tolist(), strict=True))
                after: dict[frozenset[str], float] = {}
                for shown, chance in chances.items():
                    for part, weight in {"": 1.0, **odds}.items():
                        grown = shown | {part} - {""}
                        after[grown] = after.get(grown, 0) + chance * weight / (1 + sum(odds.values()))
                chances = after
        expected = torch.tensor([chances.get(frozenset(c), 0) for c in own]).double()
        sure = expected > 1e-10 * expected.max()
        assert sure.sum() > 1
        before = torch.tensor(
            [sum(b for k, b in zip("abcdef", head.odds.tolist(), strict=True) if k in c) for c in own]
        )
        difference = found[video] - expected.log() - before
        torch.testing.assert_close(difference[sure], difference[sure][:1].expand(int(sure.sum())), rtol=0, atol=1e-4)
        assert (found[video][~sure] < found[video][sure].max() - 20).all()


def test_of_one_part_a_class_an_exclusive_row_is_like_any() -> None:
    batch = {"rgb": rows((9,), 4, 6)}, {"rgb": torch.ones(4, 6, dtype=torch.bool)}
    both = [exclusive(("a", "b", "c"), {"rgb": (9,)}, exclusive=e)(*batch).softmax(dim=1) for e in (True, False)]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-6)


TEN = tuple("+".join(s) or "none" for n in range(11) for s in itertools.combinations("0123456789", n))


@pytest.mark.parametrize("base", [-4.0, -8.0, -12.0, -16.0, -24.0])
@pytest.mark.parametrize("missed", [1, 2, 4, 7])
def test_a_part_that_no_row_shows_pulls_with_all_its_weight(base: float, missed: int, monkeypatch: Any) -> None:
    """d log(1 - prod(1 - p)) / ds summed over rows goes to 1 as p goes to 0, for each of the parts missed."""
    head = exclusive(TEN, {"rgb": (9,)}, exclusive=True)
    scores = torch.full((1, 25, 10), base)
    for part in range(3):
        scores[0, part, part] = 12
    scores.requires_grad_()
    monkeypatch.setattr(head, "_scores", lambda *_: scores)
    logits = head({"rgb": rows((9,), 1, 25)}, {"rgb": torch.ones(1, 25, dtype=torch.bool)})
    truth = TEN.index("+".join("0123456789"[: 3 + missed]))
    (found,) = torch.autograd.grad(logits[0, truth], scores)
    torch.testing.assert_close(found[0, :, 3 : 3 + missed].sum(dim=0), torch.ones(missed), rtol=0, atol=0.35)
    if base < -8:
        torch.testing.assert_close(found[0, :, 3 : 3 + missed].sum(dim=0), torch.ones(missed), rtol=0, atol=0.05)


@pytest.mark.parametrize("length", [1, 5, 25])
def test_sets_of_ten_parts_have_the_same_scores_in_any_company_and_order(length: int) -> None:
    head = exclusive(TEN, {"rgb": (9,)}, exclusive=True)
    x, mask = 3 * rows((9,), 16, length), torch.ones(16, length, dtype=torch.bool)
    together = head({"rgb": x}, {"rgb": mask})
    alone = torch.cat([head({"rgb": x[k : k + 1]}, {"rgb": mask[:1]}) for k in range(16)])
    turned = head({"rgb": x.flip(1)}, {"rgb": mask})
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(turned, together, rtol=1e-5, atol=1e-4)


def test_gradients_reach_a_set_that_nothing_speaks_for() -> None:
    head = exclusive(SETS, {"rgb": (2,)}, exclusive=True)
    with torch.no_grad():
        head.rows["rgb"][-1].bias.fill_(-20)
    logits = head({"rgb": rows((2,), 1, 4)}, {"rgb": torch.ones(1, 4, dtype=torch.bool)})
    assert logits.isfinite().all() and logits.argmax() == SETS.index("none")
    torch.nn.functional.cross_entropy(logits, torch.tensor([SETS.index("a+b+c")])).backward()  # type: ignore[no-untyped-call]
    gradient = head.rows["rgb"][-1].bias.grad
    torch.testing.assert_close(gradient, -torch.ones(3), rtol=0, atol=1e-3)


def test_behind_an_encoder_it_computes_in_doubles_too() -> None:
    encoder = {**SMALL_CNN, "crop_px": 32}
    head = exclusive(("none", "a", "b", "a+b"), {"clips": (4, 40, 40, 3)}, exclusive=True, encoder=encoder)
    assert head.in_doubles
    found = head({"clips": rows((4, 40, 40, 3), 2, 3)}, {"clips": torch.ones(2, 3, dtype=torch.bool)})
    assert found.shape == (2, 4) and found.isfinite().all()


def test_exclusive_parts_that_cannot_be() -> None:
    with pytest.raises(UserError, match="exclusive is about the parts of classes: give codes, or leave it out"):
        heads.build("noisy_or", {"rgb": (4,)}, 2, exclusive=True)
    many = "+".join("abcdefghijklm")
    with pytest.raises(
        UserError, match=r"too many parts for a head that is exclusive.* at most 4096 subsets.* got 8192"
    ):
        exclusive((many, "z"), {"rgb": (4,)}, exclusive=True)


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
