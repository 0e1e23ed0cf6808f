"""`penjing explain-sample RECIPE STAGE N`: one training sample as people read it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from penjing.errors import ConfigError, InputError, fault
from penjing.recipe import schema, source
from penjing.rundir import RunDir

app = typer.Typer(add_completion=False)


@app.command()
def explain_sample(
    recipe: Annotated[str, typer.Argument(help="A recipe file or the name of a shipped one.")],
    stage: Annotated[str, typer.Argument(help="A training stage of it.")],
    number: Annotated[int, typer.Argument(min=0, help="Row number, from 0, over all steps of the stage.")],
    run_dir: Annotated[Path | None, typer.Option(help="Run whose tokens are read. Default: runs/NAME.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="As for `penjing run`.")] = None,
    width: Annotated[int, typer.Option(min=40, help="Characters shown of each text.")] = 2000,
    plain: Annotated[bool, typer.Option("--plain", help="No colours (also when stdout is not a terminal).")] = False,
) -> None:
    """Print inputs, targets, masks and segments of one sample. The stages that make its tokens must be finished."""
    from penjing.objectives.explain import render
    from penjing.objectives.stream import StreamConfig, build_stream
    from penjing.tokenizer.encode import load_encoder

    checked = schema.check(source.read(recipe), sets=sets or [])
    step = checked.step(stage)
    if step.kind != "train" or step.config is None:
        raise ConfigError(fault(f"'{stage}' is not a training stage", found=step.kind, expected="a stage of kind train"))
    place = RunDir(run_dir or Path("runs") / checked.name)
    tokens = _made(checked, place, step.inputs["tokens"])
    [model] = _made(checked, place, step.inputs["checkpoint"])
    settings = {name: getattr(step.config, name) for name in StreamConfig.model_fields}
    stream = build_stream(StreamConfig.model_validate(settings), tokens)
    at, row = divmod(number, stream.num_rows)
    encoder = load_encoder(model)
    print(render(stream, at, row, decode=encoder.decode, colour=sys.stdout.isatty() and not plain, width=width))


def _made(recipe: schema.Recipe, place: RunDir, value: Any) -> list[Path]:
    found = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, Path):
            found.append(item)
            continue
        path = recipe.step(item).given or place.finished(item)
        if path is None:
            raise InputError(fault(f"stage '{item}' is not finished", where=place.path, fix=f"penjing run … --until {item}"))
        found.append(path)
    return found
