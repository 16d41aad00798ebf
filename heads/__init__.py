"""Stage two: rows of features in, class scores out. One paper, one file; this package imports no torch until it builds.

A new head is a file with a `Head`, its config in `heads.kinds`, and a line here.

    head = heads.build("attention_cluster", {"rgb": (1280,)}, num_classes=6, clusters=64)
    logits = head({"rgb": rows}, {"rgb": mask})          # (B,L,1280), (B,L) -> (B,6)
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from features.errors import UserError, nearest
from heads import kinds as configs
from heads.config import BaseConfig

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
        "netvlad": ("heads.netvlad:NetVlad", configs.NetVladConfig),
        "nextvlad": ("heads.netvlad:NextVlad", configs.NextVladConfig),
        "ridge": ("heads.ridge:Ridge", configs.RidgeConfig),
        "svm": ("heads.linear:Svm", configs.SvmConfig),
        "logistic": ("heads.linear:Logistic", configs.LogisticConfig),
        "tsn": ("heads.tsn:Tsn", configs.TsnConfig),
    }
)


def build(
    name: str, shapes: Mapping[str, tuple[int, ...]], num_classes: int, *, network: Any = None, **options: Any
) -> Head:
    """The head `name` for rows of `shapes` (modality: *D), with the defaults of its config.

    An end-to-end head takes its CNN as `network`: an `extract.networks` network, or a mapping as in the YAML.
    """
    if name not in HEADS:
        raise UserError("unknown head", got=name, fix=nearest(name, HEADS))
    given = {} if network is None else {"network": network if isinstance(network, Mapping) else {"name": "given"}}
    config = HEADS[name][1].parse({"features": list(shapes), **given, **options}, where=f"head {name}")
    built = None if network is None or isinstance(network, Mapping) else network
    return from_config(config, shapes, num_classes, network=built)


def from_config(
    config: BaseConfig, shapes: Mapping[str, tuple[int, ...]], num_classes: int, *, network: Any = None
) -> Head:
    """The head that `config` describes; `network` overrides the one that its config names."""
    missing = [modality for modality in config.features if modality not in shapes]
    if missing:
        raise UserError("a head reads features that are not there", got=missing[0], fix=nearest(missing[0], shapes))
    module, _, class_name = HEADS[config.kind][0].partition(":")
    head_class = getattr(importlib.import_module(module), class_name)
    own = {modality: tuple(shapes[modality]) for modality in config.features}
    needs = getattr(config, "network", None)
    extra = {} if needs is None else {"network": network if network is not None else needs}
    head: Head = head_class(own, num_classes, **config.options(), **extra)
    if config.missing == "mean":
        head.stand_in(config.align)
    return head
