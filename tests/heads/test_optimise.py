"""Schedules by hand, and each optimiser with its own options."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from heads.config import Constant, Cosine, Plateau, Step, TrainConfig
from heads.optimise import Rmsprop, epochs_without_gain, learning_rate, make_optimizer, set_rate


def rates(config: TrainConfig, losses: list[float] | None = None) -> list[float]:
    return [learning_rate(config, epoch, losses or []) for epoch in range(config.epochs)]


def test_schedules() -> None:
    assert rates(TrainConfig(epochs=3, lr=0.5, schedule=Constant())) == [0.5] * 3
    assert rates(TrainConfig(epochs=5, lr=1, schedule=Step(at=(2, 4)))) == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert rates(TrainConfig(epochs=4, lr=1, schedule=Cosine())) == pytest.approx(
        [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]
    )


def test_plateau_falls_after_patience_epochs_without_gain() -> None:
    config = TrainConfig(epochs=8, lr=1, schedule=Plateau(patience=2, factor=0.5))
    assert rates(config, [3, 2, 2, 2.5, 1, 1, 1, 1]) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_epochs_without_gain() -> None:
    assert [epochs_without_gain(x) for x in ([], [1.0], [1.0, 2.0, 1.5], [2.0, 1.0, 1.0])] == [0, 0, 2, 1]


@pytest.mark.parametrize(
    ("config", "kind", "expected"),
    [
        (
            TrainConfig(optimizer="sgd", momentum=0.9, lr=0.1, weight_decay=0.01),
            torch.optim.SGD,
            {"momentum": 0.9, "weight_decay": 0.01},
        ),
        (
            TrainConfig(optimizer="rmsprop", alpha=0.8, eps=1e-3, momentum=0.5),
            Rmsprop,
            {"alpha": 0.8, "eps": 1e-3, "momentum": 0.5},
        ),
        (
            TrainConfig(optimizer="adam", betas=(0.5, 0.6), eps=1e-4),
            torch.optim.Adam,
            {"betas": (0.5, 0.6), "eps": 1e-4},
        ),
        (TrainConfig(optimizer="adamw", weight_decay=0.2), torch.optim.AdamW, {"weight_decay": 0.2}),
    ],
)
def test_optimizers_get_their_options(config: TrainConfig, kind: type, expected: dict[str, float]) -> None:
    frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    optimizer = make_optimizer(config, [("a", torch.nn.Parameter(torch.zeros(2))), ("b", frozen)], {})
    assert isinstance(optimizer, kind)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 1
    assert {k: group[k] for k in expected} == expected
    assert group["lr"] == config.lr


def test_a_parameter_may_learn_at_a_multiple_of_the_rate() -> None:
    named = [(name, torch.nn.Parameter(torch.zeros(2))) for name in ("first", "second", "third")]
    optimizer = make_optimizer(TrainConfig(optimizer="sgd"), named, {"second": 5.0})
    set_rate(optimizer, 0.1)
    for _, parameter in named:
        parameter.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(torch.stack([p.detach()[0] for _, p in named]), torch.tensor([-0.1, -0.5, -0.1]))


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw"])
def test_optimizers_without_their_wrappers_are_torchs(name: str) -> None:
    config = TrainConfig(optimizer=name, lr=0.1, weight_decay=0.1)
    ours, theirs = (torch.nn.Parameter(torch.arange(6.0)) for _ in range(2))
    kind = {"sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam}.get(
        name, torch.optim.AdamW
    )
    own = {"sgd": {"momentum": config.momentum}, "rmsprop": {"alpha": config.alpha, "eps": config.eps}}
    adams = {"betas": config.betas, "eps": config.eps}
    bare = make_optimizer(config, [("p", ours)], {})
    torchs = kind([theirs], lr=0.1, weight_decay=0.1, **own.get(name, adams))
    for _ in range(3):
        for parameter, optimizer in ((ours, bare), (theirs, torchs)):
            optimizer.zero_grad(set_to_none=True)
            parameter.square().sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    other = make_optimizer(config, [("p", torch.nn.Parameter(torch.arange(6.0)))], {})
    other.load_state_dict(bare.state_dict())
    assert str(other.state_dict()) == str(bare.state_dict())


def test_a_head_on_cached_features_begins_without_what_it_does_not_use() -> None:
    """Torch's compiler and two libraries of networks, each slower to load than torch."""
    script = """
import sys, torch, heads, heads.training
from heads.optimise import make_optimizer
head = heads.build("average", {"rgb": (4,)}, 2)
head({"rgb": torch.ones(2, 3, 4)}, {"rgb": torch.ones(2, 3, dtype=torch.bool)}).sum().backward()
for name in ("sgd", "rmsprop", "adam", "adamw"):
    optimizer = make_optimizer(heads.config.TrainConfig(optimizer=name), head.named_parameters(), {})
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    optimizer.load_state_dict(optimizer.state_dict())
    if name == "rmsprop":
        heads.optimise._STEP(optimizer)  # what a GPU takes
print({"torch._dynamo", "timm", "torchvision"} & set(sys.modules))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}])
def test_rmsprop_by_parts_is_torchs_to_the_bit(options: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(700, 600), (3,), (4, 5, 3, 3)]  # the first is several parts
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    ours[2].data = ours[2].data.to(memory_format=torch.channels_last)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = [
        Rmsprop(ours, lr=1e-2, alpha=0.9, **options),
        torch.optim.RMSprop(theirs, lr=1e-2, alpha=0.9, **options),
    ]
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    assert optimizers[0].state_dict()["state"].keys() == optimizers[1].state_dict()["state"].keys()
