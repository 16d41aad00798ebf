"""The 18 shared photos, and the ImageNet MobileNetV2 whose outputs on them are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from extract.config import NetworkConfig, Rgb, Transform
from tests.media import SHARED

WEIGHTS = SHARED / "weights/mobilenet_v2/mobilenetv2_100_same.safetensors"
HALF = (0.5, 0.5, 0.5)


def reference() -> Any:
    """names, features (18, 1280) and logits (18, 1000)."""
    return np.load(SHARED / "weights/mobilenet_v2/reference_outputs.npz")


def photos() -> npt.NDArray[np.uint8]:
    """(18, 224, 224, 3) in the order of the reference."""
    folder = SHARED / "weights/photos224"
    return np.stack([np.asarray(Image.open(folder / name).convert("RGB")) for name in reference()["names"]])


def config(runtime: str) -> Rgb:
    """As an extractor is configured for these weights."""
    network = NetworkConfig(name="mobilenetv2_100", weights=WEIGHTS, options={"pad_type": "same"})
    return Rgb.model_validate(
        {"kind": "rgb", "network": network, "transform": Transform(mean=HALF, std=HALF), "runtime": runtime, "batch": 8}
    )


def relative(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected))
