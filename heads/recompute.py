"""Activation checkpointing: blocks of layers keep only what went in, and compute the rest again on the way back.

"Training Deep Nets with Sublinear Memory Cost" (2016). A block is a layer with layers inside that is a member of a
sequence, as those of most networks of timm and torchvision are, or says `is_block`, as the Inception blocks of our I3D
do; of torchvision's Inception networks only the longer branches are blocks. The second pass draws the same dropout and
leaves the running statistics of batch norms alone, so that every number stays what it would be.

    recompute(head)                         # then train as always
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from features.errors import UserError

_SEQUENCES = (nn.Sequential, nn.ModuleList)


def recompute(head: nn.Module) -> None:
    """Let every block of `head` forget and compute again. Raises `UserError` where there is no block."""
    found = list(blocks(head))
    if not found:
        fix = "leave train.recompute away: it is for networks of several blocks that are trained end to end"
        raise UserError("no blocks to compute again", where=f"head {type(head).__name__}", fix=fix)
    for block in found:
        block.forward = partial(_again, block, block.forward)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost sequences that have layers inside, and what says that it is one."""
    for child in module.children():
        compound = next(child.children(), None) is not None and not isinstance(child, _SEQUENCES)
        if getattr(child, "is_block", False) or (compound and isinstance(module, _SEQUENCES)):
            yield child
        else:
            yield from blocks(child)


def _again(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not block.training:
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=partial(_passes, block), **named)


def _passes(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _still(block)


@contextmanager
def _still(block: nn.Module) -> Iterator[None]:
    """Batch norms normalise as in training, and count nothing."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None]
    kept = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]  # type: ignore[union-attr]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
