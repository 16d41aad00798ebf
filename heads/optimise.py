"""Optimisers and learning rates of a `TrainConfig`.

A learning rate is a function of the epoch and of the losses so far: a resumed run needs no scheduler's state. Some
parameters may learn at a multiple of it.

    learning_rate(config, epoch=30, watched=[0.9, 0.5, ...])
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from heads.config import Constant, Cosine, Step, TrainConfig

_PART: Final = 1 << 19  # numbers: with gradient, mean square and its root 8 MB


def make_optimizer(
    config: TrainConfig, parameters: Iterable[tuple[str, nn.Parameter]], factors: Mapping[str, float]
) -> torch.optim.Optimizer:
    """The optimiser of `config` over the named parameters that are trained, a group for each of the `factors`, by name,
    of their learning rates (1 where none is given)."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            groups.setdefault(factors.get(name, 1.0), []).append(parameter)
    trained = [{"params": group, "factor": factor} for factor, group in groups.items()]
    lr, decay = config.lr, config.weight_decay
    match config.optimizer:
        case "sgd":
            return _bare(torch.optim.SGD)(trained, lr=lr, momentum=config.momentum, weight_decay=decay, fused=True)
        case "rmsprop":
            return _bare(Rmsprop)(
                trained, lr=lr, alpha=config.alpha, eps=config.eps, momentum=config.momentum, weight_decay=decay
            )
        case "adam":
            return _bare(torch.optim.Adam)(
                trained, lr=lr, betas=config.betas, eps=config.eps, weight_decay=decay, fused=True
            )
        case "adamw":
            return _bare(torch.optim.AdamW)(
                trained, lr=lr, betas=config.betas, eps=config.eps, weight_decay=decay, fused=True
            )


def _bare(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """`kind` without the wrappers that keep torch's compiler out of it: they load it first, which takes longer than
    torch itself, and nothing here is compiled."""
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    own = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**own, "step": _step_of(kind)})


def _step_of(kind: type[torch.optim.Optimizer]) -> Callable[..., Any]:
    step: Callable[..., Any] = torch.no_grad()(inspect.unwrap(kind.step))
    return step


_STEP: Final = _step_of(torch.optim.RMSprop)


class Rmsprop(torch.optim.RMSprop):
    """`torch.optim.RMSprop`, number for number; on a CPU large parameters are updated a part at a time.

    Torch goes over all of a parameter six times, each time through memory; of a part that fits in cache only the first
    time costs, and the classifier of an attention cluster has a hundred million numbers.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update, from the gradients."""
        if any(parameter.is_cuda for group in self.param_groups for parameter in group["params"]):
            _STEP(self, closure)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["square_avg"] = torch.zeros_like(parameter)
                    if group["momentum"] > 0:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                state["step"] += 1
                tensors = [parameter, parameter.grad, *(v for name, v in state.items() if name != "step")]
                if parameter.ndim == 2 and all(t.t().is_contiguous() for t in tensors):
                    tensors = [t.t() for t in tensors]
                whole = all(t.is_contiguous() for t in tensors)
                for parts in zip(*(t.view(-1).split(_PART) if whole else (t,) for t in tensors), strict=True):
                    _rmsprop(group, *parts)


def _rmsprop(group: dict[str, Any], value: Tensor, grad: Tensor, square: Tensor, moving: Tensor | None = None) -> None:
    if group["weight_decay"]:
        grad = grad.add(value, alpha=group["weight_decay"])
    square.mul_(group["alpha"]).addcmul_(grad, grad, value=1 - group["alpha"])
    length = square.sqrt().add_(group["eps"])
    if moving is None:
        value.addcdiv_(grad, length, value=-group["lr"])
    else:
        moving.mul_(group["momentum"]).addcdiv_(grad, length)
        value.add_(moving, alpha=-group["lr"])


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Learn at `lr` from now on, times each group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


def learning_rate(config: TrainConfig, epoch: int, watched: Sequence[float]) -> float:
    """The learning rate of `epoch` (from 0), given the watched losses of the epochs before it."""
    schedule = config.schedule
    if isinstance(schedule, Constant):
        return config.lr
    if isinstance(schedule, Step):
        return config.lr * schedule.factor ** sum(epoch >= at for at in schedule.at)
    if isinstance(schedule, Cosine):
        return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
    drops, best, waited = 0, math.inf, 0
    for loss in watched[:epoch]:
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited == schedule.patience:
            drops, waited = drops + 1, 0
    return config.lr * schedule.factor**drops


def epochs_without_gain(watched: Sequence[float]) -> int:
    """How many epochs ago the watched loss was lowest."""
    return len(watched) - 1 - watched.index(min(watched)) if watched else 0
