"""The engines that run a network on batches of one fixed shape: OpenVINO on a CPU, torch on a CPU or CUDA.

A network here is whole: rows as they are decoded or stored in, normalised inside, float32 (B, *F) features out. The
last batch is padded to the same shape, so that a recipe gives the same bytes wherever a job was taken up again.

    run = engine(model, facts, cache, threads=2)     # the facts that `extract.convert.prepare` gives
    features = run.finish(run.start(rows))
"""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from extract.calibration import Calibration
from extract.config import DECODING, NUMERICS, Flow, Mapped, Networked, Pictured, snippet
from extract.lanes import Engine
from features.errors import UserError
from features.recipe import digest, file_sha256

__all__ = ["Compared", "Engine", "Model", "engine", "feature_shape", "steps", "whole_network"]

Rows = npt.NDArray[Any]
READS: Final = {"rgb": "rgb", "trunk": "rgb", "rgbdiff": "rgbdiff", "flow": "flow", "audio": "logmel"}
ON_THEIR_WAY: Final = 3  # batches


@dataclass(frozen=True)
class Model:
    """A network with its weights (a file, ``DEFAULT``, or None where only shapes are asked for), what the config says
    of its input, and the shape of the rows that it reads where they come from another extractor."""

    config: Networked
    weights: Path | str | None
    source_shape: tuple[int, ...] | None = None
    calibration: Calibration | None = None

    @property
    def reads(self) -> str:
        """How rows become the network's input; see `extract.networks.rows`."""
        return READS[self.config.kind]  # type: ignore[attr-defined]

    def build(self) -> tuple[Any, dict[str, Any]]:
        """The network, and its facts; see `prepare`."""
        from extract.networks import NetworkError, build  # torch comes in only where a network is built

        net = self.config.network
        try:
            network = build(
                net.name,
                library=net.library,
                weights=self.weights,
                num_classes=0,
                in_chans=self._channels(),
                options=net.options,
                reads=self.reads,  # type: ignore[arg-type]
                layer=net.layer,
                pool=net.pool,
                inflate=net.inflate,
            )
        except NetworkError as error:
            raise UserError(str(error)) from None
        if network.fresh and self.weights is not None:
            raise UserError(
                "weights do not fill the network",
                where=f"network {net.name}: {self.weights}",
                got=f"{len(network.fresh)} random parameters, {network.fresh[0]} is one",
                fix="train them with a tsn head first",
            )
        sha256 = file_sha256(self.weights) if isinstance(self.weights, Path) else network.weights_sha256
        transform = self._transform(network.input)
        return network, {"weights_sha256": sha256, "transform": transform}

    def _channels(self) -> int:
        from extract.networks import own_channels, reads_clips

        net = self.config.network
        if self.reads == "flow" and reads_clips(net.name, net.library):
            return 2
        if self.reads == "rgbdiff":
            pairs = self.source_shape[0] - 1 if self.source_shape else self.config.pairs  # type: ignore[attr-defined]
            return 3 * int(pairs)
        own = own_channels(net.name, net.library)
        return {"flow": (self.source_shape or (2,))[-1], "logmel": 1}.get(self.reads, own)

    def _transform(self, own: Any) -> dict[str, Any]:
        """What the config leaves out comes with the weights."""
        if isinstance(self.config, Pictured):
            asked = self.config.transform
            crop = asked.crop or own.size_px
            colours = {"mean": list(asked.mean or own.mean), "std": list(asked.std or own.std)}
            if len(colours["mean"]) != len(colours["std"]):
                raise UserError(
                    "mean and std differ in length",
                    where=f"network {self.config.network.name}",
                    got=f"{len(colours['mean'])} and {len(colours['std'])}",
                    fix="set both in the transform, or neither",
                )
            found: dict[str, Any] = {"crop": crop, **colours}
            if self.source_shape is None:
                found["resize"] = asked.resize or max(crop, round(crop / own.crop_ratio))
                interpolation = "bilinear" if own.interpolation == "bilinear" else "bicubic"
                found["interpolation"] = asked.interpolation or interpolation
        elif isinstance(self.config, Flow):
            found = {"crop": self.config.crop or own.size_px, "mean": list(own.mean), "std": list(own.std)}
        else:
            return {}
        if self.source_shape is not None and found["crop"] > (room := min(self.source_shape[-3:-1])):
            if self.weights is None:  # which may have been trained for these maps
                return {**found, "crop": room}
            raise UserError(
                "maps are smaller than the network's input",
                where=f"network {self.config.network.name}",
                expected=f"maps of at least {found['crop']} px",
                got="x".join(map(str, self.source_shape)),
                fix="set crop, or a larger crop in the source",
            )
        return found

    def example(self, facts: Mapping[str, Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape (B, *S) and type of a batch."""
        b, config, crop = self.config.batch, self.config, facts["transform"].get("crop")
        if isinstance(config, Mapped) and self.source_shape is not None:
            if crop is None:
                return (b, *self.source_shape), np.dtype(np.float32)
            return (b, crop, crop, self.source_shape[-1]), np.dtype(np.uint8)
        if self.source_shape is not None:
            return (b, *self.source_shape[:-3], crop, crop, self.source_shape[-1]), np.dtype(np.uint8)
        frames = self._frames()
        return (b, *((frames,) if frames > 1 else ()), crop, crop, 3), np.dtype(np.uint8)

    def row_shape(self, network: Any, whole: Any, rows: Any) -> tuple[int, ...]:
        """The shape of the features that `whole` makes of a row of `rows` (1, *S). Raises `UserError` where `network`
        cannot take them."""
        from extract.networks import NetworkError

        given = tuple(whole.rows(rows).shape[1:])
        try:
            network.check(*given)
        except NetworkError as error:
            fix = "choose another network"
            if (clips := network.input.frames > 1) != (len(given) == 4):
                ours, other, kind = ("clips", "pictures", "trunk") if clips else ("pictures", "clips", "rgb")
                fix = f"it reads {ours}: choose one of {other}, or kind: {kind}"
            elif self.reads != "logmel":
                fix = f"set a crop that it takes, such as {network.input.size_px}, or {fix}"
            where = f"network {self.config.network.name}"
            raise UserError("network does not take its rows", where=where, got=error, fix=fix) from None
        return tuple(whole(rows).shape[1:])

    def _frames(self) -> int:
        """Of a sample that is decoded for the network."""
        return snippet(self.config)[0] if isinstance(self.config, Pictured) else 1

    def key(self) -> str:
        """Names what `prepare` leaves in the cache; where in a video the frames are makes no other network."""
        weights = file_sha256(self.weights) if isinstance(self.weights, Path) else self.weights
        fields = self.config.recipe()
        for field in (*DECODING, "store", "temporary", "source", "precision", "calibration", "device"):
            fields.pop(field, None)
        fields["network"]["weights"] = weights
        versions = [version(name) for name in ("torch", "torchvision", "timm", "openvino")]
        shape = list(self.source_shape) if self.source_shape else self._frames()
        numerics = NUMERICS[self.config.kind]  # type: ignore[attr-defined]
        of = [fields, self.config.chosen_runtime, shape, versions, numerics]
        return f"{self.config.network.name}-{digest(of)[:16]}"

    def quantised_key(self) -> str:
        """Names it in int8: made for the rows that `calibration` and the sampling give."""
        fields = self.config.recipe()
        samples = [fields.get(field) for field in DECODING]
        calibration = None if self.calibration is None else self.calibration.name
        return f"{self.key()}-int8-{digest([samples, calibration])[:16]}"


def engine(
    model: Model, facts: Mapping[str, Any], cache: Path, *, threads: int, precision: str | None = None
) -> Engine:
    """What makes rows of batches, in order; two batches are on their way while one is used."""
    precision = precision or model.config.precision
    if model.config.chosen_runtime == "openvino":
        folder = cache / (facts["int8"] if precision == "int8" else model.key())
        return _OpenVino(folder, precision, threads)
    return _Torch(model, facts, precision, threads)


def steps(config: Networked) -> str:
    """The precision of the steps that a config's bf16 leads to here: "bf16", or "fp32" where the processor has none."""
    if config.chosen_runtime == "openvino":
        from extract.openvino_core import CORE

        return "bf16" if "BF16" in CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"
    import torch

    from extract.networks.bf16 import has_bf16

    if config.device == "cuda" and not torch.cuda.is_available():  # nothing runs here, and the engine says so
        return "bf16"
    return "bf16" if has_bf16(torch.device(config.device)) else "fp32"


class Compared:
    """The engine that `own` makes. The first batch goes through `exact` before: `tell` hears the L2 error of its rows
    against those, relative to these, where it is a number. The two never stand in memory together."""

    def __init__(self, own: Callable[[], Engine], exact: Callable[[], Engine], tell: Callable[[float], None]) -> None:
        self._make, self._exact, self._tell = own, exact, tell
        self._own: Any = None
        self._reference: Rows | None = None

    def start(self, samples: Rows) -> Any:
        """Hand over a batch."""
        if self._own is None:
            with closing(self._exact()) as exact:
                self._reference = exact.finish(exact.start(samples))
            del exact
            self._own = self._make()
        return self._own.start(samples)

    def finish(self, ticket: Any) -> Rows:
        """Its rows."""
        rows: Rows = self._own.finish(ticket)
        if self._reference is not None:
            with np.errstate(all="ignore"):
                size = max(float(np.linalg.norm(self._reference)), 1e-12)
                error = float(np.linalg.norm(rows - self._reference) / size)
            self._reference = None
            if np.isfinite(error):
                self._tell(error)
        return rows

    def close(self) -> None:
        """End the engine, if there was a batch."""
        if self._own is not None:
            self._own.close()


def feature_shape(model: Model) -> tuple[int, ...]:
    """The shape of a row, found without weights or memory."""
    import torch

    with torch.device("meta"):
        network, facts = replace(model, weights=None).build()
        shape, dtype = model.example(facts)
        rows = torch.empty((1, *shape[1:]), dtype=torch.uint8 if dtype == np.uint8 else torch.float32)
        with torch.inference_mode():
            return model.row_shape(network, whole_network(network, facts), rows)


def whole_network(network: Any, facts: Mapping[str, Any]) -> Any:
    """The network on rows as they come: (B, *S) -> (B, *F) float32."""
    import torch

    from extract.networks import FromRows

    transform, own = facts["transform"], network.input
    spec = {key: tuple(transform.get(key) or getattr(own, key)) for key in ("mean", "std")}

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.trunk = FromRows(own.reads, **spec, clips=own.frames > 1), network.trunk

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.trunk(self.rows(rows))
            return features.float()

    return Whole().eval()


class _OpenVino:
    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        from extract.openvino_core import CORE

        options = {
            # OpenVINO's own default may be bf16; a quantised graph runs in int8, and the rest of it in fp32.
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "int8": "f32"}[precision],
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
        }
        compiled = CORE.compile_model(CORE.read_model(folder / "model.xml"), "CPU", options)
        _let_go(folder / "model.bin")
        self._requests = deque(compiled.create_infer_request() for _ in range(ON_THEIR_WAY))

    def start(self, samples: Rows) -> tuple[Any, int]:
        request = self._requests.popleft()
        data = request.get_input_tensor().data
        data[: len(samples)] = samples
        data[len(samples) :] = 0
        request.start_async()
        return request, len(samples)

    def finish(self, ticket: tuple[Any, int]) -> Rows:
        request, n = ticket
        request.wait()
        self._requests.append(request)
        rows: Rows = request.get_output_tensor().data[:n].copy()
        return rows

    def close(self) -> None:
        for request in self._requests:
            request.cancel()
        self._requests.clear()


def _let_go(path: Path) -> None:
    """Give back the memory of a mapped file: OpenVINO keeps the weights mapped beside its own copy, and should it look
    at them again they are read again."""
    if sys.platform != "linux":
        return
    libc, name = ctypes.CDLL(None), str(path.resolve())
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(name):
            first, last = (int(part, 16) for part in line.split()[0].split("-"))
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), 4)  # MADV_DONTNEED


