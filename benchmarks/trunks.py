"""KFT-3D beside plain I3D, clips a second; VTN on a stream; and I3D beside v-iashin/video_features', whole processes.

    python -m benchmarks.trunks [--frames 32] [--side 224] [--only models streaming peer]

The first part runs both networks from normalised clips to logits of 101 classes, in OpenVINO at fp32 and bf16 and in
eager torch, in turns within one process. The second is `benchmarks.streaming`. The third is `benchmarks.peer --only
i3d`, clips of 64 frames, the same clips and weights on both sides; that module says how the peer is had. Weights are
random: speed does not follow them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from benchmarks.extraction import CORES, processor

CLASSES = 101


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--side", type=int, default=224, help="pixels; below 160, without KFT's average pooling")
    parser.add_argument("--seconds", type=float, default=20, help="that each network should run, about")
    parts = ["models", "streaming", "peer"]
    parser.add_argument("--only", nargs="+", default=parts, choices=parts)
    args, rest = parser.parse_known_args()
    if "models" in args.only:
        models(args)
    if "streaming" in args.only:
        subprocess.run([sys.executable, "-m", "benchmarks.streaming", "--seconds", str(args.seconds)], check=True)
    if "peer" in args.only:
        sys.exit(
            subprocess.run([sys.executable, "-m", "benchmarks.peer", "--only", "i3d", *rest], check=False).returncode
        )


def models(args: argparse.Namespace) -> None:
    """Prints a line a runtime and precision."""
    import torch

    torch.set_num_threads(CORES)
    clip = torch.randn(1, 3, args.frames, args.side, args.side)
    networks = {"I3D": plain().eval(), "KFT-3D": fusion(args.frames, args.side).eval()}
    print(f"{CORES} cores, {processor()}; clips of {args.frames} x {args.side} x {args.side} a second", flush=True)
    for way in ("openvino fp32", "openvino bf16", "torch fp32"):
        runs = {name: prepared(way, network, clip) for name, network in networks.items()}
        rates = in_turns(runs, args.seconds)
        ratio = rates["KFT-3D"] / rates["I3D"]
        print(f"{way:<16}" + "".join(f"{name} {rate:.3f}   " for name, rate in rates.items()) + f"x {ratio:.2f}")


def plain() -> Any:
    """I3D, from clips to logits."""
    from extract.networks import build

    return build("i3d", library="framepool", num_classes=CLASSES)


def fusion(frames: int, side_px: int) -> Any:
    """KFT-3D behind its trunk, from clips to logits."""
    import torch

    import heads

    pool_px = 7 if side_px >= 160 else 1
    head: Any = heads.build(
        "kft",
        {"clips": (frames, side_px, side_px, 3)},
        CLASSES,
        network={"options": {"pool_px": pool_px}},
        crop_px=side_px,
    )

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head.scores(self.head.trunk.network.trunk(clips))
            return logits

    return Whole()


def prepared(way: str, network: Any, clip: Any) -> Callable[[], Any]:
    """One clip through `network`."""
    import torch

    if way.startswith("torch"):
        laid = clip.contiguous(memory_format=torch.channels_last_3d)
        network.to(memory_format=torch.channels_last_3d)

        def eager() -> Any:
            with torch.inference_mode():
                return network(laid)

        return eager
    import openvino

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, clip, check_trace=False)  # type: ignore[no-untyped-call]
    converted = openvino.convert_model(traced, input=[(list(clip.shape), openvino.Type.f32)])
    hint = {"fp32": "f32", "bf16": "bf16"}[way.split()[1]]
    options = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": CORES}
    compiled, data = openvino.Core().compile_model(converted, "CPU", options), clip.numpy()
    return lambda: compiled(data)


def in_turns(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Clips a second of each, one after the other again and again, so that a neighbour on the machine slows all."""
    spent, count = dict.fromkeys(runs, 0.0), 0
    for run in runs.values():
        run()
    while count < 3 or sum(spent.values()) < seconds * len(runs):
        for name, run in runs.items():
            start = time.monotonic()
            run()
            spent[name] += time.monotonic() - start
        count += 1
    return {name: count / total for name, total in spent.items()}


if __name__ == "__main__":
    main()
