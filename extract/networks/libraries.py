"""The libraries that networks come from, each in two steps: make the whole network, then take its classifier off.

    whole, spec = make("r3d_18", "torchvision", False, 3, {})
    trunk, classifier, feature_dim = split(whole, "torchvision")
    trunk(clips)                                     # (B, 3, 16, 112, 112) -> (B, 512)

timm and torchvision are loaded when something is asked of them: that takes longer than torch itself, and a head on
cached features asks nothing.

Shapes: B inputs, C channels, T frames, D features.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, replace
from textwrap import shorten
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from extract.networks import audio, i3d
from extract.networks.c3d import C3d
from extract.networks.flash import FlashCnn
from extract.networks.layers import output_shape
from extract.networks.r3d34 import R3d34
from extract.networks.rows import Reads
from extract.networks.spec import PATCH, InputSpec
from extract.networks.weights import NetworkError, across_channels, fill

Library = Literal["timm", "torchvision", "framepool"]
LIBRARIES: Final[tuple[Library, ...]] = get_args(Library)
OF_CLIPS: Final[Mapping[str, Any]] = MappingProxyType({**i3d.NETWORKS, "c3d": C3d, "r3d34": R3d34})  # colours or flow
NETWORKS: Final[Mapping[str, Any]] = MappingProxyType({**audio.NETWORKS, "flash_cnn": FlashCnn, **OF_CLIPS})
CLIP: Final = 16  # frames: what r3d_18 and its kin, and mvit_v2_s, were trained on; the library says so in prose only
CLIPS: Final[Mapping[str, int]] = MappingProxyType({"s3d": 64})  # Xie et al. (ECCV 2018), §3


def names(library: Library) -> list[str]:
    """Every network that `library` offers, for pictures, clips or sound."""
    if library == "framepool":
        return list(NETWORKS)
    if library == "timm":
        import timm

        return list(timm.list_models())
    import torchvision

    return [*torchvision.models.list_models(module=torchvision.models), *_clip_networks()]


def own_reads(name: str, library: Library) -> Reads | None:
    """What rows a network of ours is made for; None where networks take several."""
    if library != "framepool" or name in OF_CLIPS:
        return None
    return FlashCnn.spec.reads if name == "flash_cnn" else "logmel"


def reads_clips(name: str, library: Library) -> bool:
    """Whether a network takes clips (C,T,H,W); flow has two channels then, and one frame for each pair."""
    return name in (OF_CLIPS if library == "framepool" else _clip_networks() if library == "torchvision" else ())


def own_channels(name: str, library: Library) -> int:
    """C that a network is made for."""
    return 1 if library == "framepool" and name not in OF_CLIPS else 3


def make(
    name: str, library: Library, pretrained: bool, in_chans: int, options: Mapping[str, Any]
) -> tuple[nn.Module, InputSpec]:
    """The whole network, random or (`pretrained`) as the library trained it, and what it reads.

    Raises `NetworkError` for an unknown name, options or channels that do not fit, and weights that cannot be had.
    """
    check_name(name, library)
    maker = {"timm": _timm, "torchvision": _torchvision, "framepool": _framepool}[library]
    try:
        return maker(name, pretrained, in_chans, dict(options))
    except NetworkError:
        raise
    except TypeError as error:
        raise NetworkError(f"options do not fit: {name}: {error}") from error
    except Exception as error:
        reason = shorten(str(error), 160, placeholder=" ...")
        if not pretrained and options:
            raise NetworkError(f"options do not fit: {name}: {reason or type(error).__name__}") from error
        if not pretrained:
            raise
        raise NetworkError(
            f"weights DEFAULT of {name} cannot be had: {reason}; give `weights:` a local file instead"
        ) from error


def flat(name: str, library: Library) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights, as torchvision trained them, of the 2D network that `name` is the 3D form of, and what it sees."""
    network = OF_CLIPS.get(name) if library == "framepool" else None
    pictures = getattr(network, "flat", getattr(network, "pictures", None))
    if pictures is None:
        raise NetworkError(f"{name} has no 2D form whose weights could be had: give `weights:` a local file")
    made, spec = make(pictures, "torchvision", True, 3, {})
    return made.state_dict(), {"input": asdict(spec)}


def check_name(name: str, library: Library) -> None:
    """Raises `NetworkError` for a network that the library does not have."""
    if library not in LIBRARIES:
        raise NetworkError(f"unknown library: expected one of {', '.join(LIBRARIES)}, got {library!r}")
    base = name.partition(".")[0] if library == "timm" else name
    if base not in names(library):
        raise _unknown(name, library)


