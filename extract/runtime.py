"""The engines that run a network on batches of one fixed shape: OpenVINO on a CPU, torch on a CPU or CUDA.

A network here is whole: uint8 (B, H, W, 3) pixels in, normalised inside, float32 (B, D) features out. The last batch is
padded to the same shape, so that a recipe gives the same bytes wherever a job was taken up again.

    facts = prepare(model, cache)                    # sha256 of the weights, transform, feature size; converts
    run = engine(model, facts, cache, threads=2)
    for features in run(batches): ...

Converting for OpenVINO takes torch and seconds; it happens once, in a process of its own, and the result is kept in
`cache`. After that an extraction imports neither torch nor timm.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from extract.config import Rgb
from features.atomic import Lock, make_folder, publish_folder, write_json
from features.errors import UserError
from features.recipe import digest, file_sha256

Batch = npt.NDArray[np.uint8]  # (n <= B, H, W, 3)
Rows = npt.NDArray[np.float32]  # (n, D)
Engine = Callable[[Iterable[Batch]], Iterator[Rows]]


@dataclass(frozen=True)
class Model:
    """A network with its weights (a file, or ``DEFAULT``) and what the config says of its input."""

    config: Rgb
    weights: Path | str

    def facts(self) -> dict[str, Any]:
        """What the name and the weights lead to; builds the network. See `prepare`."""
        return self._build()[1]

    def _build(self) -> tuple[Any, dict[str, Any]]:
        from extract.networks import NetworkError, build  # torch comes in only where a network is built

        net = self.config.network
        try:
            network = build(net.name, library=net.library, weights=self.weights, num_classes=0, options=net.options)
        except NetworkError as error:
            raise UserError(str(error)) from None
        asked, own = self.config.transform, network.input
        crop = asked.crop or own.size_px
        transform = {
            "resize": asked.resize or max(crop, round(crop / own.crop_ratio)),
            "crop": crop,
            "mean": list(asked.mean or own.mean),
            "std": list(asked.std or own.std),
            "interpolation": asked.interpolation or ("bilinear" if own.interpolation == "bilinear" else "bicubic"),
        }
        sha256 = file_sha256(self.weights) if isinstance(self.weights, Path) else network.weights_sha256
        facts = {"weights_sha256": sha256, "transform": transform, "feature_dim": network.feature_dim}
        return network, facts


def prepare(model: Model, cache: Path) -> dict[str, Any]:
    """The facts of `model`: ``weights_sha256``, ``feature_dim``, and ``transform`` with all that the config left out.

    Leaves the converted network in `cache` where the runtime needs one. Raises what `extract.networks.build` raises.
    """
    folder = _cached(model, cache)
    if not (folder / "facts.json").is_file():
        with (
            Lock(make_folder(cache) / f"{folder.name}.lock", wait_s=900),
            ProcessPoolExecutor(1, get_context("spawn")) as pool,
        ):
            if not folder.is_dir():
                pool.submit(_convert, model, folder).result()
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_bytes())
    return facts


def engine(
    model: Model, facts: Mapping[str, Any], cache: Path, *, threads: int, precision: str | None = None
) -> Engine:
    """A function from batches to their rows, in order; two batches are on their way while one is used."""
    precision = precision or model.config.precision
    if model.config.chosen_runtime == "openvino":
        return _openvino(_cached(model, cache), model.config.batch, precision, threads, cache)
    return _torch(model, facts, precision, threads)


def _cached(model: Model, cache: Path) -> Path:
    weights = file_sha256(model.weights) if isinstance(model.weights, Path) else model.weights
    fields = model.config.recipe()
    key = [fields["network"], fields["transform"], fields["batch"], model.config.chosen_runtime, weights]
    versions = [version(name) for name in ("torch", "torchvision", "timm", "openvino")]
    return cache / f"{model.config.network.name}-{digest([key, versions])[:16]}"


def _convert(model: Model, folder: Path) -> None:
    network, facts = model._build()
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    if model.config.chosen_runtime == "openvino":
        import openvino
        import torch

        crop = facts["transform"]["crop"]
        example = torch.zeros((model.config.batch, crop, crop, 3), dtype=torch.uint8)
        whole = _whole(network, facts)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing is what OpenVINO converts; torch would like it to go
            traced = torch.jit.trace(whole, example, check_trace=False)  # type: ignore[no-untyped-call]
        openvino.save_model(
            openvino.convert_model(traced, input=[(example.shape, openvino.Type.u8)]), partial / "model.xml", False
        )
    write_json(partial / "facts.json", facts)
    publish_folder(partial, folder)


def _whole(network: Any, facts: Mapping[str, Any]) -> Any:
    import torch

    class Whole(torch.nn.Module):
        """uint8 (B, H, W, 3) -> float (B, D)."""

        def __init__(self) -> None:
            super().__init__()
            self.trunk = network.trunk
            for name in ("mean", "std"):
                value = torch.tensor(facts["transform"][name], dtype=torch.float32).mul(255).view(1, 3, 1, 1)
                self.register_buffer(name, value)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            images = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std  # type: ignore[operator]
            features: torch.Tensor = self.trunk(images)
            return features.float()

    return Whole().eval()


def _openvino(folder: Path, batch: int, precision: str, threads: int, cache: Path) -> Engine:
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],  # its own default may be bf16
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "CACHE_DIR": str(cache / "compiled"),
    }
    compiled = core.compile_model(core.read_model(folder / "model.xml"), "CPU", options)
    requests = deque(compiled.create_infer_request() for _ in range(3))

    def start(pixels: Batch) -> tuple[Any, int]:
        request = requests.popleft()
        request.get_input_tensor().data[: len(pixels)] = pixels
        request.get_input_tensor().data[len(pixels) :] = 0
        request.start_async()
        return request, len(pixels)

    def finish(request: Any, n: int) -> Rows:
        request.wait()
        requests.append(request)
        rows: Rows = request.get_output_tensor().data[:n].copy()
        return rows

    return lambda batches: _ahead(batches, start, finish)


def _torch(model: Model, facts: Mapping[str, Any], precision: str, threads: int) -> Engine:
    import torch

    torch.set_num_threads(threads)
    device = torch.device(model.config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "no CUDA device here", where=model.config.network.name, fix="set `device: cpu`, or run elsewhere"
        )
    whole = _whole(model._build()[0], facts).to(device, memory_format=torch.channels_last)
    padded = np.zeros((model.config.batch, *([facts["transform"]["crop"]] * 2), 3), np.uint8)

    def start(pixels: Batch) -> tuple[Any, int]:
        padded[: len(pixels)] = pixels
        padded[len(pixels) :] = 0
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return whole(torch.from_numpy(padded).to(device)), len(pixels)

    def finish(features: Any, n: int) -> Rows:
        rows: Rows = features[:n].cpu().numpy()
        return rows

    return lambda batches: _ahead(batches, start, finish)


def _ahead(
    batches: Iterable[Batch], start: Callable[[Batch], tuple[Any, int]], finish: Callable[[Any, int], Rows]
) -> Iterator[Rows]:
    pending: deque[tuple[Any, int]] = deque()
    for pixels in batches:
        pending.append(start(pixels))
        if len(pending) == 3:
            yield finish(*pending.popleft())
    while pending:
        yield finish(*pending.popleft())
