"""What AMIGo adds to an IMPALA agent: environments, goals, rewards, motivations, video."""

import models  # noqa: F401  (silences gym before anything here imports it)
