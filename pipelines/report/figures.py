"""Figures as SVG text that takes its ink from the page: axes and letters are ``currentColor``, data has its colours.

Drawn with matplotlib's SVG writer and no screen; the same numbers give the same text. Names are drawn as they are: no
mathematics in them, control characters escaped.

    learning_curves(head), confusion(head), per_class(head), heads(all_of_them)       # str | None
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_rgba
from matplotlib.figure import Figure

from features.errors import printable
from heads.results import Look
from pipelines.report.runs import Head, mean
from pipelines.report.tables import Table

INK: Final = "#0a0b0c"  # stands for currentColor until the text is written
BLUE, ORANGE, GREY = "#3f7fc1", "#d9772b", "#8a8f98"  # read well on white and on near-black
LABELLED: Final = 32  # classes that still have their names beside a matrix
BARS: Final = 60  # classes that have a bar each; of more, the best and the worst are shown
ENDS: Final = 20
UNITS: Final = 16  # of an attention cluster, shown
STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}


def learning_curves(head: Head) -> str | None:
    """Loss and score over epochs: every run thin, their mean thick. None where nothing was learnt in epochs."""
    histories = [run.history for run in head.runs if run.history]
    if not histories:
        return None
    columns = set().union(*histories)
    score = next((name for name in ("top1", "map") if f"test_{name}" in columns), "top1")
    with _drawing(f"learning {head.name}"):
        figure = Figure(figsize=(7.2, 2.6))
        for axes, what, title in zip(figure.subplots(1, 2), ("loss", score), ("Loss", _title(score)), strict=True):
            for side, colour, style in (("train", GREY, "--"), ("held_out", ORANGE, "-"), ("test", BLUE, "-")):
                _curves(axes, [h[f"{side}_{what}"] for h in histories if f"{side}_{what}" in h], colour, style, side)
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.grid(axis="y")
            axes.margins(x=0.01)
            axes.xaxis.get_major_locator().set_params(integer=True)
            if what != "loss":
                axes.set_ylim(0, 1.02)
                axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f}")
            if axes.lines:
                axes.legend(loc="best", handlelength=1.6)
        return _svg(figure)


def by_epoch(table: Table) -> str | None:
    """Test scores over epochs: a panel a column of the table, a line a row, the later the darker (Attention Clusters,
    CVPR 2018, Fig. 4)."""
    metric = next(iter(table.cells.values())).metric
    lines = {
        place: [mean(values) for values in zip_longest(*(run.history.get(f"test_{metric}", []) for run in head.runs))]
        for place, cell in table.cells.items()
        if (head := cell.head) is not None
    }
    columns = [column for column in table.sweep.columns if any(lines.get((column, row)) for row in table.sweep.rows)]
    if not columns or max(map(len, lines.values())) < 2:
        return None
    across = min(3, len(columns))
    with _drawing(f"by epoch {table.name}"):
        figure = Figure(figsize=(7.2, 0.3 + 2.3 * -(-len(columns) // across)))
        grid = figure.subplots(-(-len(columns) // across), across, sharex=True, sharey=True, squeeze=False).ravel()
        colours = LinearSegmentedColormap.from_list("rows", [ORANGE, GREY, BLUE])
        for axes, column in zip_longest(grid, columns):
            if column is None:
                axes.set_visible(False)
                continue
            for k, row in enumerate(table.sweep.rows):
                epochs, values = _points(lines.get((column, row), []))
                colour = colours(k / max(1, len(table.sweep.rows) - 1))
                marker = "o" if len(epochs) == 1 else ""
                axes.plot(epochs, values, color=colour, linewidth=1.2, marker=marker, markersize=3, label=short(row))
            axes.set_title(short(column or table.name))
            axes.grid(axis="y")
            axes.margins(x=0.01)
            axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f}")
            axes.xaxis.get_major_locator().set_params(integer=True)
        bottom, top = grid[0].get_ylim()  # shared; ten points at least, so that chance does not look like much
        grid[0].set_ylim(max(0, min(bottom, top - 0.1)), min(1.02, top))
        for axes in grid[max(0, len(columns) - across) : len(columns)]:
            axes.set_xlabel("epoch")
            axes.tick_params(labelbottom=True)
        handles = grid[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside right center", handlelength=1.2)
        return _svg(figure)


def attention(look: Look, modality: str, pictures: Sequence[npt.NDArray[Any] | None]) -> str:
    """Frames of a video above the weights that units give them, the most decided units first by where they look
    (Attention Clusters, CVPR 2018, Fig. 5)."""
    weights = look.weights[modality]  # (N,L)
    spread = -(weights * np.log(np.maximum(weights, 1e-12))).sum(axis=1)
    units = np.sort(np.argsort(spread, kind="stable")[:UNITS])
    units = units[np.argsort(weights[units].argmax(axis=1), kind="stable")]
    count = weights.shape[1]
    with _drawing(f"attention {look.id} {modality}"):
        wide = 6.6 / max(count, 8)
        figure = Figure(figsize=(7.2, wide + 0.15 * len(units) + 0.55))
        figure.set_layout_engine("none")
        high = figure.get_figheight()
        left, right, top = 0.07, 0.07 + 0.917 * min(1.0, count / 8), 1 - 0.22 / high
        above = figure.add_axes((left, top - wide / high, right - left, wide / high))
        below = figure.add_axes((left, 0.28 / high, right - left, 0.15 * len(units) / high))
        for k, picture in enumerate(pictures):
            if picture is not None:
                above.imshow(picture, extent=(k, k + 0.96, 0, 1), interpolation="bilinear", aspect="auto")
        above.set(xlim=(0, count), ylim=(0, 1))
        above.axis("off")
        above.set_title(f"{short(look.label, 40)}: {short(look.id, 50)}, {modality}", pad=4)
        shown = weights[units] / weights[units].max(axis=1, keepdims=True)
        below.imshow(shown, cmap=_fade(BLUE), vmin=0, vmax=1, extent=(0, count, len(units), 0), aspect="auto")
        below.set_yticks([0.5, len(units) - 0.5], [f"unit {units[0] + 1}", f"{units[-1] + 1}"], fontsize=7)
        times_s = look.time_us[modality] / 1e6
        ticks = sorted({0, count // 2, count - 1})
        below.set_xticks([k + 0.48 for k in ticks], [f"{times_s[k]:.1f} s" for k in ticks], fontsize=7)
        below.tick_params(length=0)
        return _svg(figure)


def confusion(head: Head) -> str | None:
    """Rows true, columns predicted, each row scaled to its sum. None where videos have several labels, or there are
    none."""
    counts = head.confusion
    if counts is None or not counts.any():
        return None
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    names, n = [short(name) for name in head.classes], len(counts)
    side = min(7.2, 2.6 + 0.17 * min(n, LABELLED))
    with _drawing(f"confusion {head.name}"):
        figure = Figure(figsize=(side, side))
        axes = figure.subplots()
        axes.imshow(shares, cmap=_fade(BLUE), vmin=0, vmax=1, interpolation="none")
        axes.spines[:].set_visible(True)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if n <= LABELLED:
            axes.set_xticks(range(n), names, rotation=90)
            axes.set_yticks(range(n), names)
            axes.tick_params(length=0, labelsize=7.5 if n > 12 else 8.5)
        if n <= 12:
            for row, column in np.argwhere(counts):
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8)
        return _svg(figure)


def per_class(head: Head) -> str | None:
    """A bar a class, the best first; of many classes the best and the worst."""
    found = sorted(((value, name) for name, value in head.per_class.items() if value is not None), key=lambda p: -p[0])
    if not found:
        return None
    left_out = len(found) - 2 * ENDS if len(found) > BARS else 0
    shown = [*found[:ENDS], *found[-ENDS:]] if left_out else found
    with _drawing(f"classes {head.name}"):
        figure = Figure(figsize=(7.2, 0.7 + 0.19 * len(shown)))
        axes = figure.subplots()
        at = np.arange(len(shown)) + (np.arange(len(shown)) >= ENDS) * (1.5 if left_out else 0)
        values = np.array([value for value, _ in shown])
        axes.barh(at, values, height=0.66, color=BLUE)
        for y, value in zip(at, values, strict=True):
            axes.text(value + 0.008, y, f"{100 * value:.0f}", va="center", fontsize=7.5)
        if left_out:
            axes.text(0, ENDS + 0.25, f"{left_out} classes between", va="center", style="italic", fontsize=8)
        axes.set_yticks(at, [short(name, 40) for _, name in shown])
        axes.set_xlim(0, 1.04)
        axes.set_ylim(at[-1] + 0.8, -0.8)
        axes.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f}")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        return _svg(figure)


def factors(heads: Sequence[Head], names: Sequence[str], chance: Sequence[float]) -> str | None:
    """For each head how often it is right in each part of the class name, beside what guessing gives. None where
    nothing was tested."""
    if all(head.score(f"factors.{name}") is None for head in heads for name in names):
        return None
    with _drawing("factors"):
        figure = Figure(figsize=(7.2, 0.6 + 0.42 * len(heads)))
        for axes, name, guess in zip(
            figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, chance, strict=True
        ):
            values = [head.score(f"factors.{name}") or 0.0 for head in heads]
            axes.barh(range(len(heads)), values, height=0.56, color=BLUE)
            axes.axvline(guess, color=ORANGE, linewidth=1.2, linestyle=(0, (3, 2)))
            for y, value in enumerate(values):
                covered = value - 0.02 < guess < value + 0.2  # the line would cross the number
                axes.text((guess if covered else value) + 0.03, y, f"{100 * value:.0f}", va="center", fontsize=8)
            axes.set_title(short(name))
            axes.set_xlim(0, 1.18)
            axes.set_xticks([0, 0.5, 1], ["0", "50", "100"])
            axes.set_yticks(range(len(heads)), [short(head.name) for head in heads])
            axes.set_ylim(len(heads) - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        return _svg(figure)


def short(name: str, limit: int = 24) -> str:
    """`name` fit for a label: printable, and cut in its middle where it is long."""
    text = printable(name)
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-(limit - limit // 2 - 1) :]}"


def _curves(axes: Any, lines: Sequence[Sequence[float | None]], colour: str, style: str, label: str) -> None:
    lines = [line for line in lines if any(value is not None for value in line)]
    for line in lines if len(lines) > 1 else ():
        axes.plot(*_points(line), color=colour, alpha=0.22, linewidth=0.8, linestyle=style)
    if lines:
        longest = max(len(line) for line in lines)
        middle = [mean(line[epoch] for line in lines if epoch < len(line)) for epoch in range(longest)]
        epochs, values = _points(middle)
        marker = "o" if (len(epochs) <= 12 and len(epochs) < longest) or longest == 1 else ""  # tested now and then
        axes.plot(
            epochs, values, color=colour, linestyle=style, marker=marker, markersize=3.5, label=label.replace("_", " ")
        )


def _points(values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    """Epochs (from 1) and values, where there is one."""
    found = [(epoch, value) for epoch, value in enumerate(values, 1) if value is not None]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _title(metric: str) -> str:
    return {"top1": "Top-1, %", "map": "Mean average precision, %"}[metric]


def _fade(colour: str) -> ListedColormap:
    """From nothing to `colour`, so that the page shows through where the share is small."""
    ramp = np.tile(to_rgba(colour), (256, 1))
    ramp[:, 3] = np.linspace(0, 1, 256) ** 0.7
    return ListedColormap(ramp)


@contextmanager
def _drawing(name: str) -> Iterator[None]:
    """The style of this module; ids in the SVG come from `name`, so that two figures on one page share none."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # the page's reader has the font
        yield


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
