"""What the teacher taught: which goals were proposed and reached over a run, counted while it trains."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import torch
from gym_minigrid.minigrid import OBJECT_TO_IDX
from torch import Tensor

from models.grid import MAX_SIDE, OBJECTS, are_cells
from torchbeast.core import forms
from torchbeast.core.events import Histogram
from utils_folder.motivations import goals

MOMENTS = 256
FIRST_WIDTH = 10_000
EXAMPLES = 2
KINDS = OBJECTS
PROPOSED, REACHED = range(2)
NAMES = ("proposed", "reached")  # where a run did not count them apart
NAMES_APART = ("proposed", "reached inside", "reached at the end")
FATE_NAMES = ("not reached", "reached", "reached as the episode ended")  # of examples
T_STAR = "t_star"  # the histogram of it
KEY = "curriculum"  # of a checkpoint
COUNTS = ("counts", "at_end")  # goals
SUMMED = (*COUNTS, "steps")  # of two moments that become one; of the rest the later one's stays


class History(NamedTuple):
    """A run in M moments of equal numbers of frames. Counts are of goals that ended: reached, or lost to an episode's end.

    Of N = 3 counts (NAMES_APART) the second is of those that the student reached, the third of those that were reached by the
    exchange of levels at an episode's end. Of N = 2 (NAMES; older runs) the second is of both.

    frames int64 [M]             frames learned from at the moment's end
    target int64 [M]             t* then; None where goals came by chance: there was none
    cells int64 [M, N, W, H]     goals, by cell
    kinds int64 [M, N, KINDS]    by what lay there when they were proposed (OBJECT_TO_IDX)
    distances int64 [M, N, W+H-1]  by their distance from the agent then, in steps along the axes
    steps int64 [M]              sum of the steps that the reached ones took
    example_frames uint8 [M, EXAMPLES, W, H, 3]  frames in which goals were proposed
    example_goals int64 [M, EXAMPLES, 3]         goal (-1: none); not reached 0, reached 1, at the end 2; steps until then
    """

    frames: np.ndarray
    target: np.ndarray | None
    cells: np.ndarray
    kinds: np.ndarray
    distances: np.ndarray
    steps: np.ndarray
    example_frames: np.ndarray
    example_goals: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """What was counted, [N]."""
        return NAMES_APART if self.cells.shape[1] == len(NAMES_APART) else NAMES


def reached_at_end(batch: dict[str, Tensor]) -> Tensor:
    """Which goals were reached by the exchange of levels as an episode ended, bool [T, B], in rollouts [T+1, B, ...].

    `restarted` tells of episodes that ended because the goal was reached (--restart_episode).
    """
    at_end = batch["reached"][1:] & batch["done"][1:]
    return at_end & ~batch["restarted"][1:] if "restarted" in batch else at_end


def _table(size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Empty: what is counted in each moment."""
    W, H = size
    return {
        "counts": np.zeros((MOMENTS, 2, W * H + KINDS + W + H - 1), np.int32),
        "at_end": np.zeros((MOMENTS, W * H + KINDS + W + H - 1), np.int32),
        "steps": np.zeros(MOMENTS, np.int64),
        "target": np.zeros(MOMENTS, np.int64),
        "example_frames": np.zeros((MOMENTS, EXAMPLES, W, H, 3), np.uint8),
        "example_goals": np.full((MOMENTS, EXAMPLES, 3), -1),
    }


