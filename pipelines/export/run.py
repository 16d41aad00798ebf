"""A run into a folder of graphs: what there is to export, how each graph is checked, and `export.json` beside them.

    head.onnx         rows and masks -> logits
    <extractor>.onnx  samples -> features, of each network that the head's rows come from
    clip.onnx         frames of a video -> logits, where the head reads pictures alone
    export.json       classes, inputs, how a video becomes them, what was checked and how far it was off

Each graph is run on made-up inputs of other sizes than it was traced with, and where the videos and the stores are
still there on real ones, beside the run itself.

    report = export_run(of_run(folder), Path("exported"), "onnx", videos=24)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from extract.config import Networked
from extract.stage import Stage
from features.atomic import remove, write_json
from features.errors import FramepoolError, UserError
from pipelines.export.graphs import Clip, HeadGraph, NetworkGraph, frames_a_row, pictures, window_of
from pipelines.export.real import real_clips, real_features, real_rows
from pipelines.export.write import SUFFIX, Array, Axes, runner, write
from pipelines.of_run import OfRun

REPORT: Final = "export.json"
LOGITS: Final = 1e-4  # of the largest logit, or of 1
FEATURES: Final = 1e-3  # L2, relative
_SIDES: Final = ((120, 160), (180, 100))  # of made-up frames
Say = Callable[[str], None]


@dataclass(frozen=True)
class Graph:
    """One file: the module, its inputs with their free axes, and made-up inputs for sizes (videos, rows, which)."""

    name: str
    module: nn.Module
    inputs: Sequence[str]
    axes: Sequence[Axes]
    output: str
    example: Callable[[int, int, int], list[Tensor]]

    def check(self, run: Callable[[Mapping[str, Array]], Array]) -> float:
        """The largest error on made-up inputs, relative to what the module gives."""
        errors = []
        for videos, rows, which in ((2, 5, 0), (1, 1, 1), (3, 23, 1)):
            inputs = self.example(videos, rows, which)
            with torch.inference_mode():
                expected = self.module(*inputs).numpy()
            got = run(dict(zip(self.inputs, (i.numpy() for i in inputs), strict=True)))
            errors.append(apart(got, expected))
        return max(errors)


def apart(got: Array, expected: Array) -> float:
    """The largest difference, relative to the largest number, or to 1."""
    return float(np.abs(got - expected).max(initial=0) / max(1.0, float(np.abs(expected).max(initial=0))))


def graphs_of(run: OfRun) -> list[Graph]:
    """The head, the networks that its rows come from, and the whole where it reads pictures alone."""
    found = [_head(run)]
    found += [_network(m, s) for m, s in run.sources.items() if isinstance(s.config, Networked)]
    try:
        pictures(run)
    except UserError:
        return found
    if run.config.clips is not None:  # type: ignore[union-attr]  # of which a graph of the whole knows nothing
        return found
    return [*found, _clip(run)]


def export_run(run: OfRun, folder: Path, form: str, *, videos: int, say: Say = print) -> dict[str, Any]:
    """Write and check all graphs of `run` as `form` ("onnx" or "openvino"); returns what export.json holds.

    `videos` of the run's test videos are checked for real. Raises `FramepoolError` where a graph is further off than it
    may be.
    """
    files: dict[str, Any] = {}
    clips = real_clips(run, videos)
    remove(folder / REPORT)  # it vouches for the graphs that now go
    for graph in graphs_of(run):
        path = folder / f"{graph.name}{SUFFIX[form]}"
        write(graph.module, graph.example(2, 5, 0), path, graph.inputs, graph.axes, graph.output)
        exported = runner(path)
        checked = {"made_up": graph.check(exported)}
        # of a clip a feature may fall to the other side of a rounding
        _refuse(path, "made-up inputs", checked["made_up"], LOGITS if graph.name == "head" else FEATURES)
        checked.update(_real(run, graph, exported, clips, path))
        files[graph.name] = {
            "file": path.name,
            "bytes": sum(p.stat().st_size for p in (path, path.with_suffix(".bin")) if p.is_file()),
            "inputs": {n: {str(k): v for k, v in a.items()} for n, a in zip(graph.inputs, graph.axes, strict=True)},
            "output": graph.output,
            "checked": checked,
        }
        shown = ", ".join(f"{key} {value:.3g}" for key, value in checked.items())
        say(f"{path}: {files[graph.name]['bytes'] / 1e6:.1f} MB; {shown}")
    report = {
        "run": str(run.folder),
        "digest": run.record["digest"],
        "classes": list(run.classes),
        "several_labels": run.several,
        "modalities": {m: _told(run, m) for m in run.sources},
        "graphs": files,
        "outside": "finding and decoding a video, turning it upright, YUV to RGB, choosing frames; the mean over the "
        "windows or clips of a video; softmax of logits",
    }
    write_json(folder / REPORT, report)
    return report


def _real(
    run: OfRun, graph: Graph, exported: Callable[[Mapping[str, Array]], Array], clips: Any, path: Path
) -> dict[str, float]:
    """What came of real videos; nothing where there are none, or none of their rows."""
    if graph.name == "head":
        found = real_rows(run, clips)
        if found is None:
            return {}
        inputs, expected = found
        error = apart(exported(inputs), expected)
        _refuse(path, f"the rows of {len(expected)} videos", error, LOGITS)
        return {"videos": len(expected), "rows_of_videos": error}
    if graph.name == "clip":
        pairs = [(exported({"frames": frames})[0], logits) for frames, logits in clips.frames()]
        if not pairs:
            return {}
        got, want = (np.stack(part) for part in zip(*pairs, strict=True))
        agree = (got.argmax(axis=1) == want.argmax(axis=1)).mean()
        return {"videos": len(pairs), "frames_of_videos": apart(got, want), "same_label": float(agree)}
    errors = [
        float(np.linalg.norm(exported({"samples": samples}) - rows)) / max(1e-12, float(np.linalg.norm(rows)))
        for samples, rows in real_features(graph, clips)
    ]
    if not errors:
        return {}
    _refuse(path, f"the samples of {len(errors)} videos", max(errors), FEATURES)
    return {"videos": len(errors), "samples_of_videos": max(errors)}


def _refuse(path: Path, what: str, error: float, most: float) -> None:
    if not error <= most:
        for suffix in (path.suffix, ".bin"):  # nobody is to take it for one that was checked
            remove(path.with_suffix(suffix))
        raise FramepoolError("graph gives other numbers", where=f"{path}: {what}", expected=f"<= {most:g}", got=error)


def _head(run: OfRun) -> Graph:
    head = run.head
    names = list(head.shapes)
    in_step = run.config.align is not None  # type: ignore[union-attr]
    rows = {m: "rows" if in_step or len(names) == 1 else f"{m}_rows" for m in names}
    window = window_of(run)
    axes: list[Axes] = [{0: "videos", **({1: rows[m]} if window is None else {})} for m in (*names, *names)]

    def example(videos: int, length: int, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        found, masks = [], []
        for number, m in enumerate(names):
            own = window or (length if in_step else length + number)
            counts = torch.randint(own + 1, (videos, 1), generator=generator)
            masks.append(torch.arange(own) < counts)
            shape = (videos, own, *head.shapes[m])
            whole = run.sources[m].dtype == np.uint8
            made = torch.randint(256, shape, dtype=torch.uint8, generator=generator) if whole else None
            found.append(torch.randn(shape, generator=generator) if made is None else made)
        return [*found, *masks]

    return Graph("head", HeadGraph(head), [*names, *(f"{m}_mask" for m in names)], axes, "logits", example)


def _network(name: str, source: Stage) -> Graph:
    model = source.model
    if model is None:
        raise TypeError(f"{name} has no network")
    shape, dtype = model.example({"transform": source.facts["transform"]})

    def example(videos: int, length: int, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        size = (videos + (length > 1), *shape[1:])
        if dtype == np.uint8:
            return [torch.randint(256, size, dtype=torch.uint8, generator=generator)]
        return [torch.randn(size, generator=generator)]

    return Graph(name, NetworkGraph(source), ["samples"], [{0: "samples"}], "features", example)


def _clip(run: OfRun) -> Graph:
    modality, _, _ = pictures(run)
    frames = frames_a_row(run.sources[modality])
    snippet = (frames,) if frames > 1 else ()
    window, place = window_of(run), len(snippet)
    free = {} if window else {1: "rows"}
    axes = {0: "videos", **free, 2 + place: "height", 3 + place: "width"}

    def example(videos: int, length: int, which: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(which)
        size = (videos, window or min(length, 7), *snippet, *_SIDES[which], 3)
        return [torch.randint(256, size, dtype=torch.uint8, generator=generator)]

    return Graph("clip", Clip(run), ["frames"], [axes], "logits", example)


def _told(run: OfRun, modality: str) -> dict[str, Any]:
    """How rows of a modality come about, for whoever makes them elsewhere."""
    source = run.sources[modality]
    config: Any = run.config
    return {
        "row_shape": list(run.head.shapes[modality]),
        "rows_of_a_test": config.rows(modality).test,
        "rows_of_a_window": window_of(run),
        "align": config.align,
        "store": run.record["stores"][modality]["store"],
        "extractor": source.config.model_dump(mode="json"),
        "facts": source.lasting_facts,
        "source": None if source.before is None else source.before.config.model_dump(mode="json"),
    }
