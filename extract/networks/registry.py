"""Any timm or torchvision classifier by name, as a trunk and a classifier.

    network = build("mobilenetv2_100", weights="mobilenetv2.safetensors", options={"pad_type": "same"})
    network.trunk(images)                            # (B, C, H, W) float, normalised -> (B, D) pooled features

Shapes: B images, C channels, D features (``feature_dim``), K classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torchvision
from timm.data.config import resolve_model_data_config
from torch import nn

from extract.networks.weights import NetworkError, fill, load_state, save_state, state_sha256

Library = Literal["timm", "torchvision"]


@dataclass(frozen=True)
class InputSpec:
    """What the weights were trained to see: square crops of `size_px` out of a short side of ``size_px / crop_ratio``,
    values in [0, 1] less `mean` over `std`."""

    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_ratio: float

    @property
    def resize_px(self) -> int:
        """The short side before the crop."""
        return round(self.size_px / self.crop_ratio)


class Network(nn.Module):
    """``classifier(trunk(x))``: (B, C, H, W) -> (B, K). `trunk` ends in the pooled features before the classifier."""

    def __init__(
        self, trunk: nn.Module, classifier: nn.Module, feature_dim: int, spec: InputSpec, notes: dict[str, Any]
    ):
        super().__init__()
        self.trunk, self.classifier = trunk, classifier
        self.feature_dim, self.input, self.notes = feature_dim, spec, notes
        self.weights_sha256 = ""

    @property
    def num_classes(self) -> int:
        """K; 0 where there is no classifier."""
        return self.classifier.out_features if isinstance(self.classifier, nn.Linear) else 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.trunk(images))
        return logits


def build(
    name: str,
    *,
    library: Library = "timm",
    weights: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    options: Mapping[str, Any] | None = None,
) -> Network:
    """The network `name` of `library`, in evaluation mode.

    `weights`: None (random, from torch's generator), ``"DEFAULT"`` (downloaded by the library), or a file: the
    library's state dict, or one that `save_network` wrote. `num_classes`: None keeps the classifier of the weights, 0
    takes it away, another number than theirs puts a fresh one in its place. `options` go to the library's constructor.

    Raises `NetworkError` for an unknown name or weights that do not fit.
    """
    if not isinstance(weights, Path) and weights not in (None, "DEFAULT"):
        weights = Path(str(weights))
    state, notes = load_state(weights) if isinstance(weights, Path) else ({}, {})
    asked = {"name": name, "library": library, "in_chans": in_chans, "options": dict(options or {})}
    ours = {key: notes[key] for key in asked if key in notes}
    if ours and ours != asked:
        key = next(k for k in asked if asked[k] != ours[k])
        raise NetworkError(
            f"weights do not fit: {weights}: they are of {key} {ours[key]!r}, the config asks for {asked[key]!r}"
        )
    pretrained = weights == "DEFAULT"
    make = _timm if library == "timm" else _torchvision
    whole, spec = make(name, pretrained, in_chans, dict(options or {}))
    if isinstance(weights, Path) and not ours:
        fill(whole, state, str(weights))
    trunk, classifier, feature_dim = _split(whole, library)
    if "input" in notes:
        i = notes["input"]
        spec = InputSpec(i["size_px"], tuple(i["mean"]), tuple(i["std"]), i["interpolation"], i["crop_ratio"])
    network = Network(trunk, classifier, feature_dim, spec, asked)
    if ours:
        k = notes["num_classes"]
        network.classifier = nn.Linear(feature_dim, k) if k else nn.Identity()
        fill(network, state, str(weights))
    network.weights_sha256 = state_sha256(network.state_dict()) if weights is not None else ""
    if num_classes is not None and num_classes != network.num_classes:
        network.classifier = nn.Linear(feature_dim, num_classes) if num_classes else nn.Identity()
    return network.eval()


def save_network(network: Network) -> bytes:
    """The bytes of a file that ``build(..., weights=file)`` loads: weights, and what they belong to."""
    notes = {**network.notes, "num_classes": network.num_classes, "input": asdict(network.input)}
    return save_state(network.state_dict(), notes)


def names(library: Library) -> list[str]:
    """Every classifier that `library` offers."""
    return list(timm.list_models() if library == "timm" else torchvision.models.list_models(module=torchvision.models))


def _timm(name: str, pretrained: bool, in_chans: int, options: dict[str, Any]) -> tuple[nn.Module, InputSpec]:
    if name.partition(".")[0] not in names("timm"):
        raise _unknown(name, "timm")
    model = _download(
        name, lambda: timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **options), pretrained
    )
    cfg = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    spec = InputSpec(
        cfg["input_size"][-1], tuple(cfg["mean"]), tuple(cfg["std"]), cfg["interpolation"], float(cfg["crop_pct"])
    )
    return model, spec


def _torchvision(name: str, pretrained: bool, in_chans: int, options: dict[str, Any]) -> tuple[nn.Module, InputSpec]:
    if name not in names("torchvision"):
        raise _unknown(name, "torchvision")
    if in_chans != 3:
        raise NetworkError(f"torchvision's {name} takes 3 channels, got {in_chans}; timm's networks take any number")
    default = torchvision.models.get_model_weights(name).DEFAULT
    model = _download(
        name, lambda: torchvision.models.get_model(name, weights=default if pretrained else None, **options), pretrained
    )
    t = default.transforms()
    crop, resize = t.crop_size[0], t.resize_size[0]
    return model, InputSpec(crop, tuple(t.mean), tuple(t.std), t.interpolation.value, crop / resize)


def _split(model: nn.Module, library: Library) -> tuple[nn.Module, nn.Module, int]:
    if library == "timm":
        classifier = model.get_classifier()  # type: ignore[operator]
        if not isinstance(classifier, nn.Linear):
            raise NetworkError(
                f"{type(model).__name__} has no single linear classifier to take off; choose another network"
            )
        model.reset_classifier(0)  # type: ignore[operator]
        return model, classifier, classifier.in_features
    linear = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise NetworkError(f"{type(model).__name__} has no linear classifier to take off; choose another network")
    path, classifier = linear[-1]
    parent = model.get_submodule(path.rpartition(".")[0])
    setattr(parent, path.rpartition(".")[2], nn.Identity())
    if getattr(
        model, "aux_logits", False
    ):  # Inception and GoogLeNet: the side classifiers serve only their own training
        for side in ("AuxLogits", "aux1", "aux2"):
            if hasattr(model, side):
                setattr(model, side, None)
        setattr(model, "aux_logits", False)  # noqa: B010
    return model, classifier, classifier.in_features


def _download(name: str, make: Any, pretrained: bool) -> nn.Module:
    try:
        model: nn.Module = make()
        return model
    except TypeError as error:
        raise NetworkError(f"options do not fit: {name}: {error}") from error
    except Exception as error:
        if not pretrained:
            raise
        reason = str(error).splitlines()[0][:160]
        raise NetworkError(
            f"weights DEFAULT of {name} cannot be had: {reason}; give `weights:` a local file instead"
        ) from error


def _unknown(name: str, library: Library) -> NetworkError:
    other: Library = "torchvision" if library == "timm" else "timm"
    close = difflib.get_close_matches(name, names(library), n=3, cutoff=0.4)
    hint = f"{other} has it: set `library: {other}`" if name in names(other) else f"near: {', '.join(close) or 'none'}"
    return NetworkError(f"unknown network: {library}: {name!r}; {hint}")
