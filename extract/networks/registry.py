"""Any network of timm's or torchvision's, 2D or 3D, and our own, by name, as a trunk and a classifier.

    network = build("mobilenetv2_100", weights="mobilenetv2.safetensors", options={"pad_type": "same"})
    network.trunk(images)                            # (B, C, H, W) float, normalised -> (B, D) pooled features

Shapes: B images or clips, C channels, T frames, D features, K classes, F the axes of one row of features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from extract.networks.inflate import Inflation
from extract.networks.inflate import inflate as inflated
from extract.networks.layers import Layer, output_shape
from extract.networks.libraries import Library, flat, make, own_channels, own_reads, split
from extract.networks.rows import Reads
from extract.networks.spec import InputSpec
from extract.networks.weights import NetworkError, across_channels, fill, load_state, save_state, state_sha256

Spread = Callable[[Mapping[str, torch.Tensor], nn.Module], dict[str, torch.Tensor]]  # `across_channels`


class Network(nn.Module):
    """``classifier(trunk(x))``: (B, C, [T,] H, W) -> (B, K). `trunk` ends in the pooled features before the
    classifier, or in those of the layer that was asked for.

    `feature_shape` is F, what the trunk gives for one input: (D,) where it is pooled. `fresh` names the parameters that
    the file of weights did not have, and that are random.
    """

    def __init__(
        self,
        trunk: nn.Module,
        classifier: nn.Module,
        feature_shape: tuple[int, ...],
        spec: InputSpec,
        notes: dict[str, Any],
    ):
        super().__init__()
        self.trunk, self.classifier = trunk, classifier
        self.feature_shape, self.input, self.notes = feature_shape, spec, notes
        self.weights_sha256 = ""
        self.fresh: tuple[str, ...] = ()

    @property
    def feature_dim(self) -> int:
        """Numbers in one row of features: D where they are pooled, of a map the product of its axes."""
        return prod(self.feature_shape)

    @property
    def num_classes(self) -> int:
        """K; 0 where there is no classifier."""
        return self.classifier.out_features if isinstance(self.classifier, nn.Linear) else 0

    def check(self, *input_shape: int) -> None:
        """Raises `NetworkError` where the trunk cannot take inputs (C, [T,] H, W) of this shape."""
        was_training = self.trunk.training
        output_shape(self.trunk.eval(), input_shape)
        self.trunk.train(was_training)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.trunk(images))
        return logits


def build(
    name: str,
    *,
    library: Library = "timm",
    weights: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    options: Mapping[str, Any] | None = None,
    reads: Reads | None = None,
    layer: str | None = None,
    pool: bool = True,
    inflate: Inflation | None = None,
) -> Network:
    """The network `name` of `library`, in evaluation mode.

    `weights`: None (random, from torch's generator), ``"DEFAULT"`` (downloaded by the library), or a file: the
    library's state dict, or one that `save_network` wrote. `num_classes`: None keeps the classifier of the weights, 0
    takes it away, another number than theirs puts a fresh one in its place. `options` go to the library's constructor.

    `in_chans`: None is what the weights have, or 3, or 1 for log-mel. Weights of 3 channels fit any number of them, see
    `across_channels`. `reads` says what rows are made of; None is what the weights say, or rgb; sound is always logmel.
    Weights of a network of pictures (rgb) may begin one of anything, others only one of what they were trained on.

    With `inflate` the weights, of the file or ``"DEFAULT"``, are of the 2D network that `name` is the 3D form of; see
    that module. Its classifier is not taken; ``num_classes`` gives a fresh one.

    `layer` is the path of a module of the trunk (``layer3``, ``blocks.4``) whose output is wanted; see `Layer`. Its
    features are others than the classifier knows, so this one goes; ``num_classes`` gives a fresh one.

    Raises `NetworkError` for an unknown name or layer, or weights that do not fit.
    """
    if not isinstance(weights, Path) and weights not in (None, "DEFAULT"):
        weights = Path(str(weights))
    if layer is None and not pool:
        raise NetworkError(f"{name}: pool: false gives the map of a layer: name one with `layer`")
    state, notes = load_state(weights) if isinstance(weights, Path) else ({}, {})
    inflate = None if weights is None else inflate
    if inflate is not None:
        state, notes = flat(name, library) if weights == "DEFAULT" else _flat(state, notes)
    found = own_reads(name, library) or reads or notes.get("input", {}).get("reads", "rgb")
    in_chans = in_chans or notes.get("in_chans") or (1 if found == "logmel" else own_channels(name, library))
    asked = {"name": name, "library": library, "in_chans": in_chans, "options": dict(options or {})}
    ours = {key: notes[key] for key in asked if key in notes}
    _same(ours, asked, weights)
    if (theirs := notes.get("input", {}).get("reads", "rgb")) not in ("rgb", found):
        raise NetworkError(f"weights do not fit: {weights}: they were trained on {theirs}, the config reads {found}")
    spread = partial(across_channels, colours_first=found == "stacked")
    whole, spec = _made(asked, weights if inflate is None else None, spread)
    fresh: tuple[str, ...] = ()
    if inflate is not None:
        fresh = _inflated(whole, state, inflate, str(weights))
    elif isinstance(weights, Path) and not ours:
        fresh = _filled(whole, state, str(weights), spread)
    trunk, classifier, feature_dim = split(whole, library, spec.shape(in_chans))
    if "input" in notes:
        spec = replace(InputSpec.of(notes["input"]), frames=spec.frames)
    network = Network(trunk, classifier, (feature_dim,), replace(spec, reads=found), asked)
    if ours:
        k = notes["num_classes"]
        network.classifier = nn.Linear(notes.get("feature_dim", feature_dim), k) if k else nn.Identity()
        fill(network, spread(state, network), str(weights))
    network.fresh = tuple(f"trunk.{key}" for key in fresh)
    network.weights_sha256 = state_sha256(network.state_dict()) if weights is not None else ""
    if layer is not None:
        network.trunk = tapped = Layer(trunk.eval(), layer, network.input.shape(in_chans), pool=pool)
        network.feature_shape = tapped.shape
    if inflate is not None or (layer, pool) != (notes.get("layer"), notes.get("pool", True)):
        network.classifier = nn.Identity()
    if num_classes is not None and num_classes != network.num_classes:
        if num_classes and len(network.feature_shape) > 1:
            shape = "x".join(map(str, network.feature_shape))
            raise NetworkError(f"{name}: a classifier reads pooled features, not maps of {shape}: set pool: true")
        network.classifier = nn.Linear(network.feature_dim, num_classes) if num_classes else nn.Identity()
    return network.eval()


def save_network(network: Network) -> bytes:
    """The bytes of a file that ``build(..., weights=file)`` loads: weights, and what they belong to.

    The trunk is saved whole, so that the file serves any layer; the classifier goes with the layer that it reads.
    """
    tapped = network.trunk if isinstance(network.trunk, Layer) else None
    notes = {
        **network.notes,
        "num_classes": network.num_classes,
        "feature_dim": network.feature_dim,
        "input": asdict(network.input),
        "layer": tapped.path if tapped else None,
        "pool": tapped.pool if tapped else True,
    }
    trunk = tapped.trunk if tapped else network.trunk
    parts = {"trunk": trunk, "classifier": network.classifier}
    return save_state({f"{part}.{k}": v for part, m in parts.items() for k, v in m.state_dict().items()}, notes)


def _same(ours: Mapping[str, Any], asked: Mapping[str, Any], weights: Path | str | None) -> None:
    """Refuse weights of another network than what is asked for; 3 channels can become any number."""
    for key, value in ours.items():
        if value != asked[key] and not (key == "in_chans" and value == 3):
            raise NetworkError(
                f"weights do not fit: {weights}: they are of {key} {value!r}, the config asks for {asked[key]!r}"
            )


def _made(asked: Mapping[str, Any], weights: Path | str | None, spread: Spread) -> tuple[nn.Module, InputSpec]:
    """The library's network; libraries adapt their own weights by other rules than `across_channels`."""
    name, library, in_chans, options = asked.values()
    if weights != "DEFAULT" or in_chans == own_channels(name, library):
        return make(name, library, weights == "DEFAULT", in_chans, options)
    state = make(name, library, True, own_channels(name, library), options)[0].state_dict()
    whole, spec = make(name, library, False, in_chans, options)
    fill(whole, spread(state, whole), f"DEFAULT of {name}")
    return whole, spec


def _filled(whole: nn.Module, state: Mapping[str, torch.Tensor], where: str, spread: Spread) -> tuple[str, ...]:
    """Fill `whole`; the keys that stay random are those that a network of ours does not take from a public one."""
    own = whole.state_dict()
    fresh: tuple[str, ...]
    taken, fresh = whole.adopt(state) if hasattr(whole, "adopt") else (state, ())  # type: ignore[operator]
    fill(whole, {**{key: own[key] for key in fresh}, **spread(taken, whole)}, where)
    return fresh


def _flat(
    state: Mapping[str, torch.Tensor], notes: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The trunk of a 2D network with its library's own keys, and what it was trained to see."""
    trunk = {key.removeprefix("trunk."): value for key, value in state.items() if not key.startswith("classifier.")}
    return trunk, {"input": notes["input"]} if "input" in notes else {}


def _inflated(whole: nn.Module, state: Mapping[str, torch.Tensor], how: Inflation, where: str) -> tuple[str, ...]:
    """Fill `whole` from 2D weights; the keys that stay random, those of the classifier apart."""

    def alike(key: str) -> str | None:
        return None if key.startswith("fc.") else key

    own = whole.state_dict()
    try:
        taken = inflated(state, own, how, getattr(whole, "flat_key", alike))
    except NetworkError as error:
        raise NetworkError(f"{error}: {where}") from None
    fill(whole, {**own, **across_channels(taken, whole)}, where)
    return tuple(key for key in own if key not in taken and not key.startswith("fc."))
