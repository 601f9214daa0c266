"""`python -m main.curriculum RUN`: what the teacher taught. A picture, and a page for looking closer."""

from __future__ import annotations

import argparse
import base64
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from main.training import interrupt

if __name__ == "__main__":  # what is imported below takes seconds
    interrupt.end_at_once()

import imageio.v2 as imageio
import matplotlib.style
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from main import command, plot
from main.amigo import program
from torchbeast.core import checkpoint, forms, outputs, run_folder
from torchbeast.core.settings import Parser, UsageError, a_path
from utils_folder import video
from utils_folder.motivations import curriculum
from utils_folder.motivations.amigo import is_taught
from utils_folder.motivations.curriculum import FATE_NAMES, OBJECT_TO_IDX, PROPOSED, REACHED, History

PICTURE_MOMENTS = 6
CURVE_MOMENTS = 100
PAGE_MOMENTS = 50
TILE = 24
DPI = 110
KIND_COLOURS = {
    "empty": "#C9C9C9", "wall": "#4D4D4D", "door": "#E07B28", "key": "#D9A514", "ball": "#0080C0", "box": "#74156B",
    "agent": "#C22F2F", "goal": "#2E8B57", "lava": "#F28C8C", "floor": "#EDE3C8", "unseen": "#000000",
}  # fmt: skip
KIND_NAMES = {"agent": "agent's own cell"}
HEAT = "viridis"
DISTANCE, STEPS, FATES = "mean distance from the agent, in steps", "steps to a reached goal", "what became of goals"
TAUGHT, BY_CHANCE = "What the teacher taught", "Goals by chance, and what became of them: no teacher learned"
LINES = ("-", "--", ":")


def read(place: Path) -> tuple[History, str, Path]:
    """The history of the run that `place` means, as --resume has it, its title and its folder.

    Raises: UsageError if there is none.
    """
    try:
        state, path = checkpoint.find(run_folder.own(place))
    except checkpoint.CheckpointError as error:
        raise UsageError(str(error)) from None
    run_dir = path.parent
    if curriculum.KEY not in state:
        raise UsageError(f"{run_dir}: its checkpoint tells of no goals: give a run of this program that has a teacher")
    try:
        history = curriculum.history(state[curriculum.KEY])
    except forms.EntryError as error:
        raise UsageError(f"{run_dir}: its checkpoint is damaged: {error}") from None
    if not history.cells.any():
        raise UsageError(f"{run_dir}: no goal has ended yet: wait until the run has a later checkpoint")
    flags = state["flags"]
    if not is_taught(flags):
        history = history._replace(target=None)
    name = run_folder.real(run_dir).name
    return history, f"{name}: {flags.get('model')} on {flags.get('env')}, seed {flags.get('seed')}", run_dir


def merged(history: History, count: int) -> History:
    """The same with at most `count` moments: neighbours added up, of t* and frames the last, of examples the first one's."""
    moments = len(history.frames)
    starts = np.unique(np.linspace(0, moments, min(count, moments), endpoint=False).astype(int))
    last = np.append(starts[1:], moments) - 1
    sums = {name: np.add.reduceat(getattr(history, name), starts) for name in ("cells", "kinds", "distances", "steps")}
    return history._replace(
        frames=history.frames[last],
        target=None if history.target is None else history.target[last],
        example_frames=history.example_frames[starts],
        example_goals=history.example_goals[starts],
        **sums,
    )


def shares(counts: np.ndarray) -> np.ndarray:
    """Counts [M, ...] as shares of their moment's total; NaN where a moment has none."""
    total = counts.reshape(len(counts), -1).sum(axis=1).astype(float)
    return counts / np.where(total > 0, total, np.nan).reshape(-1, *[1] * (counts.ndim - 1))


def mean_distances(history: History) -> np.ndarray:
    """Mean distance from the agent of the goals of each count, float64 [N, M]; NaN where there were none."""
    steps = np.arange(history.distances.shape[2])
    return np.array([shares(history.distances[:, which]) @ steps for which in range(len(history.names))])


