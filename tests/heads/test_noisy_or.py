"""The noisy-or against its formula, and label codes against the independent parts that they stand for."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import heads
from features.errors import UserError
from heads.noisy_or import _Counted, _counted_at_once, _messages, _messages_at_once, _odds, _Others
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


@pytest.mark.parametrize(
    ("length", "scale", "counts"), [(1, 2, 3), (6, 2, 3), (25, 4, 3), (30, 8, 2), (25, 15, 4), (9, 2, 1), (25, 6, 8)]
)
def test_a_graph_counts_all_rows_at_once(length: int, scale: float, counts: int) -> None:
    """As the loop over rows does, which a graph for any number of rows cannot have."""
    generator = torch.Generator().manual_seed(length)
    odds = torch.randn(length, 3, 5, generator=generator) * scale - 2
    odds[0, 0] = -1e4
    w = (torch.randn(counts, generator=generator) * 0.7).exp()
    counted = _Counted.apply(odds.sigmoid(), (-odds).sigmoid(), torch.nn.functional.pad(w, (1, 0)))
    torch.testing.assert_close(_counted_at_once(odds, w), counted, rtol=2e-5, atol=1e-30)
    torch.testing.assert_close(_messages_at_once(odds, w), _messages(odds, w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("counts", [1, 2, 3, 4])
@pytest.mark.parametrize("exclusive", [False, True])
def test_all_weights_alike_change_nothing(counts: int, exclusive: bool) -> None:
    options = {"hidden": 5, "exclusive": exclusive}
    plain: Any = heads.build("noisy_or", {"rgb": (9,), "flow": (4,)}, 3, **options).eval()
    counted: Any = heads.build("noisy_or", {"rgb": (9,), "flow": (4,)}, 3, **options, counts=counts).eval()
    counted.load_state_dict({**plain.state_dict(), "weights": torch.zeros(counts)})
    features = {"rgb": 3 * rows((9,), 2, 6), "flow": rows((4,), 2, 3)}
    masks = {"rgb": torch.arange(6) < torch.tensor([[6], [2]]), "flow": torch.arange(3) < torch.tensor([[1], [0]])}
    torch.testing.assert_close(counted(features, masks), plain(features, masks), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("counts", [1, 2, 3, 4])
@pytest.mark.parametrize("spread", [2.0, 12.0])
def test_counts_add_up_over_every_choice_of_rows(counts: int, spread: float) -> None:
    torch.manual_seed(counts)
    head: Any = heads.build("noisy_or", {"rgb": (9,)}, 2, hidden=5, counts=counts).eval()
    head.weights.data.copy_(torch.tensor([0.5, 2.0, -4.0, -1.0])[:counts])
    head.rows["rgb"][-1].weight.data.mul_(spread)
    features, masks = {"rgb": rows((9,), 1, 6)}, {"rgb": torch.arange(6)[None] < 5}
    logits = head(features, masks)[0].detach().double()
    odds = head.rows["rgb"](features["rgb"][0, :5]).detach().double()
    for k in range(2):
        found = 0.0
        for choice in itertools.product([False, True], repeat=5):
            if n := sum(choice):
                found += float((head.weights[min(n, counts) - 1].detach() + odds[list(choice), k].sum()).exp())
        assert logits[k].item() == pytest.approx(np.log(found), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("counts", [1, 2, 3, 4])
def test_what_a_row_hears_is_what_the_others_count(counts: int) -> None:
    odds = torch.tensor([1.5, -2.0, 9.0, -60.0, 0.3])
    weights = torch.tensor([0.5, 2.0, -4.0, -1.0])[:counts]
    w = [1.0, *weights.exp().tolist()]
    found = _messages(odds.view(5, 1, 1), weights.exp()).flatten()
    for row in range(5):
        others = [np.exp(o) for i, o in enumerate(odds.tolist()) if i != row]
        sums = [0.0, 0.0]
        for choice in itertools.product([0, 1], repeat=4):
            for more in range(2):
                sums[more] += w[min(sum(choice) + more, counts)] * np.prod(
                    [o for o, c in zip(others, choice, strict=True) if c]
                )
        assert found[row].item() == pytest.approx(np.log(sums[1] / sums[0]), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("counts", [1, 2, 3])
def test_counts_are_differentiated_as_they_add_up(counts: int) -> None:
    torch.manual_seed(counts)
    w = torch.rand(counts + 1, dtype=torch.float64, requires_grad=True)
    p, q = (torch.rand(4, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(_Counted.apply, (p, q, w))
    assert torch.autograd.gradcheck(_Others.apply, (p, q, w))


def test_a_row_that_may_show_either_goes_to_the_class_that_lacks_one() -> None:
    """Two rows show a, one b, and a class has one row or two: a row that looks a bit more like a than c is a c."""
    head: Any = heads.build("noisy_or", {"rgb": (3,)}, 3, hidden=3, exclusive=True, counts=3).eval()
    with torch.no_grad():
        head.weights.copy_(torch.tensor([0.0, 0.0, -9.0]))
        for layer, bias in ((head.rows["rgb"][0], 0.0), (head.rows["rgb"][-1], -9.0)):
            layer.weight.copy_(torch.eye(3))
            layer.bias.fill_(bias)
    sure, noise = 30.0, [0.0, 0.0, 0.0]
    seen = [[sure, 0, 0], [sure, 0, 0], [0, sure, 0], [16.0, 0.0, 15.0], noise, noise]
    x, mask = torch.tensor([seen]), torch.ones(1, 6, dtype=torch.bool)
    assert (head({"rgb": x}, {"rgb": mask})[0] > 0).tolist() == [True, True, True]
    head.weights.data.zero_()
    assert (head({"rgb": x}, {"rgb": mask})[0] > 0).tolist() == [True, True, False]


@pytest.mark.parametrize("sure", [30.0, 90.0])
def test_a_counted_row_that_is_wrong_learns_however_sure_it_is(sure: float) -> None:
    head: Any = heads.build("noisy_or", {"rgb": (2,)}, 2, hidden=2, exclusive=True, counts=2).eval()
    with torch.no_grad():
        for layer in (head.rows["rgb"][0], head.rows["rgb"][-1]):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
    x = torch.tensor([[[sure, 0.0], [0.0, 1.0]]], requires_grad=True)
    logits = head({"rgb": x}, {"rgb": torch.ones(1, 2, dtype=torch.bool)})
    (found,) = torch.autograd.grad(logits[0, 0], x)
    assert found.isfinite().all() and found[0, 0, 0] > 0.5


def test_classes_of_a_bf16_step_are_summed_in_float32() -> None:
    names = ["none", *("+".join(str(k) for k in range(10) if code >> k & 1) for code in range(1, 1024))]
    head = heads.build("average", {"rgb": (4,)}, 1024, codes="+", classes=names)
    parts = 8 * torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = head.of_classes(parts)
    assert torch.equal(found, head.of_classes(parts)) and found.dtype == torch.float32


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
