"""The `--model` names: where an agent's intrinsic reward comes from. A new one is one file beside this and one line here."""

from __future__ import annotations

import difflib

from utils_folder.motivations.amigo import Amigo, WindowAmigo
from utils_folder.motivations.base import Motivation
from utils_folder.motivations.bebold import BeBold
from utils_folder.motivations.count import Count
from utils_folder.motivations.icm import Icm
from utils_folder.motivations.ride import Ride
from utils_folder.motivations.rnd import Rnd
from utils_folder.motivations.vanilla import Vanilla

MOTIVATIONS: dict[str, type[Motivation]] = {
    "default": Amigo,
    "window_adaptive": WindowAmigo,
    "novelty_based": BeBold,
    "vanilla": Vanilla,
    "count": Count,
    "rnd": Rnd,
    "icm": Icm,
    "ride": Ride,
}
ALIASES = {"window_addaptive": "window_adaptive"}  # so spelled in the document's own command


def canonical_name(name: str) -> str:
    """The registered name meant by `name`; ValueError with close matches if there is none."""
    name = ALIASES.get(name, name)
    if name not in MOTIVATIONS:
        close = difflib.get_close_matches(name, MOTIVATIONS, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown model {name!r}: choose from {', '.join(MOTIVATIONS)}{hint}")
    return name