def mean_steps(history: History) -> np.ndarray:
    """Mean steps to a reached goal, float64 [M]."""
    reached = history.cells[:, REACHED:].sum(axis=(1, 2, 3))
    return history.steps / np.where(reached > 0, reached, np.nan)


def fates(history: History) -> np.ndarray:
    """The shares of the goals that were reached in each way counted apart, float64 [N - 1, M]; NaN where none ended."""
    ended = history.cells.sum(axis=(2, 3)).T.astype(float)
    return ended[REACHED:] / np.where(ended[PROPOSED] > 0, ended[PROPOSED], np.nan)


def targets(history: History, moment: int) -> tuple[str, ...]:
    """t* at that moment, in words; () where there was none."""
    return () if history.target is None else (f"t* {history.target[moment]}",)


def heading(history: History) -> str:
    return BY_CHANCE if history.target is None else TAUGHT


def kinds_present(history: History) -> list[str]:
    """The kinds of cells that were goals, in the order of KIND_COLOURS."""
    ever = history.kinds.sum(axis=(0, 1))
    return [kind for kind in KIND_COLOURS if ever[OBJECT_TO_IDX[kind]]]


def example(history: History, moment: int) -> np.ndarray:
    """A picture of a goal in the frame in which it was proposed, uint8 [height, width, 3]."""
    goal = int(history.example_goals[moment, 0, 0])
    return video.render(history.example_frames[moment, 0], goal=goal if goal >= 0 else None, tile_size=TILE)


# The picture


def picture(history: History, title: str) -> Figure:
    """Examples and heat maps at six moments, over curves of the whole run."""
    with matplotlib.style.context(plot.STYLE):
        rows = 1 + len(history.names)
        figure = Figure(figsize=(11, 10.5 + 2 * (rows - 3)), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(f"{heading(history)}\n{title}", fontsize=11)
        maps, curves = figure.subfigures(2, 1, height_ratios=(1.15 * rows / 3, 1))
        _draw_maps(maps, merged(history, PICTURE_MOMENTS))
        _draw_curves(curves, merged(history, CURVE_MOMENTS))
    return figure


def _draw_maps(figure, history: History) -> None:
    moments = len(history.frames)
    axes = figure.subplots(1 + len(history.names), moments, squeeze=False)
    frames = np.concatenate([[0], history.frames]) / 1e6
    for moment, column in enumerate(axes.T):
        column[0].imshow(example(history, moment))
        until = ", ".join(["frames", *targets(history, moment)])
        column[0].set_title(f"{frames[moment]:.3g} to {frames[moment + 1]:.3g} million\n{until}")
        for which, axis in enumerate(column[1:]):
            _heat(axis, shares(history.cells[:, which])[moment])
    for axis, label in zip(axes[:, 0], ("an example", *(f"goals {name}" for name in history.names))):
        axis.set_ylabel(label)
    for axis in axes.flat:
        axis.set(xticks=(), yticks=())
    note = "share of the goals of that time, by cell: each map from none (dark) to its own largest share (bright)"
    figure.supxlabel(note, fontsize=9)


def _heat(axis: Axes, share: np.ndarray) -> None:
    share = np.nan_to_num(share)
    axis.imshow(share.T, cmap=HEAT, vmin=0, vmax=share.max() or 1.0)
    axis.set_xlabel(f"largest {share.max():.0%}", fontsize=8)


def _draw_curves(figure, history: History) -> None:
    axes = figure.subplots(2, len(history.names), sharex=True)
    frames = history.frames / 1e6
    kinds = kinds_present(history)
    for which, axis in enumerate(axes[0]):
        parts = np.nan_to_num(shares(history.kinds[:, which])[:, [OBJECT_TO_IDX[kind] for kind in kinds]])
        colours, names = [KIND_COLOURS[kind] for kind in kinds], [KIND_NAMES.get(kind, kind) for kind in kinds]
        axis.stackplot(frames, parts.T, colors=colours, labels=names, edgecolor="white", linewidth=0.8)
        axis.set(ylim=(0, 1), ylabel=f"share of goals {history.names[which]}\nby what lies there")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for which, distances in enumerate(mean_distances(history)):
        axes[1, 0].plot(frames, distances, LINES[which], color=plot.COLOURS[which], label=history.names[which])
    axes[1, 0].set(ylabel="mean distance from the\nagent (steps along axes)", ylim=(0, None))
    if history.target is not None:
        axes[1, 1].plot(frames, history.target, color=plot.COLOURS[0], label="t*")
    axes[1, 1].plot(frames, mean_steps(history), "--", color=plot.COLOURS[1], label="mean steps to a reached goal")
    axes[1, 1].set(ylabel="steps", ylim=(0, None))
    for axis in axes[1, 2:]:
        _draw_fates(axis, history)
    for axis in axes[1]:
        axis.set_xlabel("million frames")
        ncols = 4 - len(history.names)
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=ncols)  # above: the lines may run anywhere


