"""`python -m main.plot RUN...`: learning curves from the logs of any number of runs, grouped over seeds.

Read in this order: a file becomes a `Log` (analysis/log.py), logs become groups, groups become `Curve`s (analysis/curves.py),
curves become a picture (here).
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import math
import sys
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from main.training import interrupt

if __name__ == "__main__":  # what is imported below takes seconds
    interrupt.end_at_once()

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from main import command
from main.amigo import program
from main.analysis.curves import CONFIDENCE, FEWEST, STATISTICS, Curve, Group, default_window, group_logs, make_curve
from main.analysis.log import Declared, Log, NoRows, read_log, runs_in
from main.training import recipe
from torchbeast.core import outputs, run_folder
from torchbeast.core.columns import Column
from torchbeast.core.settings import Parser, UsageError, not_empty, positive_number, whole_number

MOST_BINS = 20_000
MOST_PIXELS = 250_000_000  # a gigabyte while it is drawn

# Five steps of lightness, neighbours far apart, so that a greyscale print still tells them; the line styles tell the rest.
COLOURS = ("#0A2A6B", "#E07B28", "#0080C0", "#74156B", "#D9A514")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (10, 2)))
FORMATS = ("png", "svg", "pdf")
STYLE = ["default", {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "svg.hashsalt": "curves", "legend.frameon": False, "text.parse_math": False,
}]  # fmt: skip


def panels_of(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns that have a panel, by its name: what episodes come to, then what else there is, the last declared first.

    (So a motivation's own stand before those that every run has.)
    """
    shown = [column for column in columns.values() if column.panel]
    outcomes = [column for column in shown if column.join == "episodes"]
    return {column.panel: column for column in (*outcomes, *(c for c in reversed(shown) if c not in outcomes))}


PANELS = panels_of(recipe.columns())
FURTHER = tuple(name for name, column in PANELS.items() if column.join != "episodes")  # drawn without being asked for


# Drawing


def picture(
    panels: Sequence[tuple[Column, Sequence[Curve]]], *, x: str, caption: str, title: str = "", legend: str = "",
    size: tuple[float, float] | None = None,
) -> Figure:  # fmt: skip
    """The curves, one panel below the other, with the legend under them.

    Args:
        panels: what to draw, a column each; the first one is drawn larger, and its curves are named in the legend.
        x: "frames" or "hours".
        caption, title: said above the panels.
        legend: the legend's own title.
        size: width and height, inches; without it as high as the panels and the legend need.
    Raises: UsageError if the size is too small for the texts.
    """
    with matplotlib.style.context(STYLE):
        figure = Figure(size or (7.0, 3.0 + 1.55 * (len(panels) - 1)), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
        FigureCanvasAgg(figure)
        ratios = [2.2] + [1] * (len(panels) - 1)
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        scale, short, unit = _x_unit(x, max(curve.x[-1] for _, curves in panels for curve in curves if len(curve.x)))
        for ax, (column, curves) in zip(axes, panels):
            for i, curve in enumerate(curves):
                _draw(ax, curve, i, scale)
            ax.set_ylabel(column.label)
            ax.margins(x=0.01)
        axes[-1].set_xlabel(unit)
        axes[-1].set_xlim(left=0)
        if panels[0][0] == PANELS["success"]:
            axes[0].set_ylim(-0.03, 1.03)
        figure.align_ylabels(axes)
        words = _texts(figure, axes[0], panels[0][1], (scale, short), caption, title, legend)
        if size is None:
            figure.set_figheight(figure.get_figheight() + _height(figure, words))
        _settle(figure)
    return figure


def _x_unit(x: str, largest: float) -> tuple[float, str, str]:
    """What the horizontal axis is divided by, how that is written after a number, and the axis' label."""
    if x == "hours":
        return 1.0, " h", "hours of training"
    units = ((1e6, "M", "environment frames (millions)"), (1e3, "k", "environment frames (thousands)"))
    return next((unit for unit in units if largest >= unit[0]), (1.0, "", "environment frames"))


def _line(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i % len(LINES)], "linewidth": 1.6}


