"""Where test media come from: made by script here, or read from ``../shared/data`` beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WHY = "../shared/data is not here (real clips and weights for developers)"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=WHY)


def write_video(
    path: Path,
    frames: int = 12,
    width: int = 64,
    height: int = 48,
    fps: int = 10,
    codec: str = "libx264",
    seed: int = 0,
) -> Path:
    """A small clip: a grey square moves one pixel a frame over fixed noise, so that every frame differs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"threads": "1", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            image = noise.copy()
            at = 2 + number % (width - 12)
            image[4:12, at : at + 8] = 128
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_network(path: Path, name: str = "test_vit", seed: int = 0, num_classes: int = 5, **options: Any) -> Path:
    """Weights of a tiny network, random from a seed, as a run of ours saves them."""
    import torch

    from extract.networks import build, save_network

    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save_network(build(name, num_classes=num_classes, **options)))
    return path


def share_networks(cache: Path) -> None:
    """Make `cache` a link to the folder of converted networks that all tests of a run share: a network is converted in
    a process of its own, which imports torch first, and most tests are about something else."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.symlink_to(os.environ["FRAMEPOOL_TESTS_NETWORKS"], target_is_directory=True)


def damaged_media(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that give no rows, or not all: name -> (file, the outcome that it must have)."""
    whole = write_video(folder / "whole.avi", frames=40, codec="mpeg4")
    cut, empty, text, listing = (folder / name for name in ("cut.avi", "empty.mp4", "text.mp4", "concat.mp4"))
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    empty.write_bytes(b"")
    text.write_text("<html><body>404 Not Found</body></html>")
    listing.write_text(f"ffconcat version 1.0\nfile {whole}\n")
    sound = folder / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return {
        "cut": (cut, "partial"),
        "empty": (empty, "undecodable"),
        "text": (text, "undecodable"),
        "concat": (listing, "refused"),
        "sound": (sound, "no_video"),
    }
