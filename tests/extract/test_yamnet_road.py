"""From wav files through the stores of `logmel` and `audio` to YAMNet's known embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from extract.config import ExtractorConfig, recipe
from extract.fingerprint import Item
from extract.shard import Task, extract_shard
from features.store import read_shard
from tests.media import SHARED, needs_shared

WEIGHTS = SHARED / "weights/yamnet/yamnet_folded_fp32.npz"
NAMES = ("baby_5000ms", "baby_975ms", "dog_975ms", "jingle_975ms", "torchvggish_test")


@needs_shared
@pytest.mark.parametrize("runtime", ["openvino", pytest.param("torch", marks=pytest.mark.slow)])
def test_embeddings_of_the_five_files(tmp_path: Path, runtime: str) -> None:
    parse = TypeAdapter(ExtractorConfig).validate_python
    network = {"name": "yamnet", "library": "framepool", "weights": WEIGHTS}
    logmel = parse({"kind": "logmel", "hop_s": 0.48, "offset": 0.001})
    audio = parse({"kind": "audio", "source": "logmel", "network": network, "runtime": runtime})
    common: dict[str, Any] = {
        "shard": 0,
        "items": tuple(Item(name, f"{name}.wav") for name in NAMES),
        "root": SHARED / "weights/yamnet/audio",
        "cache": tmp_path / "cache",
    }
    maps = Task(
        extractor="logmel", config=logmel, recipe=recipe(logmel), weights=None, store=tmp_path / "maps", **common
    )
    made = recipe(audio, "sha", "logmel")
    task = Task(
        extractor="audio",
        config=audio,
        recipe=made,
        weights=WEIGHTS,
        store=tmp_path / "rows",
        source=maps.store,
        **common,
    )
    extract_shard(maps, workers=1)
    extract_shard(task, workers=2)
    shard = read_shard(tmp_path / "rows", 0)
    assert [o.rows for o in shard.manifest.outcomes] == [9, 1, 1, 1, 7]
    reference = np.load(SHARED / "weights/yamnet/reference_outputs.npz")
    for video, name in enumerate(NAMES):
        expected = reference[f"{name}.wav/embedding"]
        error = np.linalg.norm(shard.frames[shard.offsets[video]].astype(np.float32) - expected)
        assert error < 1e-3 * np.linalg.norm(expected), name