class Recent:
    """What ended goals were since the last look, for TensorBoard. Threads may share it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._empty()

    def _empty(self) -> None:
        self._targets: Counter[int] = Counter()
        self._kinds = np.zeros((2, KINDS), np.int64)

    def add(self, target: int, frames: int, kinds: np.ndarray, reached: np.ndarray) -> None:
        """Goals [N] that ended while t* was `target`, in a batch of so many frames: what lay there, and which were reached."""
        with self._lock:
            self._targets[target] += frames
            self._kinds[PROPOSED] += np.bincount(kinds, minlength=KINDS)
            self._kinds[REACHED] += np.bincount(kinds[reached], minlength=KINDS)

    def take(self) -> dict[str, Histogram]:
        """Frames by t*, and goals by kind; {} before there are some."""
        with self._lock:
            targets, kinds = self._targets, self._kinds
            self._empty()
        if not targets:
            return {}
        values, counts = zip(*sorted(targets.items()))
        found = {T_STAR: Histogram(np.array(values), np.array(counts), "frames by the target distance t*, in steps")}
        meaning = ", ".join(f"{number} {name}" for name, number in sorted(OBJECT_TO_IDX.items(), key=lambda pair: pair[1]))
        for which, name in enumerate(NAMES):
            found[f"goals_{name}_by_kind"] = Histogram(np.arange(KINDS), kinds[which], f"goals by what lay there: {meaning}")
        return found


class Curriculum:
    """Counts ended goals, moment by moment, in memory that stays the same: when all moments are used, pairs become one.

    Args:
        frame_shape: (W, H, 3k).

    Attributes:
        recent: the same since the last look at it, in short.
    """

    def __init__(self, frame_shape: tuple[int, int, int]):
        self.recent = Recent()
        W, H, _ = frame_shape
        self._size = (W, H)
        self._width = FIRST_WIDTH  # frames of a moment
        self._frames = 0
        self._table = _table((W, H))

    def see(self, batch: dict[str, Tensor], target: int, *, ranks: int = 1) -> None:
        """Counts the goals that ended in rollouts [T+1, B, ...]; `target` is t*. So many ranks have such rollouts."""
        ended = (batch["done"] | batch["reached"]).numpy()[1:]
        frames = ended.size * ranks
        where = self._moment(frames)
        self._frames += frames
        self._table["target"][where] = target
        t, b = ended.nonzero()
        goal_frames, cells = (batch[name].numpy()[t, b] for name in ("goal_frame", "goal"))
        goal_frames = goal_frames[..., -3:]
        reached, steps = (batch[name].numpy()[t + 1, b] for name in ("reached", "goal_step"))
        at_end = reached_at_end(batch).numpy()[t, b]
        self._table["steps"][where] += steps[reached].sum()
        kinds = goals.cell_contents(goal_frames, cells)[:, 0].astype(np.int64)  # in uint8, W * H + kinds would wrap
        self.recent.add(target, frames, kinds, reached)
        self._count(where, goal_frames, cells, kinds, reached, at_end)
        self._keep_examples(where, goal_frames, np.stack([cells, reached + 1 * at_end, steps], axis=1))

    def _moment(self, frames: int) -> int:
        """The row of the present moment, which is at least as long as these frames: none is stepped over."""
        while self._frames >= MOMENTS * self._width or frames > self._width:
            self._width *= 2
            for name, values in self._table.items():
                merged = values[::2] + values[1::2] if name in SUMMED else values[1::2].copy()
                values[: MOMENTS // 2], values[MOMENTS // 2 :] = merged, -1 if name == "example_goals" else 0
        return self._frames // self._width

    def _count(
        self, where: int, frames: np.ndarray, cells: np.ndarray, kinds: np.ndarray, reached: np.ndarray, at_end: np.ndarray
    ) -> None:
        W, H = self._size
        agents = (frames[..., 0] == goals.AGENT).reshape(-1, W * H).argmax(1)
        distances = abs(cells // H - agents // H) + abs(cells % H - agents % H)
        columns = np.concatenate([cells, W * H + kinds, W * H + KINDS + distances])
        counts = self._table["counts"][where]
        counts[PROPOSED] += np.bincount(columns, minlength=counts.shape[1])
        counts[REACHED] += np.bincount(columns[np.tile(reached, 3)], minlength=counts.shape[1])
        if "at_end" in self._table:
            self._table["at_end"][where] += np.bincount(columns[np.tile(at_end, 3)], minlength=counts.shape[1])

    def _keep_examples(self, where: int, frames: np.ndarray, about: np.ndarray) -> None:
        goals_kept, frames_kept = self._table["example_goals"][where], self._table["example_frames"][where]
        free = np.flatnonzero(goals_kept[:, 0] < 0)[: len(about)]
        goals_kept[free], frames_kept[free] = about[: len(free)], frames[: len(free)]

    def state_dict(self) -> dict[str, Any]:
        used = -(-self._frames // self._width)
        return {
            "size": list(self._size),
            "width": self._width,
            "frames": self._frames,
            **{name: torch.from_numpy(values[:used].copy()) for name, values in self._table.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises: EntryError if it is no history of such a grid."""
        check(state, self._size)
        self._width, self._frames = state["width"], state["frames"]
        if "at_end" not in state:  # an older run's: what it did not count from its start it does not count at all
            self._table.pop("at_end", None)
        for name, values in self._table.items():
            values[: len(state[name])] = state[name].numpy()


def check(state: dict[str, Any], size: tuple[int, int] | None = None) -> None:
    """Raises: EntryError unless it is a Curriculum's state, on a grid of this size if one is given."""
    count = forms.whole(1)
    plain = {"size": forms.each(count, count=2), "width": count, "frames": forms.whole()}
    forms.record(plain, exact=False)(KEY, state)
    W, H = state["size"]
    used = -(-state["frames"] // state["width"])
    if (size is not None and size != (W, H)) or max(W, H) > MAX_SIDE or used > MOMENTS:
        raise forms.EntryError(f"{KEY}: {W}x{H} cells, {used} moments of {state['width']} frames: no history of this run")
    table = dict.fromkeys(plain, forms.anything)
    for name, values in _table((W, H)).items():
        fits = forms.within(-1 if name == "example_goals" else 0, state["frames"] if name in COUNTS else forms.MOST)
        fits = are_cells if name == "example_frames" else fits
        table[name] = forms.tensor((used, *values.shape[1:]), forms.dtype_of(values.dtype), fits)
    forms.record(table, optional=("at_end",))(KEY, state)
    if "at_end" in state and (state["at_end"] > state["counts"][:, REACHED]).any():
        raise forms.EntryError(f"{KEY}/at_end holds more goals than were reached")
    goal, fate = state["example_goals"][..., 0], state["example_goals"][..., 1]
    if (goal >= W * H).any() or (fate >= len(FATE_NAMES)).any():
        raise forms.EntryError(f"{KEY}/example_goals holds cells beyond the grid, or what can become of no goal")


def history(state: dict[str, Any]) -> History:
    """The history in a Curriculum's state. Raises: EntryError if it is none."""
    check(state)
    W, H = state["size"]
    counts = state["counts"].numpy().astype(np.int64)
    moments = len(counts)
    if "at_end" in state:
        at_end = state["at_end"].numpy().astype(np.int64)
        counts = np.stack([counts[:, PROPOSED], counts[:, REACHED] - at_end, at_end], axis=1)
    cells, kinds, distances = np.split(counts, [W * H, W * H + KINDS], axis=2)
    return History(
        frames=np.minimum(np.arange(1, moments + 1) * state["width"], state["frames"]),
        target=state["target"].numpy(),
        cells=cells.reshape(moments, counts.shape[1], W, H),
        kinds=kinds,
        distances=distances,
        steps=state["steps"].numpy(),
        example_frames=state["example_frames"].numpy(),
        example_goals=state["example_goals"].numpy(),
    )
