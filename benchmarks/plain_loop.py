"""The peer of `benchmarks.extraction`: frame features as most scripts get them, one frame at a time.

cv2 frame by frame, PIL resize and crop, eager torch fp32 at batch 1, one .npy a video.

    python -m benchmarks.plain_loop OUT NETWORK EVERY VIDEO [VIDEO ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from PIL import Image

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def prepare(frame: np.ndarray) -> torch.Tensor:
    """(H, W, 3) BGR uint8 -> (1, 3, 224, 224) normalised."""
    image = Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    return torch.from_numpy((pixels - MEAN) / STD).permute(2, 0, 1)[None]


def main(out: str, name: str, every: str, *videos: str) -> None:
    network = timm.create_model(name, num_classes=0).eval()
    with torch.no_grad():
        for number, video in enumerate(videos):
            capture, rows, at = cv2.VideoCapture(video), [], 0
            while True:
                ok, frame = capture.read()
                if not ok:
                    break
                if at % int(every) == 0:
                    rows.append(network(prepare(frame))[0].numpy())
                at += 1
            capture.release()
            np.save(Path(out) / f"{number}.npy", np.stack(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
