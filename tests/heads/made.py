"""Made-up rows for head tests: shapes for each registered head, and a problem that any of them can learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from features.batches import Features

SMALL_CNN = {"name": "resnet10t", "options": {"stem_width": 8, "channels": [8, 16, 24, 32], "zero_init_last": False}}
VECTORS = {"rgb": (12,), "flow": (7,)}
MAPS = {"pixels": (40, 48, 3)}
PATCH = (96, 64)
CLASSES = ("jump", "kick", "=run", "walk")

# Each registered head, as the contract tests build it: shapes and options.
CASES: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "average": ("average", VECTORS, {}),
    "attention_cluster-fc1": ("attention_cluster", VECTORS, {"clusters": {"rgb": 5, "flow": 3}}),
    "attention_cluster-fc2": ("attention_cluster", VECTORS, {"clusters": 4, "weighting": "fc2"}),
    "attention_cluster-codes": (
        "attention_cluster",
        VECTORS,
        {"clusters": 4, "codes": "+", "classes": ("none", "a", "b", "a+b", "c")},
    ),
    "attention_cluster-average": ("attention_cluster", VECTORS, {"clusters": 4, "weighting": "average"}),
    "attention_cluster-unshifted": ("attention_cluster", VECTORS, {"clusters": 4, "shift": False}),
    "flatten": ("flatten", VECTORS, {"places": {"rgb": 6, "flow": 4}}),
    "ts_lstm": ("ts_lstm", VECTORS, {"hidden": 9}),
    "temporal_inception": ("temporal_inception", VECTORS, {"hidden": 11}),
    "bilstm": ("bilstm", VECTORS, {"hidden": {"rgb": 6, "flow": 5}}),
    "stacked_lstm": ("stacked_lstm", VECTORS, {"hidden": 9}),
    "vtn-paper": ("vtn", VECTORS, {"dim": 16, "heads": 4, "blocks": 2}),
    "vtn-code": ("vtn", VECTORS, {"dim": 16, "heads": 4, "blocks": 2, "profile": "code"}),
    "vtn-ablated": (
        "vtn",
        {"rgb": (16,)},
        {"dim": 16, "heads": 2, "shared": True, "output_projection": True, "norm": "pre", "positions": False},
    ),
    "netvlad": ("netvlad", VECTORS, {"centres": 4}),
    "nextvlad": ("nextvlad", VECTORS, {"centres": 4, "groups": 3, "hidden": 16, "squeeze": 4}),
    "noisy_or": ("noisy_or", VECTORS, {"hidden": 9}),
    "noisy_or-codes": ("noisy_or", VECTORS, {"hidden": 9, "codes": "+", "classes": ("none", "a", "b", "a+b", "c")}),
    "noisy_or-exclusive": (
        "noisy_or",
        VECTORS,
        {"hidden": 9, "exclusive": True, "codes": "+", "classes": ("none", "a", "b", "a+b", "a+c+d")},
    ),
    "noisy_or-counted": (
        "noisy_or",
        VECTORS,
        {"hidden": 9, "exclusive": True, "counts": 2, "codes": "+", "classes": ("none", "a", "b", "a+b", "a+c+d")},
    ),
    "ridge": ("ridge", VECTORS, {}),
    "svm": ("svm", VECTORS, {}),
    "logistic": ("logistic", VECTORS, {}),
    "tsn": ("tsn", MAPS, {"network": SMALL_CNN, "crop_px": 32}),
    "tsn-flow": ("tsn", {"tvl1": (40, 48, 4)}, {"network": {**SMALL_CNN, "reads": "flow"}, "crop_px": 32}),
    "tsn-rgbdiff": ("tsn", {"rgb": (3, 40, 48, 3)}, {"network": {**SMALL_CNN, "reads": "rgbdiff"}, "crop_px": 32}),
    "kft-3d": ("kft", {"maps": (8, 8, 2, 2)}, {"width": 64, "layers": (1, 1, 1), "heads": (2, 2, 2)}),
    "kft-concat": (
        "kft",
        {"maps": (8, 8, 3, 4)},
        {
            "cut": "mixed_4f",
            "pool_px": 2,
            "residual": "concat",
            "positions": "learned",
            "consensus": "max",
            "width": 64,
            "layers": (2, 1, 1),
            "mixed_kt": 1,
            "ffn": 2,
        },
    ),
    "kft-late": (
        "kft",
        {"maps": (8, 4, 2, 2)},
        {"cut": "max_pool_5a", "width": 64, "layers": (1, 1), "lateral": False, "positions": "none"},
    ),
    "kft-2d": ("kft", {"maps": (8, 3, 4, 4)}, {"dims": "2d", "hidden": 16, "consensus": "logits"}),
    "kft-1d": ("kft", {"maps": (8, 3, 4, 5)}, {"dims": "1d", "hidden": 16}),
    "i3d": ("i3d", {"maps": (8, 4, 2, 2)}, {}),
    "i3d-clips": ("i3d", {"clips": (8, 40, 48, 3)}, {"network": {"name": "i3d"}, "cut": "mixed_4f", "crop_px": 32}),
    "tsn-logmel": ("tsn", {"logmel": PATCH}, {"network": {**SMALL_CNN, "reads": "logmel"}, "augment": "none"}),
    "vtn-clips": (
        "vtn",
        {"clips": (4, 40, 48, 3)},
        {"encoder": {**SMALL_CNN, "crop_px": 32}, "dim": 16, "heads": 4, "blocks": 1},
    ),
    "vtn-stacked": (
        "vtn",
        {"pixels": (40, 48, 3)},
        {"encoder": {**SMALL_CNN, "crop_px": 32, "reads": "stacked", "frames": 4}, "dim": 16, "heads": 4, "blocks": 1},
    ),
    "stacked_lstm-rgbdiff": (
        "stacked_lstm",
        {"clips": (3, 40, 48, 3)},
        {"encoder": {**SMALL_CNN, "crop_px": 32, "reads": "rgbdiff", "of": "softmax"}, "hidden": 9},
    ),
    "average-flow": (
        "average",
        {"tvl1": (40, 48, 2)},
        {"encoder": {**SMALL_CNN, "crop_px": 32, "reads": "flow", "frames": 3}, "dropout": 0},
    ),
}
# Heads that read rows in their order.
ORDERED = ("flatten", "ts_lstm", "temporal_inception", "bilstm", "stacked_lstm", "vtn-paper", "vtn-code", "vtn-stacked")

# Heads to which a row of zeros is more than no row: shifted, normalised against centres, a step of a recurrence.
ZERO_ROW_SPEAKS = (
    *("attention_cluster-fc1", "attention_cluster-fc2", "attention_cluster-average", "attention_cluster-codes"),
    *("netvlad", "nextvlad"),
    *("noisy_or", "noisy_or-codes", "noisy_or-exclusive", "noisy_or-counted"),
    *("ts_lstm", "bilstm", "stacked_lstm", "vtn-paper", "vtn-code"),
)


def rows(shape: tuple[int, ...], *leading: int, seed: int = 0) -> torch.Tensor:
    """(*leading, *shape): uint8 maps, or float32 vectors, activations and log-mel patches."""
    generator = torch.Generator().manual_seed(seed)
    activations = len(shape) == 4 and shape[-1] != 3  # (C, T, H, W), not (T, H, W, 3)
    if len(shape) > 1 and shape != PATCH and not activations:
        return torch.randint(0, 256, (*leading, *shape), dtype=torch.uint8, generator=generator)
    return torch.randn(*leading, *shape, generator=generator)


def problem(
    videos: int = 60, dim: int = 16, modality: str = "rgb", seed: int = 0
) -> tuple[Features, np.ndarray[Any, Any]]:
    """Videos of 3 to 9 rows, one row of which tells the class; and their labels (V,)."""
    generator = np.random.default_rng(seed)
    labels = np.arange(videos) % len(CLASSES)
    arrays = []
    for label in labels:
        video = 0.15 * generator.standard_normal((generator.integers(3, 10), dim))
        video[generator.integers(len(video)), label] += 3
        arrays.append(video.astype(np.float16))
    return Features.of([f"v{k:03d}" for k in range(videos)], {modality: arrays}), labels


def map_problem(videos: int = 24, side: int = 32, seed: int = 0) -> tuple[Features, np.ndarray[Any, Any]]:
    """uint8 maps whose colour tells the class (of 3)."""
    generator = np.random.default_rng(seed)
    labels = np.arange(videos) % 3
    arrays = []
    for label in labels:
        video = generator.integers(0, 120, (4, side, side, 3))
        video[..., label] += 130
        arrays.append(video.astype(np.uint8))
    return Features.of([f"v{k:03d}" for k in range(videos)], {"pixels": arrays}), labels
