"""Graphs as ONNX files and OpenVINO IR, with free numbers of videos and rows, and the same graphs run again.

OpenVINO's IR is converted from the ONNX graph, so that both say the same.

    write(HeadGraph(head), inputs, Path("head.onnx"), names, axes)      # or Path("head.xml")
    logits = runner(Path("head.onnx"))({"rgb": rows, "rgb_mask": mask})
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from features.atomic import make_folder, write_bytes, writing
from features.errors import FramepoolError

Array = npt.NDArray[Any]
Axes = Mapping[int, str]  # which axis of an input is free, and what it counts
SUFFIX: Final = {"onnx": ".onnx", "openvino": ".xml"}
_INLINE_BYTES: Final = 1 << 30  # protobuf ends at 2 GiB


def write(
    graph: nn.Module, example: Sequence[Tensor], path: Path, names: Sequence[str], axes: Sequence[Axes], output: str
) -> None:
    """`graph` at `path`, ``.onnx`` or ``.xml``. Axes of one name are of one length. Raises `FramepoolError` where an
    axis came out fixed, or the graph would be larger than a file of ONNX can be."""
    data = _onnx(graph, example, names, axes, output, path)
    make_folder(path.parent)
    if path.suffix == ".onnx":
        write_bytes(path, data)
        return
    import openvino

    from extract.openvino_core import save

    with writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        place = Path(folder) / "graph.onnx"
        place.write_bytes(data)
        model = openvino.convert_model(place)
        for port, name in zip(model.inputs, names, strict=True):
            port.get_tensor().set_names({name})
        save(model, Path(folder) / path.name)
        for suffix in (".bin", ".xml"):  # the weights first, so that a graph is there only with them
            write_bytes(path.with_suffix(suffix), (Path(folder) / path.name).with_suffix(suffix).read_bytes())


def runner(path: Path, threads: int = 0) -> Callable[[Mapping[str, Array]], Array]:
    """The graph of a file as a function of named arrays, in fp32 on the CPU; `threads` 0 is the runtime's choice."""
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def onnx(inputs: Mapping[str, Array]) -> Array:
            (found,) = session.run(None, dict(inputs))
            return np.asarray(found)

        return onnx
    from extract.openvino_core import CORE

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = CORE.compile_model(path, "CPU", settings)
    return lambda inputs: np.array(compiled(dict(inputs))[0])


def _onnx(
    graph: nn.Module, example: Sequence[Tensor], names: Sequence[str], axes: Sequence[Axes], output: str, path: Path
) -> bytes:
    size = sum(p.nbytes for p in (*graph.parameters(), *graph.buffers()))
    if size > _INLINE_BYTES:
        fix = "export a smaller network"
        raise FramepoolError(
            "graph too large for one file", where=path, expected=f"{_INLINE_BYTES} bytes", got=size, fix=fix
        )
    # torch 2.14 decomposes an LSTM as its last export did, to the lengths of that one, unless it forgets it
    torch.ops.aten.lstm.input._dispatch_cache.clear()
    dims = {name: torch.export.Dim(name) for of_input in axes for name in of_input.values()}
    shapes = tuple({axis: dims[name] for axis, name in of_input.items()} for of_input in axes)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.eval(),
            tuple(example),
            dynamo=True,
            verbose=False,
            input_names=list(names),
            output_names=[output],
            dynamic_shapes=(shapes,) if len(example) > 1 else shapes,
        )
    if program is None:
        raise FramepoolError("graph was not exported", where=path)
    for given, of_input in zip(program.model.graph.inputs, axes, strict=True):
        fixed = [name for axis, name in of_input.items() if given.shape is None or isinstance(given.shape[axis], int)]
        if fixed:
            raise FramepoolError("an axis of the graph came out fixed", where=path, expected=f"free {fixed[0]}")
    data: bytes = program.model_proto.SerializeToString()
    return data


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter tells on several roads how it gets on; its errors still come as exceptions."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        import contextlib

        try:
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
        finally:
            logging.disable(level)
