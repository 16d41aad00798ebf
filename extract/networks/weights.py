"""The one place that loads weights: ``.safetensors``, ``.npz``, or ``.pt`` / ``.pth``, running no code of theirs.

state, notes = load_state(Path("mobilenetv2.safetensors"))
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

_WRAPPERS: Final = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
_PREFIXES: Final = ("module.", "_orig_mod.")
_COUNTED: Final = "num_batches_tracked"
_NUMBERS: Final = [np.dtype, np.float64(0).__reduce__()[0], *(type(np.dtype(kind)) for kind in "fdil?")]
_BESIDE: Final[list[Any]] = [argparse.Namespace, *_NUMBERS]  # what trainings save beside the tensors; as harmless


class NetworkError(ValueError):
    """An unknown network, or weights that do not fit it; one line that says which and what to do."""


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A file's tensors by key, and our own notes in it (empty for files that we did not write).

    A nested ``state_dict``, ``model`` or their like is unwrapped, and the prefixes of data-parallel and compiled
    modules are taken off. Of an ``.npz``, arrays whose names start with ``_`` are no weights.
    """
    if not path.is_file():
        raise NetworkError(f"weights are not there: {path}: expected a .safetensors, .npz, .pt or .pth file")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                notes = json.loads((file.metadata() or {}).get("framepool", "{}"))
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
                return state if notes else _bare(state), notes
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return _bare({key: torch.from_numpy(arrays[key]) for key in arrays if not key.startswith("_")}), {}
        with torch.serialization.safe_globals(_BESIDE):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or hostile file makes the readers raise
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        if other := re.search(r"GLOBAL ([\w.]+)", str(error)):
            reason = f"it holds a {other[1]} beside the tensors: save the state dict alone"
        elif " " not in reason:  # a number or a byte, by which an unpickler stumbled
            reason = f"it is no file of weights ({reason})"
        raise NetworkError(f"weights do not load: {path}: {reason}; nothing in the file was executed") from error
    while isinstance(state, Mapping):
        found = [name for name in _WRAPPERS if isinstance(state.get(name), Mapping)]
        if len(found) > 1:
            raise NetworkError(
                f"weights do not load: {path}: expected one state dict, got {' and '.join(found)}; save the one that "
                "is meant"
            )
        if not found:
            break
        state = state[found[0]]
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise NetworkError(f"weights do not load: {path}: expected a state dict of tensors, got {type(state).__name__}")
    return _bare({str(key): value for key, value in state.items()}), {}


def _bare(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without what data-parallel, averaged and compiled modules put before and beside the keys."""
    state = {key: value for key, value in state.items() if key != "n_averaged"}
    while prefix := next((p for p in _PREFIXES if state and all(key.startswith(p) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def save_state(state: Mapping[str, torch.Tensor], notes: Mapping[str, Any]) -> bytes:
    """The bytes of a safetensors file of `state` with our `notes` in it."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    return safetensors.torch.save(tensors, {"framepool": json.dumps(notes, sort_keys=True)})


def fill(module: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Put `state` into `module`; every key, shape and kind of number must match, and every value be finite. Files of
    before torch 0.4.1 have no counts of batch norms' batches; these stay."""
    own = module.state_dict()
    if not any(key.endswith(_COUNTED) for key in state):
        state = {**{key: value for key, value in own.items() if key.endswith(_COUNTED)}, **state}
    same_shapes(own, state, where)
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NetworkError(f"weights are not finite: {where}: {key}")
    module.load_state_dict(dict(state))


def same_shapes(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse a `state` whose keys, shapes or kinds of number (fractions of any precision are one) are not those of
    `own`, naming the first that is not."""
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        side, key = ("lack", missing[0]) if missing else ("have an unknown", extra[0])
        count = f"{len(missing)} missing, {len(extra)} unknown of {len(own)} keys"
        raise NetworkError(f"weights do not fit: {where}: they {side} key {key!r} ({count})")
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise NetworkError(
                f"weights do not fit: {where}: {key}: expected {list(own[key].shape)}, got {list(value.shape)}"
            )
        if value.is_floating_point() != own[key].is_floating_point() or value.is_complex() != own[key].is_complex():
            raise NetworkError(f"weights do not fit: {where}: {key}: expected {own[key].dtype}, got {value.dtype}")


def across_channels(
    state: Mapping[str, torch.Tensor], module: nn.Module, *, colours_first: bool = False
) -> dict[str, torch.Tensor]:
    """`state`, with kernels (D, 3, ...) made to fit where those of `module` read another number of channels.

    Cross-modality initialisation of "Temporal Segment Networks" (ECCV 2016), §3.2: the mean over the three colours,
    once for each channel; not rescaled, the bias as it is. With `colours_first` the first three channels are colours
    and keep their kernels.
    """
    own = module.state_dict()
    return {key: _spread(value, own[key], colours_first) if key in own else value for key, value in state.items()}


def _spread(kernel: torch.Tensor, own: torch.Tensor, colours_first: bool) -> torch.Tensor:
    asked = (*kernel.shape[:1], *own.shape[1:2], *kernel.shape[2:])
    if kernel.ndim < 4 or kernel.shape[1] != 3 or kernel.shape == own.shape or own.shape != asked:
        return kernel
    spread = kernel.mean(dim=1, keepdim=True).expand(asked).contiguous()
    if colours_first:
        spread[:, :3] = kernel
    return spread


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 (hex) over keys, dtypes, shapes and bytes: names weights that came from no file of the user's."""
    total = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        total.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