def split(model: nn.Module, library: Library, input_shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module, int]:
    """(trunk, classifier, D): `model` for inputs (C, [T,] H, W) with its classifier taken off; an identity where it has
    none that is one linear layer."""
    if library == "framepool":
        path = "fc" if hasattr(model, "fc") else "classifier"
        classifier = model.get_submodule(path)
        setattr(model, path, nn.Identity())
        return model, classifier, model.feature_dim  # type: ignore[return-value]
    if library == "timm":
        if not hasattr(model, "reset_classifier"):  # as with features_only
            raise _no_classifier(model)
        linear = model.get_classifier()  # type: ignore[operator]
        model.reset_classifier(0)  # type: ignore[operator]
        if isinstance(linear, nn.Linear):
            return model, linear, linear.in_features
        shape = output_shape(model.eval(), input_shape)
        if len(shape) != 2:
            raise NetworkError(f"{type(model).__name__} gives maps of {shape[1:]} and no rows: name one of its layers")
        return model, nn.Identity(), shape[1]
    from torchvision.models.video import S3D

    if isinstance(model, S3D):
        linear = _as_linear(model.classifier[-1])
        model.classifier = nn.Identity()  # what is left ends in the mean over all places
        return model, linear, linear.in_features
    all_linear = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not all_linear:
        raise _no_classifier(model)
    path, linear = all_linear[-1]
    _put(model, path, nn.Identity())
    if getattr(model, "aux_logits", False):  # the side classifiers of Inceptions serve only their own training
        for side in ("AuxLogits", "aux1", "aux2"):
            if hasattr(model, side):
                setattr(model, side, None)
        setattr(model, "aux_logits", False)  # noqa: B010
    return model, linear, linear.in_features


def _clip_networks() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models.video))


def _timm(name: str, pretrained: bool, in_chans: int, options: dict[str, Any]) -> tuple[nn.Module, InputSpec]:
    import timm
    from timm.data.config import resolve_model_data_config

    model = timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **options)
    cfg = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    size_px = _side(options.get("img_size", cfg["input_size"]))
    return model, InputSpec(
        size_px, tuple(cfg["mean"]), tuple(cfg["std"]), cfg["interpolation"], float(cfg["crop_pct"])
    )


def _torchvision(name: str, pretrained: bool, in_chans: int, options: dict[str, Any]) -> tuple[nn.Module, InputSpec]:
    import torchvision

    default = torchvision.models.get_model_weights(name).DEFAULT
    model = torchvision.models.get_model(name, weights=default if pretrained else None, **options)
    t = default.transforms()
    crop, resize = t.crop_size[0], t.resize_size[0]
    spec = InputSpec(crop, tuple(t.mean), tuple(t.std), t.interpolation.value, crop / resize)
    if name in _clip_networks():
        spec = replace(spec, frames=CLIPS.get(name, CLIP))
    spec = replace(spec, size_px=_side(options.get("image_size", crop)))
    if hasattr(model, "transform_input"):  # it turns ImageNet's mean and std into these, inside; once is enough
        model.transform_input, spec = False, replace(spec, mean=(0.5,) * 3, std=(0.5,) * 3)
    if in_chans != 3:
        _set_channels(model, in_chans)
    return model, spec


def _framepool(name: str, pretrained: bool, in_chans: int, options: dict[str, Any]) -> tuple[nn.Module, InputSpec]:
    pictures = getattr(NETWORKS[name], "pictures", None)  # the network of torchvision's that it is made of
    if pretrained and pictures is None:
        raise NetworkError(f"weights DEFAULT of {name} cannot be had: framepool has none; give `weights:` a local file")
    if name in OF_CLIPS:
        options["in_chans"] = in_chans
    elif in_chans != 1:
        raise NetworkError(f"framepool's {name} reads 1 channel, grey or log-mel; got in_chans {in_chans}")
    network = NETWORKS[name](**options)
    if pretrained:
        own = network.state_dict()
        taken, fresh = network.adopt(make(str(pictures), "torchvision", True, 3, {})[0].state_dict())
        fill(network, {**{key: own[key] for key in fresh}, **across_channels(taken, network)}, f"DEFAULT of {name}")
    of_sound = InputSpec(PATCH[0], (0.0,), (1.0,), "bilinear", 1.0, reads="logmel")
    return network, getattr(network, "spec", of_sound)


def _set_channels(model: nn.Module, in_chans: int) -> None:
    """A fresh first convolution for `in_chans` channels, with the settings of that for 3."""
    path, first = next((p, m) for p, m in model.named_modules() if isinstance(m, _ConvNd) and m.in_channels == 3)
    settings = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding", "dilation", "groups")}
    bias = first.bias is not None
    _put(model, path, type(first)(in_chans, first.out_channels, bias=bias, **settings))


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _as_linear(convolution: nn.Module) -> nn.Linear:
    """1 x 1 x 1 convolution, then the mean over all places, is the mean, then this."""
    if not isinstance(convolution, nn.Conv3d) or convolution.bias is None:
        raise TypeError(convolution)
    out, size = convolution.weight.shape[:2]
    linear = nn.Linear(size, out, device=convolution.weight.device)
    linear.weight = nn.Parameter(convolution.weight.detach().flatten(1))
    linear.bias = nn.Parameter(convolution.bias.detach())
    return linear


def _side(size_px: int | tuple[int, ...] | list[int]) -> int:
    return size_px if isinstance(size_px, int) else size_px[-1]


def _no_classifier(model: nn.Module) -> NetworkError:
    return NetworkError(
        f"{type(model).__name__} has no linear classifier to take off; choose another network, or other options"
    )


def _unknown(name: str, library: Library) -> NetworkError:
    elsewhere = next((other for other in LIBRARIES if other != library and name in names(other)), None)
    close = difflib.get_close_matches(name, names(library), n=3, cutoff=0.4)
    hint = f"{elsewhere} has it: set `library: {elsewhere}`" if elsewhere else f"near: {', '.join(close) or 'none'}"
    return NetworkError(f"unknown network: {library}: {name!r}; {hint}")
