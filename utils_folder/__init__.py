"""What AMIGo adds to an IMPALA agent: environments, goals, rewards, motivations, video.

gym and gym-minigrid announce their own end of life whenever they are imported. This project is pinned to them, so the notices
tell its users nothing they could act on: they are silenced here, before anything else of this package imports them.
"""

import warnings

import gym_notices.notices

gym_notices.notices.notices.clear()
with warnings.catch_warnings(record=True):  # recorded, not filtered: gym puts a filter of its own in front while it is imported
    import gym  # noqa: F401  (registers gym_minigrid's environments)
