"""Our dropout drops as often as it says, keeps the mean, and follows torch's seed."""

from __future__ import annotations

import pytest
import torch

from heads.dropout import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_mean(rate: float) -> None:
    torch.manual_seed(0)
    out = Dropout(rate)(torch.ones(999, 1001))
    assert float((out == 0).float().mean()) == pytest.approx(rate, abs=3e-3)
    assert float(out.mean()) == pytest.approx(1, abs=0.01)
    torch.manual_seed(0)
    assert torch.equal(out, Dropout(rate)(torch.ones(999, 1001)))


def test_every_place_is_drawn_for_itself() -> None:
    torch.manual_seed(0)
    kept = Dropout(0.5)(torch.ones(4000, 8)) != 0
    joint = (kept.float().T @ kept.float()) / 4000
    assert float((joint - 0.25 - 0.25 * torch.eye(8)).abs().max()) < 0.03


def test_evaluation_and_rate_zero_change_nothing() -> None:
    x = torch.randn(3, 5)
    assert torch.equal(Dropout(0.9).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
