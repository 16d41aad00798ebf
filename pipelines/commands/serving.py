"""export, stream: a trained head at work elsewhere, and on what is happening now.

framepool export work/ucf6/runs/RUN/seed0 --format openvino && framepool stream work/ucf6/runs/RUN/seed0 clip.mp4
"""

from __future__ import annotations

from argparse import Namespace

from pipelines.of_run import of_run


def export(args: Namespace) -> None:
    """Write the graphs of a run, check them, and say how far they were off."""
    from pipelines.export.run import export_run

    export_run(of_run(args.folder), args.out or args.folder / args.format, args.format, videos=args.check)
