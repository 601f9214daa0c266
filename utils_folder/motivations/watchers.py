"""What actors can note of the states that they arrive in, ready-made: visits in the episode, and whose states they are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from torchbeast.core import forms
from torchbeast.core.environment import LAST, Environment, Output
from torchbeast.core.rollouts import Field
from utils_folder.motivations.base import MotivationActor

MOST_VISITS = 2**31 - 1
VISITS = forms.whole(1, MOST_VISITS)
WHERE = "source/actor/motivation"  # a watcher's state in a checkpoint


class EpisodicCounts(MotivationActor):
    """Counts how often each full frame has been seen in the current episode of each environment.

    Its field says how often the state has been visited, this visit included: int32 [E], from 1 on.

    Args:
        arrivals: it speaks of the state that the step led to. Where an episode ends that is its last state, which the next
            episode's first one has replaced; else (so BeBold) it speaks of that first one.
    """

    VISITS = {"visits": Field((), np.int32, fits=forms.within(1, MOST_VISITS))}
    ARRIVALS = {"arrivals": Field((), np.int32, fits=forms.within(1, MOST_VISITS))}

    def __init__(self, num_envs: int, *, arrivals: bool = False):
        (self._field,) = self.ARRIVALS if arrivals else self.VISITS
        self._key = "arrival_counts" if arrivals else "counts"
        self.last_fields = ("frame",) if arrivals else ()
        self._counts = [Counter() for _ in range(num_envs)]
        self._row = {self._field: np.zeros(num_envs, np.int32)}

    def observe(self, out: Output, environment: Environment) -> dict[str, np.ndarray]:
        frames, row = out["frame"][..., -3:], self._row[self._field]
        for e, counts in enumerate(self._counts):
            ended = None
            if out["done"][e]:
                ended = _count(counts, out[LAST + "frame"][e, ..., -3:]) if self.last_fields else None
                counts.clear()
            visits = _count(counts, frames[e])
            row[e] = visits if ended is None else ended
        return self._row

    def state_dict(self) -> dict:
        return {self._key: [[(k.hex(), n) for k, n in counts.items()] for counts in self._counts]}

    def load_state_dict(self, state: dict) -> None:
        counts = forms.each(forms.each(forms.pair(forms.hexadecimal, VISITS)), count=len(self._counts))
        forms.record({self._key: counts})(WHERE, state)
        self._counts = [Counter({bytes.fromhex(k): n for k, n in counts}) for counts in state[self._key]]


def _count(counts: Counter, frame: np.ndarray) -> int:
    """How often it has been seen, now included."""
    key = frame.tobytes()
    counts[key] += 1
    return counts[key]


class Streams(MotivationActor):
    """Which environment's states these are, and how many came before: by that a learner knows which rollout goes on from which.

    Its fields, int64 [E] each: `stream_id`, a number that no other environment has, drawn from `generator` as the actor begins;
    `stream_clock`, the states since then. A rollout goes on from another one if it is of the same stream and its first state is
    the other's last, so that both have the same clock.
    """

    FIELDS = {
        "stream_id": Field((), np.int64, fits=forms.within(0, forms.MOST)),
        "stream_clock": Field((), np.int64, fits=forms.within(0, forms.MOST)),
    }

    def __init__(self, num_envs: int, generator: torch.Generator):
        stream = torch.randint(forms.MOST, (num_envs,), generator=generator).numpy()
        self._row = {"stream_id": stream, "stream_clock": np.full(num_envs, -1)}

    def observe(self, out: Output, environment: Environment) -> dict[str, np.ndarray]:
        self._row["stream_clock"] += 1
        return self._row

    def state_dict(self) -> dict:
        return {name: torch.from_numpy(values.copy()) for name, values in self._row.items()}

    def load_state_dict(self, state: dict) -> None:
        num_envs = len(self._row["stream_clock"])
        forms.record({name: field.form(num_envs) for name, field in self.FIELDS.items()})(WHERE, state)
        for name, values in state.items():
            self._row[name][...] = values.numpy()


class Watchers(MotivationActor):
    """Several as one: their fields and states together. What two of them have by one name must be the same for both."""

    def __init__(self, *watchers: MotivationActor):
        self._watchers = watchers
        self.last_fields = tuple(dict.fromkeys(name for watcher in watchers for name in watcher.last_fields))

    def observe(self, out: Output, environment: Environment) -> dict[str, np.ndarray]:
        return {name: field for watcher in self._watchers for name, field in watcher.observe(out, environment).items()}

    def refresh(self) -> None:
        for watcher in self._watchers:
            watcher.refresh()

    def state_dict(self) -> dict:
        return {name: value for watcher in self._watchers for name, value in watcher.state_dict().items()}

    def load_state_dict(self, state: dict) -> None:
        own = [watcher.state_dict().keys() for watcher in self._watchers]
        forms.record({name: forms.anything for names in own for name in names})(WHERE, state)
        for watcher, names in zip(self._watchers, own):
            watcher.load_state_dict({name: state[name] for name in names})
