"""The same clips, network and weights through v-iashin/video_features, its own way, and through us: whole processes.

    git clone https://github.com/v-iashin/video_features ../video_features
    pip install --target ../video_features_packages omegaconf resampy
    python -m benchmarks.peer [--peer ../video_features] [--only resnet50] [--precisions fp32 bf16]

Rows a second of whole processes, start-up included, on clips repeated until the peer works for at least a minute, and
the peak memory of each process tree (proportional set size). The peer runs as its README says (`main.py`, batch of one
video or one frame, features saved as .npy); only what a release since then took away is put back: torchvision's
`read_video`, by PyAV as it was. Its weights are looked for where torch hub keeps them, so random ones lie there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.extraction import CORES, EXTRACTORS, SHARED, command, found_clips, measured, processor, random_weights
from benchmarks.extraction import sounds as has_sound

PEER = Path("../video_features")
# our extractor -> the peer's, the hub file that its weights are looked for in, further arguments
KNOWN: dict[str, tuple[str, str, list[str]]] = {
    "resnet50": ("resnet", "resnet50-0676ba61.pth", ["model_name=resnet50", "batch_size=1"]),
    "r2plus1d_18": ("r21d", "r2plus1d_18-91a641e6.pth", []),
    "vggish": ("vggish", "vggish-10086976.pth", []),
    "i3d": ("i3d", "i3d_rgb.pt", ["streams=rgb"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=PEER, help="a clone (default: %(default)s)")
    parser.add_argument("--packages", type=Path, default=Path("../video_features_packages"))
    parser.add_argument("--videos", type=Path, default=SHARED)
    parser.add_argument("--only", nargs="+", default=list(KNOWN), choices=list(KNOWN))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--seconds", type=float, default=60, help="of the peer's work, at least")
    parser.add_argument("--run", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run_peer(args.run)
        return
    if not (args.peer / "main.py").is_file():
        told = Path(__file__).with_name("README.md").read_text().split("\n## ")[1]
        raise SystemExit(f"no clone of video_features at {args.peer}; not measured now, but before:\n\n{told}")
    print(f"{CORES} cores, {processor()}; whole processes, rows a second and peak MB", flush=True)
    with tempfile.TemporaryDirectory(dir=Path("work") if Path("work").is_dir() else None) as folder:
        shutil.copytree(args.peer, Path(folder) / "peer", ignore=shutil.ignore_patterns(".git", "*.pt", "*.mp4"))
        for name in args.only:
            compare(args, name, Path(folder).resolve())


def compare(args: argparse.Namespace, name: str, folder: Path) -> None:
    weights = random_weights(folder, name)
    put_weights(name, weights, folder)
    clips = [str(Path(c).resolve()) for c in found_clips(args.videos)]
    if name == "vggish":
        clips = as_wav([c for c in clips if has_sound(c)], folder)
    times, rows = 1, 0
    while True:
        chosen = linked(clips, times, folder)
        rows, seconds, memory = peer(args, name, chosen, folder)
        if seconds >= args.seconds:
            break
        times = int(np.ceil(1.15 * args.seconds / seconds * times))
    print(
        f"{name:<14}video_features fp32: {rows} rows in {seconds:.1f} s, {rows / seconds:.2f}/s, {memory:.0f} MB",
        flush=True,
    )
    for precision in args.precisions:
        spec = {"what": "whole", "name": name, "weights": weights, "precision": precision, "folder": str(folder)}
        measured(command({**spec, "videos": chosen[:2]}))  # converts once, as an archive does
        text, ours, mb = measured(command({**spec, "videos": chosen}))
        count = json.loads(text.splitlines()[-1])["rows"]
        print(
            f"{'':<14}framepool {precision}: {count} rows in {ours:.1f} s, {count / ours:.2f}/s, {mb:.0f} MB: "
            f"speed x {(count / ours) / (rows / seconds):.2f}, memory x {mb / memory:.2f}",
            flush=True,
        )


def peer(args: argparse.Namespace, name: str, clips: list[str], folder: Path) -> tuple[int, float, float]:
    kind, _, options = KNOWN[name]
    out = folder / f"peer-{name}-{len(clips)}"
    listed = folder / "clips.txt"
    listed.write_text("\n".join(clips))
    packages = os.pathsep.join(str(p.resolve()) for p in (args.packages, Path()))
    environment = {**os.environ, "PYTHONPATH": packages, "TORCH_HOME": str(folder / "peer/models/vggish")}
    words = [f"feature_type={kind}", "device=cpu", "on_extraction=save_numpy", f"output_path={out}"]
    words += [f"tmp_path={folder / 'tmp'}", f"file_with_video_paths={listed}", *options]
    run = [sys.executable, "-m", "benchmarks.peer", "--run", *words]
    _, seconds, memory = measured(run, cwd=folder / "peer", env=environment)
    name = "rgb" if kind == "i3d" else kind  # its I3D names files after streams
    return sum(len(np.load(p)) for p in out.rglob(f"*_{name}.npy")), seconds, memory


def run_peer(words: list[str]) -> None:
    """Its main.py, with what newer libraries lack."""
    import torchvision.io

    if not hasattr(torchvision.io, "video"):
        import types

        video = types.ModuleType("torchvision.io.video")
        video.read_video = read_video  # type: ignore[attr-defined]
        sys.modules["torchvision.io.video"] = video
    sys.argv = ["main.py", *words]
    sys.path.insert(0, str(Path.cwd()))
    runpy.run_path("main.py", run_name="__main__")


def read_video(path: str, pts_unit: str = "sec") -> tuple[Any, Any, dict[str, Any]]:
    """All frames of a video (F, H, W, 3), as torchvision read them."""
    import av
    import torch

    with av.open(path) as container:
        frames = [frame.to_rgb().to_ndarray() for frame in container.decode(video=0)]
    return torch.as_tensor(np.stack(frames)), torch.empty(0), {}


def put_weights(name: str, weights: str, folder: Path) -> None:
    """The same random weights where torch hub would have put the published ones."""
    import torch

    from extract.networks import build

    kind, file, _ = KNOWN[name]
    network = build(name, library=EXTRACTORS[name]["network"]["library"], weights=Path(weights))
    state = {key.removeprefix("trunk."): value for key, value in network.state_dict().items()}
    state = {key.replace("classifier.", "fc."): value for key, value in state.items()}
    if kind == "i3d":
        torch.save({as_i3d(key): value.reshape(400, 1024, 1, 1, 1) if key == "fc.weight" else value
                    for key, value in state.items()}, folder / "peer/models/i3d/checkpoints" / file)  # fmt: skip
        return
    place = folder / "peer/models/vggish/hub/checkpoints"  # its VGGish looks nowhere else
    place.mkdir(parents=True, exist_ok=True)
    torch.save(state, place / file)
    if kind == "vggish":
        pca = {"pca_eigen_vectors": torch.eye(128), "pca_means": torch.zeros(128, 1)}
        torch.save({k: v.numpy() for k, v in pca.items()}, place / "vggish_pca_params-970ea276.pth")


def as_i3d(key: str) -> str:
    """Its key of one of our I3D's."""
    key = key.replace("fc.", "conv3d_0c_1x1.conv3d.").replace("Conv3d_", "conv3d_").replace("Mixed_", "mixed_")
    for ours, theirs in (("b0", "branch_0"), ("b3b", "branch_3.1"), ("bn", "batch3d")):
        key = key.replace(f".{ours}.", f".{theirs}.")
    return re.sub(r"\.b([12])([ab])\.", lambda m: f".branch_{m[1]}.{'ab'.index(m[2])}.", key)


def linked(clips: list[str], times: int, folder: Path) -> list[str]:
    """Each clip `times` times under a name of its own: the peer refuses equal names."""
    place = folder / f"linked-{times}"
    place.mkdir(exist_ok=True)
    found = []
    for turn in range(times):
        for number, clip in enumerate(clips):
            link = place / f"{turn}-{number}{Path(clip).suffix}"
            if not link.exists():
                link.symlink_to(clip)
            found.append(str(link))
    return found


def as_wav(clips: list[str], folder: Path) -> list[str]:
    """The sound of clips as the files that both read."""
    import soundfile

    from extract.audio import RATE_HZ, Heard, decode_audio
    from extract.config import Limits

    found = []
    for number, clip in enumerate(clips):
        sound = np.concatenate(list(decode_audio(Path(clip), Limits(), Heard())))
        path = folder / f"{number}.wav"
        soundfile.write(path, sound, RATE_HZ, subtype="PCM_16")
        found.append(str(path))
    return found


if __name__ == "__main__":
    main()
