"""Networks converted for the engine that runs them, once: the result is kept in a folder, the cache.

    with converter():
        facts = prepare(model, cache)                # sha256 of the weights, transform, feature shape
        others = prepare(other, cache)

Converting takes torch, and timm or torchvision, and importing those takes longer than the rest of it. So it happens in
a process of its own, one for all the networks inside a `converter()`, which ends with it and gives its memory back; an
extraction whose networks are converted already imports none of these.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from extract.calibration import Samples, quantised
from extract.decoders import children
from extract.lanes import middle
from extract.runtime import Model, whole_network
from extract.samples import job_of
from features.atomic import Lock, make_folder, publish_folder, scratch_folder, write_json

_OPEN: Final = ContextVar[ProcessPoolExecutor | None]("converter", default=None)


@contextmanager
def converter() -> Iterator[ProcessPoolExecutor]:
    """The process that converts, started when there is something to convert; inside of another `converter()` that
    one's."""
    if (outer := _OPEN.get()) is not None:
        yield outer
        return
    with children(1) as pool:
        token = _OPEN.set(pool)
        try:
            yield pool
        finally:
            _OPEN.reset(token)


def prepare(model: Model, cache: Path) -> dict[str, Any]:
    """The facts of `model`: ``weights_sha256``, ``row_shape``, and ``transform`` with all that the config left out.

    Leaves the converted network in `cache` where the runtime needs one, for int8 a quantised one beside it. Raises what
    `extract.networks.build` raises.
    """
    folder = cache / model.key()
    if not (folder / "facts.json").is_file():
        with Lock(make_folder(cache) / f"{folder.name}.lock", wait_s=900), converter() as pool:
            if not folder.is_dir():
                pool.submit(_convert, model, folder, Path.cwd()).result()
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_bytes())
    if model.calibration is not None:
        samples = partial(_calibrating, model, facts)
        facts["int8"] = quantised(model.quantised_key(), folder, samples, model.config.batch, cache).name
    return facts


def _calibrating(model: Model, facts: Mapping[str, Any]) -> list[Samples]:
    """Samples as the network sees them."""
    if model.calibration is None:
        return []
    shape, crop = model.source_shape, facts["transform"].get("crop")
    if shape is not None:
        return model.calibration.samples(None, middle(shape, crop))
    return model.calibration.samples(job_of(model.config, facts["transform"]), ())  # type: ignore[arg-type]


def _convert(model: Model, folder: Path, here: Path) -> None:
    """Build the network once: its facts, and for OpenVINO its fixed-shape graph. Paths are from `here`."""
    import torch

    os.chdir(here)  # the one who asks may have gone elsewhere since this process began
    network, facts = model.build()
    shape, dtype = model.example(facts)
    example = torch.zeros(shape, dtype=torch.uint8 if dtype == np.uint8 else torch.float32)
    whole = whole_network(network, facts)
    with torch.inference_mode():
        facts["row_shape"] = list(model.row_shape(network, whole, example[:1]))
    unfinished = scratch_folder(folder)
    if model.config.chosen_runtime == "openvino":
        import openvino

        from extract.openvino_core import save

        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing is what OpenVINO converts; torch would like it to go
            traced = torch.jit.trace(whole, example, check_trace=False)  # type: ignore[no-untyped-call]
        kind = openvino.Type.u8 if dtype == np.uint8 else openvino.Type.f32
        converted = openvino.convert_model(traced, input=[(shape, kind)])
        save(converted, unfinished / "model.xml")
    write_json(unfinished / "facts.json", facts)
    publish_folder(unfinished, folder)