def _draw_fates(axis: Axes, history: History) -> None:
    for which, share in enumerate(fates(history), REACHED):
        axis.plot(history.frames / 1e6, share, LINES[which], color=plot.COLOURS[which], label=history.names[which])
    axis.set(ylabel="share of the goals\nthat ended", ylim=(0, 1))


# The page


def page(history: History, title: str) -> str:
    """A page that needs nothing else: maps with a slider over the run, examples, and the curves."""
    history = merged(history, PAGE_MOMENTS)
    count = len(history.names)
    columns = range(1, count + 1)
    maps, kinds = ([text.format(name) for name in history.names] for text in ("goals {} (share)", "what lay there: {}"))
    figure = make_subplots(
        rows=3,
        cols=count,
        row_heights=(0.44, 0.28, 0.28),
        vertical_spacing=0.09,
        subplot_titles=[*maps, *kinds, *(DISTANCE, STEPS if history.target is None else f"t* and {STEPS}", FATES)[:count]],
    )
    for trace, column in zip(_maps(history, 0), columns):
        figure.add_trace(trace, row=1, col=column)
    _add_curves(figure, history)
    titles = figure.layout.annotations
    figure.frames = [
        go.Frame(name=str(m), data=_maps(history, m), traces=[*range(count)], layout=_marks(history, m, titles))
        for m in range(len(history.frames))
    ]
    figure.update_layout(
        title=f"{heading(history)}<br><sup>{title}</sup>", width=710 + 220 * count, height=1150, template="plotly_white",
        sliders=[_slider(history)], margin={"l": 60, "r": 260, "t": 110, "b": 120}, legend={"x": 1.02, "y": 0.55},
        **_marks(history, 0, titles),
    )  # fmt: skip
    for column in columns:
        figure.update_xaxes(visible=False, row=1, col=column)
        scale = f"x{column if column > 1 else ''}"
        figure.update_yaxes(visible=False, autorange="reversed", scaleanchor=scale, row=1, col=column)
        figure.update_yaxes(range=(0, 1), tickformat=".0%", row=2, col=column)
        figure.update_xaxes(title="million frames", row=3, col=column)
    return figure.to_html(include_plotlyjs=True, full_html=True, auto_play=False, config={"displaylogo": False})


def _maps(history: History, moment: int) -> list[go.Heatmap]:
    return [
        go.Heatmap(
            z=np.nan_to_num(shares(history.cells[[moment], which])[0].T),
            colorscale=HEAT,
            showscale=False,
            hovertemplate="column %{x}, row %{y}: %{z:.1%}<extra></extra>",
        )
        for which in range(len(history.names))
    ]


