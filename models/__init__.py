"""The student's networks by name. A new one is one file beside this and one line here.

gym and gym-minigrid announce their own end of life whenever they are imported. This project is pinned to them, so the notices
tell its users nothing they could act on: they are silenced here, in the lowest room that imports them, before anything does.
"""

import warnings

import gym_notices.notices

gym_notices.notices.notices.clear()
with warnings.catch_warnings(record=True):  # recorded, not filtered: gym puts a filter of its own in front while it is imported
    import gym  # noqa: F401  (registers gym_minigrid's environments)

from models.student import Student  # noqa: E402

STUDENTS = {
    "convolutional": Student,
}
