"""CNNs of heads: built as a config names them, held to the rows that they are to read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from extract.networks import Network, NetworkError, names
from extract.networks import build as build_network
from features.errors import UserError
from features.recipe import Config
from heads.config import RunWeights


def built(where: str, config: Config, **more: Any) -> Network:
    """The network of `config`'s fields and `more`, which say how `extract.networks.build` is called.

    Raises `UserError`, of the option `where`, for what that refuses, and for weights of a run, not looked up yet.
    """
    asked = {**{name: getattr(config, name) for name in ("name", "weights", "options")}, **more}
    for name in ("library", "inflate"):
        if hasattr(config, name):
            asked[name] = getattr(config, name)
    if isinstance(asked["weights"], RunWeights):
        raise UserError("weights of a run", where=where, expected="the file that they are in", got=asked["weights"].run)
    try:
        return build_network(**asked)
    except NetworkError as error:
        raise UserError(f"{where}: {error}") from None


def load_libraries(configs: Iterable[Any]) -> None:
    """What the networks of these heads come from, loaded once: children share what their parent has loaded."""
    for library in {getattr(config, config.cnn).library for config in configs if config.cnn}:
        names(library)


def check_input(where: str, network: Network, *input_shape: int) -> None:
    """Raises `UserError` where `network` cannot take inputs (C, [T,] H, W) of this shape."""
    try:
        network.check(*input_shape)
    except NetworkError as error:
        raise UserError(f"{where}: {error}", fix="set crop_px, or choose another network") from None