class _Torch:
    """On CUDA the network is compiled for its one shape, and batches travel from and to pinned memory."""

    def __init__(self, model: Model, facts: Mapping[str, Any], precision: str, threads: int) -> None:
        import torch

        from extract.networks.bf16 import autocast

        torch.set_num_threads(threads)
        self._device = torch.device(model.config.device)
        cuda = self._device.type == "cuda"
        if cuda and not torch.cuda.is_available():
            fix = "set `device: cpu`, or run elsewhere"
            raise UserError("no CUDA device here", where=model.config.network.name, fix=fix)
        torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32
        shape, dtype = model.example(facts)
        network, _ = model.build()
        layout = torch.channels_last_3d if network.input.frames > 1 else torch.channels_last
        whole = whole_network(network, facts).to(self._device, memory_format=layout)
        self._run: Any = torch.compile(whole) if cuda else whole
        self._autocast: Any = lambda: autocast(self._device, precision)
        kind = torch.uint8 if dtype == np.uint8 else torch.float32
        self._inputs = deque(torch.zeros(shape, dtype=kind, pin_memory=cuda) for _ in range(ON_THEIR_WAY))

    def start(self, samples: Rows) -> tuple[Any, Any, int]:
        import torch

        batch = self._inputs.popleft()
        batch.numpy()[: len(samples)] = samples
        batch.numpy()[len(samples) :] = 0
        with torch.inference_mode(), self._autocast():
            features = self._run(batch.to(self._device, non_blocking=True))
        return batch, features, len(samples)

    def finish(self, ticket: tuple[Any, Any, int]) -> Rows:
        batch, features, n = ticket
        rows: Rows = features[:n].cpu().numpy()
        self._inputs.append(batch)
        return rows

    def close(self) -> None:
        self._inputs.clear()