def _draw(ax, curve: Curve, i: int, scale: float) -> None:
    there = curve.seeds > 0
    x, value = curve.x / scale, curve.value
    style = _line(i)
    colour = style["color"]
    if not there.any():
        return
    ends = [k for k, _ in _ends(curve)]
    # The line is broken where a run ends: what changes there is who is averaged, not how well they do.
    after = [k + 1 for k in ends]
    line_x, line_value = np.insert(x, after, math.nan), np.insert(value, after, math.nan)
    ax.plot(line_x, line_value, **style, marker="o" if there.sum() == 1 else None, markersize=3)
    ax.fill_between(x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    few = (curve.seeds > 1) & (curve.seeds < FEWEST)
    if few.any() and len(curve.runs):
        ax.plot(x, np.where(few, curve.runs, math.nan).T, color=colour, alpha=0.4, linewidth=0.7)
    ax.plot(x[ends], value[ends], "o", color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.8)


def _ends(curve: Curve) -> list[tuple[int, int]]:
    """Bins after which fewer seeds go on, and how many do."""
    return [(k, int(curve.seeds[k + 1])) for k in range(len(curve.x) - 1) if 0 < curve.seeds[k + 1] < curve.seeds[k]]


def _entry(curve: Curve, scale: float, unit: str) -> str:
    """A group's words in the legend: its label, its runs, and from where on there are fewer."""
    most = int(curve.seeds.max(initial=0))
    if not most:
        return f"{curve.label} (no values)"
    ends = [f"{left} beyond {curve.x[k] / scale:.3g}{unit}" for k, left in _ends(curve)]
    return f"{curve.label} ({', '.join([f'{most} run' + 's' * (most > 1), *ends])})"


def _texts(
    figure: Figure, top, curves: Sequence[Curve], x_unit: tuple[float, str], caption: str, title: str, legend: str
) -> list[Artist]:  # fmt: skip
    """Adds legend, caption and title, broken into lines that fit the figure's width."""
    room = figure.get_figwidth() * figure.dpi
    labels = [_wrapped(figure, _entry(curve, *x_unit), 0.78 * room) for curve in curves]
    handles = [Line2D([], [], **_line(i)) for i in range(len(curves))]
    widest = max(_width(figure, label) for label in labels) + 5.5 * 9 * figure.dpi / 72
    words: list[Artist] = [figure.legend(
        handles, labels, loc="outside lower center", ncols=max(1, min(len(labels), int(0.94 * room / widest))),
        title=_wrapped(figure, legend, 0.9 * room) or None, handlelength=3.6, columnspacing=1.5,
    )]  # fmt: skip
    small = {"fontsize": 8, "color": "#444444"}
    words.append(top.set_title(_wrapped(figure, caption, 0.8 * room, **small), loc="left", **small))
    if title:
        large = {"fontsize": 10, "weight": "bold"}
        words.append(figure.suptitle(_wrapped(figure, title, 0.94 * room, **large), **large))
    return words


def _width(figure: Figure, text: str, **font) -> float:
    """Pixels."""
    probe = figure.text(0, 0, text, **font)
    width = probe.get_window_extent(figure.canvas.get_renderer()).width if text else 0.0
    probe.remove()
    return width


def _wrapped(figure: Figure, text: str, room: float, **font) -> str:
    """The text in lines of at most `room` pixels, if its words allow that."""
    if _width(figure, text, **font) <= room:
        return text
    columns = int(len(text) * room / _width(figure, text, **font))
    lines = (textwrap.fill(text, columns) for columns in range(columns + 10, 5, -1))
    return next((wrapped for wrapped in lines if _width(figure, wrapped, **font) <= room), text)


def _height(figure: Figure, words: Iterable[Artist]) -> float:
    """Of title, caption and legend together, inches."""
    renderer = figure.canvas.get_renderer()
    return sum(word.get_window_extent(renderer).height for word in words) / figure.dpi


def _settle(figure: Figure) -> None:
    """Lays the figure out once. Raises: UsageError if not everything finds room."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.canvas.draw()
    small = any("constrained_layout" in str(warning.message) for warning in caught)
    if small or not fits(figure):
        width, height = figure.get_size_inches()
        raise UsageError(f"--size {width:g}x{height:g} (inches) is too small for the texts: give a larger one, or leave it out")


def fits(figure: Figure) -> bool:
    """Whether every text lies within the figure, and every panel is as high as the words beside it."""
    renderer = figure.canvas.get_renderer()
    box, (width, height) = figure.get_tightbbox(renderer), figure.get_size_inches()
    inside = min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.01
    return inside and all(
        ax.yaxis.label.get_window_extent(renderer).height <= 1.1 * ax.bbox.height and ax.bbox.width > 0.3 * figure.bbox.width
        for ax in figure.axes
    )


def encoded(figure: Figure, kind: str, dpi: int) -> bytes:
    """The picture's file: "png", "svg" or "pdf"; the same bytes for the same picture."""
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    out = io.BytesIO()
    with matplotlib.style.context(STYLE):
        figure.savefig(out, format=kind, dpi=dpi, metadata=metadata)
    return out.getvalue()


# The program


def numbers(panels: Sequence[tuple[Column, Sequence[Curve]]], groups: Sequence[Group], **about) -> dict[str, Any]:
    """What the picture shows, as JSON: null where a value does not exist."""

    def plain(values: np.ndarray) -> list:
        if values.ndim > 1:
            return [plain(row) for row in values]
        return [None if value != value else value for value in values.tolist()]

    return {
        **about,
        "confidence": CONFIDENCE,
        "groups": [{"label": group.label, "runs": [str(log.path) for log in group.logs]} for group in groups],
        "panels": [
            {
                "column": column.name,
                "curves": [{"label": c.label, **{k: plain(v) for k, v in c._asdict().items() if k != "label"}} for c in curves],
            }
            for column, curves in panels
        ],
    }


def choose_panels(logs: Sequence[Log], y: str, further: Sequence[str] | None) -> list[Column]:
    """The panel of `y` and the further ones: None for those of FURTHER that the logs have.

    Raises: UsageError if a log lacks the column of `y`, or all logs that of another panel.
    """
    main = _panel(y)
    for log in logs:
        if not log.has(main.name):
            hint = _hint(log, main.name)
            raise UsageError(f"--y {y}: {log.path} has no values of {main.name}; {hint}, or leave this run out")
    if further is None:
        further = [key for key in FURTHER if any(log.has(PANELS[key].name) for log in logs)]
    panels = [_panel(key) for key in further]
    for key, panel in zip(further, panels):
        if not any(log.has(panel.name) for log in logs):
            hint = _hint(logs[0], panel.name)
            raise UsageError(f"--panels {key}: no RUN has values of {panel.name}; {hint}, or leave the panel out")
    return list(dict.fromkeys([main, *(panel for panel in panels if panel.name != main.name)]))


def _panel(key: str) -> Column:
    by_column = {column.name: column for column in PANELS.values()}
    return (PANELS | by_column).get(key) or Column(key, "", label=textwrap.fill(key.replace("_", " "), 16))


def _hint(log: Log, column: str) -> str:
    there = [key for key, panel in PANELS.items() if log.has(panel.name)]
    close = difflib.get_close_matches(column, [name for name in log.columns if log.has(name)], n=2)
    return f"choose one of {', '.join(dict.fromkeys([*close, *there, 'the columns of its first line']))}"


def read_runs(given: Sequence[str], declared: Declared) -> list[Log]:
    """The logs of all runs that are named, or lie in a folder that is; in such a folder those without a row are left out.

    Raises: UsageError.
    """
    inside = {path: runs_in(Path(path)) for path in given}
    paths = [(run, bool(inside[path])) for path in given for run in inside[path] or [path]]
    most = MOST_BINS * max(1, 5 // len(paths))  # no picture shows more
    logs, empty = [], []
    for path, found in paths:
        try:
            logs.append(read_log(path, declared, most))
        except NoRows:
            if not found:
                raise
            empty.append(str(path))
    if not logs:
        raise NoRows(f"no run in {', '.join(given)} has a row yet: wait until one has logged some")
    if empty:
        print(f"note: left out, for they have no rows yet: {', '.join(empty)}", file=sys.stderr)
    return _unique(logs)


def _unique(logs: Sequence[Log]) -> list[Log]:
    """Each log once: DIR/* names a run twice where DIR/latest is a link to it."""
    return list({run_folder.real(log.path): log for log in reversed(logs)}.values())[::-1]


def _title(logs: Sequence[Log]) -> str:
    environments = {log.arguments.get("env", "") for log in logs if log.arguments is not None}
    return environments.pop() if len(environments) == 1 else ""


def _caption(groups: Sequence[Group], x: str, window: float, width: float, stat: str, *, ends: bool) -> str:
    """`ends`: whether a run ends before others of its group."""
    time = f"{3600 * width:.3g} seconds" if width < 1 / 60 else f"{60 * width:.3g} minutes"
    bins = "averaged over " + (f"{window:,.0f} frames" if x == "frames" else time)
    if all(len(group.logs) == 1 for group in groups):
        return bins[0].upper() + bins[1:]
    name = {"mean": "Mean", "iqm": "Interquartile mean"}[stat]
    sizes = [len(group.logs) for group in groups]
    few = " (of fewer than 4 seeds, the mean)" if stat == "iqm" and min(sizes) < 4 else ""
    shaded = f"; shaded: bootstrap {CONFIDENCE:.0%} interval" if max(sizes) >= FEWEST else ""
    thin = f"; thin: the seeds, where fewer than {FEWEST}" if any(1 < size < FEWEST for size in sizes) else ""
    dots = "; dot: a run ends" if ends else ""
    return f"{name} over seeds{few}{shaded}{thin}{dots}; {bins}"


def plot(options: argparse.Namespace) -> None:
    """Everything the command line asks for. Raises: UsageError, before anything is written."""
    kind = _check_output(options)
    declared = command.declared()
    logs = read_runs(options.runs, declared)
    for flag, path in (("--out", options.out), ("--json", options.json)):
        outputs.must_not_be_read(flag, path, [log.path for log in logs])
    _check_times(logs, options.x)
    groups, names = group_logs(logs, declared.seed_like, _words(options.by) or ())
    if len(groups) > len(COLOURS) * len(LINES):
        raise UsageError(f"{len(groups)} curves cannot be told apart: group the runs with --by, or plot fewer of them")
    window = default_window(logs) if options.window is None else options.window
    width = _bin_width(logs, options.x, window)
    panels = [
        (column, [make_curve(group, column.name, x=options.x, width=width, stat=options.stat) for group in groups])
        for column in choose_panels(logs, options.y, _words(options.panels))
    ]
    title = _title(logs) if options.title is None else options.title
    ends = any(_ends(curve) for _, curves in panels for curve in curves)
    caption = _caption(groups, options.x, window, width, options.stat, ends=ends)
    figure = picture(panels, x=options.x, caption=caption, title=title, legend=", ".join(names), size=options.size)
    data = numbers(panels, groups, x=options.x, y=options.y, stat=options.stat, window_frames=window, by=list(names))
    outputs.write({options.out: encoded(figure, kind, options.dpi), options.json: (json.dumps(data) + "\n").encode()})


def _words(text: str | None) -> list[str] | None:
    """The words of a comma-separated list; [] for "none". Raises: UsageError where a word is empty, or "none" beside others."""
    if text is None:
        return None
    if text == "none":
        return []
    words = [word.strip() for word in text.split(",")]
    if "" in words or "none" in words:
        raise UsageError(f"{text!r} is no list: write NAME or NAME,NAME")
    return words


def _check_output(options: argparse.Namespace) -> str:
    kind = Path(options.out).suffix[1:].lower()
    if kind not in FORMATS:
        raise UsageError(f"--out {options.out}: give a name that ends in .png, .svg or .pdf")
    outputs.must_be_writable("--out", options.out)
    if options.json:
        outputs.must_be_writable("--json", options.json)
    outputs.must_be_different(out=options.out, json=options.json or None)
    if options.title is not None and not run_folder.is_utf8(options.title):
        raise UsageError(f"--title {options.title!r} is no text in UTF-8; give another")
    width, height = options.size or (0, 0)
    if kind == "png" and width * height * options.dpi**2 > MOST_PIXELS:
        raise UsageError(f"--size and --dpi make a picture of more than {MOST_PIXELS:,} pixels: give smaller ones, or an .svg")
    return kind


def _check_times(logs: Sequence[Log], x: str) -> None:
    for log in logs:
        if log.frames[-1] <= 0:
            raise UsageError(f"{log.path} has no frames above 0 yet: wait until the run has logged some, or leave it out")
        if x == "hours" and not (log.hours is not None and log.hours[-1] > 0):
            raise UsageError(f"--x hours: {log.path} has no two rows with times (_time); use --x frames, or leave it out")


def _bin_width(logs: Sequence[Log], x: str, window: float) -> float:
    """A window of so many frames, in the unit of x: in hours, what the logs took for so many on average."""
    lengths = [getattr(log, x)[-1] for log in logs]
    width = window if x == "frames" else window * sum(lengths) / sum(log.frames[-1] for log in logs)
    if max(lengths) > MOST_BINS * width:
        raise UsageError(f"--window {window:g} would draw more than {MOST_BINS:,} points: give a larger one")
    return width


def _size(text: str) -> tuple[float, float]:
    width, _, height = text.partition("x")
    size = float(width), float(height)
    if not all(1 <= side <= 100 for side in size):
        raise ValueError
    return size


def _dpi(text: str) -> int:
    value = whole_number(text)
    if not 30 <= value <= 1200:
        raise ValueError
    return value


# argparse says them: "invalid WIDTHxHEIGHT (1 to 100 inches) value: '1'"
_size.__name__, _dpi.__name__ = "WIDTHxHEIGHT (1 to 100 inches)", "30 to 1200"


def make_parser() -> Parser:
    about = "Learning curves from logs, with bootstrap 95% intervals over seeds."
    parser = Parser(
        prog=program("main.plot"),
        description=about,
        examples=("experimentMinigrid", "experimentMinigrid/RUN_1 experimentMinigrid/RUN_2 --by model --out curves.svg"),
    )
    add = parser.add_argument
    about = "the folder of a run, a folder of runs (SAVEDIR: all in it), or a logs.csv"
    add("runs", nargs="+", type=not_empty, metavar="RUN", help=about)
    add("--by", help="group by these arguments of meta.json, as model or model,env; or by experiment, the name of a row of "
        "main.reproduce (default: by all that differ but the seed)")  # fmt: skip
    add("--out", type=not_empty, default="curves.png", help="picture: .png, .svg or .pdf (default: curves.png)")
    add("--json", type=not_empty, help="also write the plotted numbers to this file")
    add("--x", default="frames", choices=("frames", "hours"), help="(default: frames)")
    add("--y", default="return", help="return, success, or a column of logs.csv (default: return)")
    add("--panels", help=f"further panels, as t_star,intrinsic: {', '.join(PANELS)}, columns, or none (default: "
        f"{', '.join(FURTHER[:-1])} and {FURTHER[-1]} where the runs have them)")  # fmt: skip
    add("--stat", default="mean", choices=tuple(STATISTICS), help="over seeds (default: mean)")
    add("--window", type=positive_number, metavar="FRAMES",
        help="average over so many (default: the longest run / 100, rounded)")  # fmt: skip
    add("--title", help="(default: the environment)")
    add("--size", type=_size, metavar="WIDTHxHEIGHT", help="inches (default: 7 wide, as high as needed)")
    add("--dpi", type=_dpi, default=150, help="pixels per inch (default: 150)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 0; 2 for a wrong input, with nothing written."""
    return command.run(lambda: plot(make_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
