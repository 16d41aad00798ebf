"""Ridge agrees with scikit-learn's, whatever batches the videos come in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

import heads
from features.errors import FramepoolError, UserError


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("alpha", [0.1, 30.0])
def test_agrees_with_scikit_learn(alpha: float, standardise: bool) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((90, 5, 12)) * np.linspace(0.1, 3, 12) + 5
    y = generator.integers(0, 4, 90)
    means: np.ndarray[Any, Any] = x.mean(axis=1)
    if standardise:
        means = StandardScaler().fit_transform(means)
    expected = RidgeClassifier(alpha=alpha).fit(means, y).decision_function(means)
    head = heads.build("ridge", {"rgb": (12,)}, 4, alpha=alpha, standardise=standardise).eval()
    rows, mask = torch.tensor(x, dtype=torch.float32), torch.ones(90, 5, dtype=torch.bool)
    targets = torch.nn.functional.one_hot(torch.tensor(y), 4).float()
    head.fit([({"rgb": rows[a:b]}, {"rgb": mask[a:b]}, targets[a:b]) for a, b in ((0, 40), (40, 41), (41, 90))])
    np.testing.assert_allclose(head({"rgb": rows}, {"rgb": mask}).detach().numpy(), expected, rtol=1e-3, atol=1e-3)


def test_a_penalty_that_rounding_swallows_is_said() -> None:
    head = heads.build("ridge", {"rgb": (12,)}, 2, alpha=1e-14)
    rows = torch.randn(3, 1, 12, generator=torch.Generator().manual_seed(0)) * 100  # fewer videos than dims
    with pytest.raises(UserError, match="ridge has no solution in float64: alpha: got 1e-14; raise alpha"):
        head.fit([({"rgb": rows}, {"rgb": torch.ones(3, 1, dtype=torch.bool)}, torch.eye(2)[[0, 1, 0]])])


def test_nothing_to_fit() -> None:
    with pytest.raises(FramepoolError, match="no training videos"):
        heads.build("ridge", {"rgb": (12,)}, 4).fit([])
