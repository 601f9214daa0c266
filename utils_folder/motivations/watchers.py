"""What actors can note of the states that they arrive in, ready-made: visits in the episode, and whose states they are."""

from __future__ import annotations

import numpy as np
import torch

from models.distinct import Rows
from models.grid import CELL_CHANNELS
from torchbeast.core import forms
from torchbeast.core.environment import LAST, Environment, Output
from torchbeast.core.rollouts import Field
from utils_folder.motivations.base import MotivationActor

MOST_VISITS = 2**31 - 1
VISITS = forms.whole(1, MOST_VISITS // 2)  # of an episode that goes on
LEAST_ROOM = 1024
WHERE = "source/actor/motivation"  # a watcher's state in a checkpoint


class EpisodicCounts(MotivationActor):
    """Counts how often each frame has been seen in the current episode of each environment; of stacked ones the newest.

    Its field says how often the state has been visited, this visit included: int32 [E], from 1 on.
    Each episode has its own number: e, plus E for each one before it in the environment. It is part of a state, so an end costs
    nothing: what has been seen in episodes that have ended is found no more, and is left out where room is wanted.

    Args:
        frame_shape: (W, H, 3k).
        arrivals: the array of the output, "frame" or "view", in which it counts arrivals: it speaks of the state that the step
            led to. Where an episode ends that is its last state, which the next episode's first one has replaced; None: it
            speaks of that first one (so BeBold), by its "frame".
    """

    VISITS = {"visits": Field((), np.int32, fits=forms.within(1, MOST_VISITS))}

    @classmethod
    def arrivals(cls, frame: str) -> dict[str, Field]:
        """Its field where it counts arrivals in this array."""
        return {"arrivals" if frame == "frame" else f"{frame}_arrivals": cls.VISITS["visits"]}

    @classmethod
    def note(cls, row: dict[str, np.ndarray], frame: str) -> tuple[str, str]:
        """What a video says of these arrivals."""
        (field,) = cls.arrivals(frame)
        return f"visits of this {'state' if frame == 'frame' else frame}", str(row[field][0])

    def __init__(self, num_envs: int, frame_shape: tuple[int, int, int], *, arrivals: str | None = None):
        (self._field,) = self.arrivals(arrivals) if arrivals else self.VISITS
        self._key = f"{self._field.removesuffix('s')}_counts" if arrivals else "counts"
        self._frame, self.last_fields = arrivals or "frame", (arrivals,) if arrivals else ()
        self._size = frame_shape[0] * frame_shape[1] * CELL_CHANNELS
        self._row = {self._field: np.zeros(num_envs, np.int32)}
        self._begin()

    def _begin(self) -> None:
        self._episode = np.arange(len(self._row[self._field]))
        self._states, self._visits = Rows(LEAST_ROOM, self._size), np.zeros(LEAST_ROOM, np.int32)

    def observe(self, out: Output, environment: Environment) -> dict[str, np.ndarray]:
        done, ended = out["done"], None
        if np.count_nonzero(done):
            if self.last_fields:
                ended = self._visit(out[LAST + self._frame][done, ..., -CELL_CHANNELS:], self._episode[done])
            self._episode[done] += len(done)
        row = self._row[self._field]
        row[...] = self._visit(out[self._frame][..., -CELL_CHANNELS:], self._episode)
        if ended is not None:
            row[done] = ended
        return self._row

    def _visit(self, frame: np.ndarray, episode: np.ndarray, times: int = 1) -> np.ndarray:
        """How often these states [N, ...] of different episodes have been visited, so many times more included: int32 [N]."""
        if not self._states.has_room(len(frame)):
            self._make_room(len(frame))
        _, state = self._states.find(frame, episode)
        visits = self._visits[state] + times
        self._visits[state] = visits
        return visits

    def _make_room(self, count: int) -> None:
        """For so many more states, and for as many again as there are in the present episodes, which alone are kept."""
        present = self._present()
        visits = self._visits[: len(present)][present]
        self._states.keep(present, 2 * (len(visits) + count))
        self._visits = np.zeros(self._states.capacity, np.int32)
        self._visits[: len(visits)] = visits

    def _present(self) -> np.ndarray:
        """Which states have been visited in the present episodes: bool [found]."""
        _, episode = self._states.content()
        return self._episode[episode % len(self._episode)] == episode

    def state_dict(self) -> dict:
        """The states of each present episode, in the order of their first visits, and how often each has been visited."""
        counts = [[] for _ in self._episode]
        frame, episode = self._states.content()
        for state in np.flatnonzero(self._present()):
            counts[episode[state] % len(counts)].append((frame[state].tobytes().hex(), int(self._visits[state])))
        return {self._key: counts}

    def load_state_dict(self, state: dict) -> None:
        counts = forms.each(forms.pair(forms.hexadecimal(self._size), VISITS))
        forms.record({self._key: forms.each(counts, count=len(self._episode))})(WHERE, state)
        self._begin()
        for e, counts in enumerate(state[self._key]):
            for frame, visits in counts:
                self._visit(np.frombuffer(bytearray.fromhex(frame), np.uint8)[None], self._episode[e : e + 1], visits)


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
