"""`penjing report RUN_DIR`: one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, finished or not.")],
    out: Annotated[Path | None, typer.Option(help="Where to write. Default: report.html in the run directory.")] = None,
) -> None:
    """Write the report of a run and print its path."""
    from penjing.report import render

    print(render.write_report(run_dir, out=out))