def _add_curves(figure: go.Figure, history: History) -> None:
    frames = history.frames / 1e6
    for which in range(len(history.names)):
        column = which + 1
        parts = np.nan_to_num(shares(history.kinds[:, which]))
        for kind in kinds_present(history):
            figure.add_scatter(
                x=frames, y=parts[:, OBJECT_TO_IDX[kind]], stackgroup=str(which), name=KIND_NAMES.get(kind, kind),
                legendgroup=kind, showlegend=column == 1, line={"width": 0.5, "color": KIND_COLOURS[kind]}, row=2, col=column,
            )  # fmt: skip
    for which, values in enumerate(mean_distances(history)):
        figure.add_scatter(x=frames, y=values, name=history.names[which], line={"color": plot.COLOURS[which]}, row=3, col=1)
    for name, values, colour in (("t*", history.target, 3), (STEPS, mean_steps(history), 4)):
        if values is not None:
            figure.add_scatter(x=frames, y=values, name=name, line={"color": plot.COLOURS[colour]}, row=3, col=2)
    for which, values in enumerate(fates(history)[: 2 * (len(history.names) - 2)], REACHED):
        line = {"color": plot.COLOURS[which]}
        figure.add_scatter(x=frames, y=values, name=history.names[which], showlegend=False, line=line, row=3, col=3)


def _marks(history: History, moment: int, titles: Sequence) -> dict:
    """What moves with the slider beside the maps: a line in the curves and an example; the titles stay."""
    x = float(history.frames[moment] / 1e6)
    lines = [
        {"type": "line", "xref": f"x{axis}", "yref": f"y{axis} domain", "x0": x, "x1": x, "y0": 0, "y1": 1,
         "line": {"color": "#000000", "width": 1, "dash": "dot"}}
        for axis in range(len(history.names) + 1, 3 * len(history.names) + 1)
    ]  # fmt: skip
    goal, fate, steps = history.example_goals[moment, 0].tolist()
    became = "none ended" if goal < 0 else f"{FATE_NAMES[fate]} after {steps} steps"
    note = {"text": "<br>".join([f"an example: {became}", *targets(history, moment)]), "showarrow": False, "align": "left",
            "xref": "paper", "yref": "paper", "x": 1.03, "y": 0.78, "xanchor": "left", "yanchor": "top"}  # fmt: skip
    picture = {"source": _png(example(history, moment)), "xref": "paper", "yref": "paper", "x": 1.03, "y": 1.0,
               "sizex": 0.22, "sizey": 0.22, "xanchor": "left", "yanchor": "top"}  # fmt: skip
    return {"shapes": lines, "images": [picture], "annotations": [*titles, note]}


def _png(image: np.ndarray) -> str:
    content = io.BytesIO()
    imageio.imwrite(content, image, format="png")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _slider(history: History) -> dict:
    steps = [
        {"label": f"{frames / 1e6:.3g}", "method": "animate",
         "args": [[str(m)], {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}]}
        for m, frames in enumerate(history.frames)
    ]  # fmt: skip
    return {"active": 0, "steps": steps, "currentvalue": {"prefix": "until million frames: "}, "pad": {"t": 60}}


def show(options: argparse.Namespace) -> None:
    """Everything the command line asks for. Raises: UsageError, before anything is written."""
    if options.out is not None and not options.out.is_dir():
        raise UsageError(f"--out {options.out}: no such folder; make it first")
    history, title, run_dir = read(options.run)
    folder = options.out or run_dir
    outputs.must_hold_folders("--out", folder)
    figure = picture(history, title)
    files = {kind: plot.encoded(figure, kind, DPI) for kind in ("png", "svg")} | {"html": page(history, title).encode()}
    outputs.write({str(folder / f"curriculum.{kind}"): content for kind, content in files.items()})


def make_parser() -> Parser:
    parser = Parser(
        prog=program("main.curriculum"),
        description="Shows what the teacher of a run taught: a picture, and a page with a slider over the run.",
        examples=("experimentMinigrid/latest", "results/keycorridor-default-1 --out ."),
    )
    about = "a run's folder (SAVEDIR/XPID), a checkpoint in it, or a folder of runs, for its latest"
    parser.add_argument("run", type=a_path, metavar="RUN", help=about)
    parser.add_argument("--out", type=a_path, help="folder for curriculum.png, .svg and .html (default: the run's)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 0; 2 for a wrong input, with nothing written."""
    return command.run(lambda: show(make_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
