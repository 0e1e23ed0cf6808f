"""Tables on stdout, the same for every command."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Sequence


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Aligned columns; cells in columns that hold numbers everywhere are right-aligned; wide characters count as two."""
    if title:
        print(title)
    table = [list(header), *[list(row) for row in rows]]
    widths = [max(_width(row[column]) for row in table) for column in range(len(header))]
    numeric = [all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    room = shutil.get_terminal_size((200, 24)).columns if sys.stdout.isatty() else 10_000
    for index, row in enumerate(table):
        cells = []
        for column, cell in enumerate(row):
            pad = " " * (widths[column] - _width(cell))
            cells.append(pad + cell if numeric[column] else cell + pad)
        print("  ".join(cells).rstrip()[:room])
        if index == 0:
            print("  ".join("-" * width for width in widths)[:room])


def amount(value: float | None, unit: str = "") -> str:
    """A number people can read (12.3M, 4.5 GB, 2.8e+22); empty for unknown."""
    if value is None:
        return ""
    if abs(value) >= 1e15:
        return f"{value:.2e}{' ' + unit if unit else ''}"
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{' ' if unit else ''}{letter}{unit}"
    return f"{value:.4g}{' ' + unit if unit else ''}"


def _is_number(cell: str) -> bool:
    return not cell or cell[0].isdigit() or (cell[0] in "-+" and len(cell) > 1)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
