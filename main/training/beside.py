"""What is done beside the learning, every quarter second, each thing when its time has come."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections import deque
from collections.abc import Callable

from tqdm import tqdm

from main.training.filming import Filming
from main.training.learner import Learner
from main.training.lockstep import Lockstep
from main.training.record import Record
from torchbeast.core.file_writer import OUTCOMES
from torchbeast.core.ranks import Alone
from torchbeast.core.success import success_rate

logger = logging.getLogger("amigo")

LINE_SECONDS = 5.0
RATE_SECONDS = 30.0
SCALARS_SECONDS = 10.0
LOOK_SECONDS = 2.0  # at the run's folder
PROGRESS_RECORD = {"progress": True}
PROGRESS_LINE = re.compile(r"[\d,]+ frames, [\d,]+ frames/s, ")  # how a plain line begins


class Progress:
    """One live line on a terminal, a plain line every few seconds elsewhere: frames, speed, time left, return, success, t*.

    Attributes:
        total: the frames to learn from.
    """

    def __init__(self, learner: Learner, total_frames: int, *, live: bool = True):
        self._learner = learner
        self.total = total_frames
        self._began = time.monotonic()
        self._seen: deque[tuple[float, int]] = deque([(self._began, learner.frames)])
        self._next_line = time.monotonic() + LINE_SECONDS
        self._bar = tqdm(
            total=total_frames,
            initial=learner.frames,
            unit="fr",
            unit_scale=True,
            disable=not (live and sys.stderr.isatty()),
            smoothing=0.05,
            dynamic_ncols=True,
        )
        self._bar._time = time.monotonic  # tqdm reads a clock that may be set
        self._bar.start_t = self._bar.last_print_t = time.monotonic()

    @property
    def frames(self) -> int:
        return self._learner.frames

    @property
    def done(self) -> bool:
        """Whether all frames are learned."""
        return self.frames >= self.total

    @property
    def seconds(self) -> float:
        """Since this start."""
        return time.monotonic() - self._began

    def rate(self) -> float:
        """Frames per second over the last half minute."""
        now = time.monotonic(), self._learner.frames
        self._seen.append(now)
        while now[0] - self._seen[0][0] > RATE_SECONDS and len(self._seen) > 2:
            self._seen.popleft()
        seconds = now[0] - self._seen[0][0]
        return (now[1] - self._seen[0][1]) / seconds if seconds > 0 else 0.0

    def summary(self) -> str:
        """Return and success over the last episodes, and what the motivation adds."""
        return " ".join(part for part in (self.success(), self._learner.motivation.progress()) if part)

    def success(self) -> str:
        """Return and success over the last episodes; "" before the first has ended."""
        returns = list(self._learner.recent_returns)  # at once: the learner's thread goes on adding to it
        if not returns:
            return ""
        mean = sum(returns) / len(returns)
        return f"return {mean:.3f} success {success_rate(returns):.2f} (last {len(returns)} episodes)"

    def outcome(self) -> dict[str, float]:
        """The success rate over the last episodes, for TensorBoard's table of runs; {} without an episode."""
        returns = list(self._learner.recent_returns)
        return dict.fromkeys(OUTCOMES, success_rate(returns)) if returns else {}

    def update(self) -> None:
        """Called often; shows something only every so often."""
        self._bar.update(self._learner.frames - self._bar.n)
        if time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + LINE_SECONDS
        self._bar.set_postfix_str(self.summary(), refresh=False)
        self.line()

    def line(self) -> None:
        """Logs one plain line."""
        rate = self.rate()
        left = (self.total - self.frames) / rate if rate > 0 else float("inf")
        text = f"{self.frames:,} frames, {rate:,.0f} frames/s, {clock(left)} left, {self.summary()}"
        logger.info(text, extra=PROGRESS_RECORD)

    def close(self) -> None:
        self._bar.close()


def clock(seconds: float) -> str:
    """As hours:minutes:seconds."""
    if seconds == float("inf"):
        return "unknown time"
    minutes, seconds = divmod(int(max(0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Beside:
    """The table of what is done how often: progress, alarms and news at once, events, checkpoints and evaluations when due.

    Of several ranks the first does it.
    """

    def __init__(
        self, learner: Learner, record: Record, progress: Progress, filming: Filming, lockstep: Lockstep, ranks: Alone
    ):
        self._filming = filming
        self._learner = learner
        self._record = record
        self._progress = progress
        self._lockstep = lockstep
        self._ranks = ranks
        self._next_scalars = self._next_look = 0.0

    def __call__(self, save: Callable[[], object], evaluate: Callable[[], object]) -> None:
        """`save` writes a checkpoint now; `evaluate` looks after evaluations."""
        if not self._ranks.first:
            return
        self.hear()
        self._progress.update()
        for warning in self._learner.warnings():
            self._record.warn_once(warning)
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._record.look()
        if now >= self._next_scalars:
            self._next_scalars = now + SCALARS_SECONDS
            self._record.scalars({"frames_per_second": self._progress.rate()})
        self._filming()
        if self._record.due(self._learner.frames):
            if self._ranks.alone:
                save()
            else:
                self._lockstep.save_due = True
        evaluate()

    def hear(self) -> None:
        """What other ranks warn of goes to this one's log too."""
        for text in self._ranks.news():
            logger.warning(text)
