"""Where the time of a loop goes."""

from __future__ import annotations

import math
import time


class Timings:
    """Times the phases of a loop; mean and variance are accumulated by Welford's method.

    timings.reset()               # at the start of each round
    ...
    timings.time("forward")       # the time since `reset` or the last `time` belongs to this phase
    ...
    timings.time("backward")
    """

    def __init__(self):
        self._phases: dict[str, tuple[int, float, float]] = {}  # count, mean [s], sum of squared deviations [s^2]
        self.reset()

    def reset(self) -> None:
        """Starts the clock again; what was accumulated stays."""
        self._last = time.perf_counter()

    def time(self, phase: str) -> None:
        """Adds the time since the last call (of `time` or `reset`) to `phase`."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        count, mean, squares = self._phases.get(phase, (0, 0.0, 0.0))
        count += 1
        delta = seconds - mean
        mean += delta / count
        self._phases[phase] = (count, mean, squares + delta * (seconds - mean))

    def means(self) -> dict[str, float]:
        """Mean seconds by phase."""
        return {phase: mean for phase, (_, mean, _) in self._phases.items()}

    def stds(self) -> dict[str, float]:
        """Standard deviation (of the population) in seconds by phase."""
        return {phase: math.sqrt(squares / count) for phase, (count, _, squares) in self._phases.items()}

    def summary(self) -> str:
        """One line per phase, longest first: mean and standard deviation in ms, share of the total time in percent."""
        totals = {phase: count * mean for phase, (count, mean, _) in self._phases.items()}
        total = sum(totals.values()) or 1.0
        means, stds = self.means(), self.stds()
        return "\n".join(
            f"{phase:<20} {1e3 * means[phase]:9.3f} ms +- {1e3 * stds[phase]:8.3f} {100 * spent / total:5.1f} %"
            for phase, spent in sorted(totals.items(), key=lambda item: -item[1])
        )
