"""`python -m tests.helpers.pages`: writes the tables of flags and of columns, as the program has them, into main/README.md."""

from __future__ import annotations

from main import settings as settings_module
from main.analysis.table import markdown, put_in
from main.training import recipe
from tests.helpers.program import ROOT
from torchbeast.core.columns import JOINS
from torchbeast.core.settings import sections, table

PAGE = ROOT / "main/README.md"
OF_EVERY_LOG = {"_tick": "number of the row", "_time": "seconds since 1970"}


def flags_table() -> str:
    """Every flag by its section."""
    groups = settings_module.groups()
    return "\n\n".join(f"**{title}**\n\n{table(flags)}" for title, flags in sections(groups).items())


def columns_table() -> str:
    """Every column of a log, with what several rows of it become when they are joined."""
    rows = [[f"`{name}`", meaning, "last"] for name, meaning in OF_EVERY_LOG.items()]
    for name, meaning, join, *_ in recipe.columns().values():
        rows.append([f"`{name}`", meaning, join if join in JOINS else f"mean over {join}"])
    return markdown(("column", "meaning", "joined by"), rows)


def tables() -> dict[str, str]:
    return {"flags": flags_table(), "columns": columns_table()}


if __name__ == "__main__":
    PAGE.write_text(put_in(PAGE.read_text(), tables()))
