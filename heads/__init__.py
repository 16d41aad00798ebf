"""Stage two: rows of features in, class scores out. One paper, one file; this package imports no torch until it builds.

A new head is a file with a `Head`, its config in `heads.kinds`, and a line here.

    head = heads.build("attention_cluster", {"rgb": (1280,)}, num_classes=6, clusters=64)
    logits = head({"rgb": rows}, {"rgb": mask})          # (B,L,1280), (B,L) -> (B,6)
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from features.errors import UserError, nearest
from heads import kinds as configs
from heads import map_kinds
from heads.config import EMPTY, BaseConfig

if TYPE_CHECKING:
    from heads.base import Head

HEADS: Final[Mapping[str, tuple[str, type[BaseConfig]]]] = MappingProxyType(
    {
        "average": ("heads.average:Average", configs.AverageConfig),
        "attention_cluster": ("heads.attention_cluster:AttentionCluster", configs.AttentionClusterConfig),
        "flatten": ("heads.flatten:Flatten", configs.FlattenConfig),
        "ts_lstm": ("heads.ts_lstm:TsLstm", configs.TsLstmConfig),
        "temporal_inception": ("heads.temporal_inception:TemporalInception", configs.TemporalInceptionConfig),
        "bilstm": ("heads.bilstm:BiLstm", configs.BiLstmConfig),
        "stacked_lstm": ("heads.stacked_lstm:StackedLstm", configs.StackedLstmConfig),
        "vtn": ("heads.vtn:Vtn", configs.VtnConfig),
        "kft": ("heads.kft:Kft", map_kinds.KftConfig),
        "i3d": ("heads.i3d:I3dTail", map_kinds.I3dConfig),
        "netvlad": ("heads.netvlad:NetVlad", configs.NetVladConfig),
        "nextvlad": ("heads.netvlad:NextVlad", configs.NextVladConfig),
        "noisy_or": ("heads.noisy_or:NoisyOr", configs.NoisyOrConfig),
        "ridge": ("heads.ridge:Ridge", configs.RidgeConfig),
        "svm": ("heads.linear:Svm", configs.SvmConfig),
        "logistic": ("heads.linear:Logistic", configs.LogisticConfig),
        "tsn": ("heads.tsn:Tsn", configs.TsnConfig),
    }
)


def build(
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    num_classes: int,
    *,
    network: Any = None,
    classes: Sequence[str] = (),
    **options: Any,
) -> Head:
    """The head `name` for rows of `shapes` (modality: *D), with the defaults of its config.

    An end-to-end head takes its CNN as `network`: an `extract.networks` network, or a mapping as in the YAML; a head of
    vectors has it as its `encoder`. The names of the `classes` are needed with `codes`.
    """
    if name not in HEADS:
        raise UserError("unknown head", got=name, fix=nearest(name, HEADS))
    part = "network" if "network" in HEADS[name][1].model_fields else "encoder"
    given = {} if network is None else {part: network if isinstance(network, Mapping) else {"name": "given"}}
    config = HEADS[name][1].parse({"features": list(shapes), **given, **options}, where=f"head {name}")
    built = None if network is None or isinstance(network, Mapping) else network
    return from_config(config, shapes, num_classes, network=built, classes=classes)


def from_config(
    config: BaseConfig,
    shapes: Mapping[str, tuple[int, ...]],
    num_classes: int,
    *,
    network: Any = None,
    classes: Sequence[str] = (),
) -> Head:
    """The head that `config` describes; `network` overrides the one that its config names, `classes` are for codes."""
    missing = [modality for modality in config.features if modality not in shapes]
    if missing:
        raise UserError("a head reads features that are not there", got=missing[0], fix=nearest(missing[0], shapes))
    module, _, class_name = HEADS[config.kind][0].partition(":")
    head_class = getattr(importlib.import_module(module), class_name)
    own = {modality: tuple(shapes[modality]) for modality in config.features}
    needs = getattr(config, "network", None)
    extra = {} if needs is None else {"network": network if network is not None else needs}
    encoder = None
    if config.encoder is not None:
        from heads.end_to_end import Encoder

        encoder = Encoder(own, config.encoder, network)
        own = dict.fromkeys(own, (encoder.dim,))
    codes = None if config.codes is None else label_codes(classes, config.codes, num_classes)
    outputs = num_classes if codes is None else codes.shape[1]
    head: Head = head_class(own, outputs, **config.options(), **extra)
    if codes is not None:
        if head.fitted:
            raise UserError("no codes with a head that is not trained in steps", where=f"head {config.kind}")
        head.decode(codes)
    if encoder is not None:
        from heads.end_to_end import EndToEnd

        head = EndToEnd(encoder, head)
    if config.missing == "mean":
        head.stand_in(config.align)
    return head


def label_codes(classes: Sequence[str], sign: str, num_classes: int) -> npt.NDArray[np.float32]:
    """(C,K) of 0 and 1: which of the K parts, in the order of their names, each class has."""
    if len(classes) != num_classes:
        raise UserError("codes need the names of the classes", expected=num_classes, got=len(classes))
    sets = [set() if name == EMPTY else set(name.split(sign)) for name in classes]
    parts = sorted(set[str]().union(*sets))
    codes = np.array([[part in own for part in parts] for own in sets], dtype=np.float32)
    if len(np.unique(codes, axis=0)) < len(classes):
        raise UserError("classes of the same code", expected=f"names cut at {sign!r} into different sets")
    return codes
