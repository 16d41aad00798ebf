"""What each unit of a trained head looks at in a few test videos, kept with the run for the report's pictures.

write_attention(folder, head, config, data, predictions)        # attention.npz, see heads.results.read_attention
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from features.atomic import write_bytes
from features.batches import Features
from heads.base import Head
from heads.config import BaseConfig
from heads.data import Data
from heads.results import ATTENTION, Predictions

VIDEOS: Final = 4


@torch.no_grad()
def write_attention(folder: Path, head: Head, config: BaseConfig, data: Data, predictions: Predictions) -> None:
    """Of the first videos of different classes that the head has right: whose highest score is their label, or one of
    several. Nothing for a head without attention. Of streamed features only those in the first block."""
    chosen = torch.tensor(_chosen(data, predictions), dtype=torch.int64)
    if not hasattr(head, "attention") or not len(chosen):
        return
    head.eval()
    select = {m: head.test_rows(config.rows(m).test) for m in head.shapes}
    device = next(head.parameters()).device
    features, places, numbers = next(iter(data.features.blocks(chosen)))
    chosen = chosen[places]
    rows, masks = head.completed(*features.batch(numbers, select, device, config.align))
    kept: dict[str, Any] = {"ids": np.array([data.features.ids[k] for k in chosen.tolist()])}
    kept["labels"] = np.array([_named(data, k) for k in chosen.tolist()])
    for modality, weights in head.attention(rows, masks).items():  # type: ignore[operator]
        kept[f"weights {modality}"] = weights.float().cpu().numpy()
        kept[f"time_us {modality}"] = _times(features, config, modality, numbers, select)
    stream = io.BytesIO()
    np.savez(stream, **kept)
    write_bytes(folder / ATTENTION, stream.getvalue())


def _chosen(data: Data, predictions: Predictions) -> list[int]:
    if not len(predictions.ids):
        return []
    best, labels = predictions.logits.argmax(axis=1), predictions.labels
    right = labels[np.arange(len(best)), best] if data.multi_label else labels == best
    found: dict[int, int] = {}
    for video, label, good in zip(data.test.tolist(), best.tolist(), right.tolist(), strict=True):
        if good:
            found.setdefault(label, video)
    classes = sorted(found)
    few = [classes[k * len(classes) // VIDEOS] for k in range(VIDEOS)] if len(classes) > VIDEOS else classes
    return [found[label] for label in few]


def _named(data: Data, video: int) -> str:
    label = data.labels[video]
    labels = label.nonzero().flatten() if data.multi_label else label[None]
    return ", ".join(data.classes[k] for k in labels.tolist())


def _times(
    features: Features, config: BaseConfig, modality: str, videos: torch.Tensor, select: Mapping[str, Any]
) -> npt.NDArray[np.int64]:
    """(n,L): times of the rows that were picked; -1 for padding."""
    reference = features.rows[config.align or modality]
    index, mask = select[config.align or modality](reference.lengths[videos])
    times = reference.time_us[torch.where(mask, index + reference.starts[videos, None], len(reference.time_us) - 1)]
    return np.asarray(torch.where(mask, times, -1).numpy())
