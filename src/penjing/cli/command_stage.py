"""`penjing stage KIND`: any single stage by itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from penjing import lookup
from penjing.errors import ConfigError, fault
from penjing.recipe import schema, source

app = typer.Typer(add_completion=False)


@app.command()
def stage(
    kind: Annotated[str, typer.Argument(help="A stage kind (`penjing list stages`).")],
    out: Annotated[Path, typer.Option(help="Directory to make; must not exist yet.")],
    inputs: Annotated[list[str] | None, typer.Option("--input", help="name=PATH; repeat for a list.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with the stage's settings.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="key=value.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes for data work.")] = os.cpu_count() or 1,
    engine: Annotated[str, typer.Option(help="local, thread, ray or slurm.")] = "local",
) -> None:
    """Run one stage from existing artefacts into a new directory; its figures go to stdout as JSON."""
    from penjing.recipe import runner

    module = lookup.module("penjing.stages", kind, what="stage kind")
    entry: dict[str, Any] = dict(source.read(str(config)).values) if config else {}
    for option in sets or []:
        key, equals, text = option.partition("=")
        if not equals:
            raise ConfigError(fault("not an assignment", where=f"--set {option}", expected="key=value"))
        target = entry
        *path, last = key.split(".")
        for step in path:
            target = target.setdefault(step, {})
        target[last] = source.scalar(text)
    origin: dict[str, Any] = {}
    for option in inputs or []:
        name, equals, text = option.partition("=")
        if not equals:
            raise ConfigError(fault("not an input", where=f"--input {option}", expected="name=PATH"))
        path_text = str(Path(text).expanduser().absolute())
        if str(module.INPUTS.get(name, "")).rstrip("?").endswith("*"):
            origin.setdefault(name, []).append(path_text)
        else:
            origin[name] = path_text
    step_name = out.name.lower() if schema.is_name(out.name.lower()) else "stage"
    try:
        recipe = schema.check(source.Source(f"penjing stage {kind}", "", {
            "penjing": 1, "name": "stage", "stages": {step_name: {"kind": kind, "from": origin or None, **entry}}}))
    except ConfigError as error:
        raise ConfigError(f"{error}\n`penjing list stages {kind}` shows its inputs and settings; "
                          "inputs are given as --input name=PATH, settings as --set key=value or --config FILE") from error
    figures = runner.run_stage(recipe.steps[0], out, workers=workers, engine=engine)
    print(json.dumps({"out": str(out), **figures}, ensure_ascii=False, indent=2))
