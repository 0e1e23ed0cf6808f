"""`penjing plan prune MODEL --keep 0.35`: a schedule of cuts that a person can read before anything is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from penjing.cli.tables import amount, print_table
from penjing.errors import ConfigError, InputError, fault
from penjing.files import read_json

app = typer.Typer(add_completion=False)


@app.command()
def plan(
    what: Annotated[str, typer.Argument(help="What to plan: prune.")],
    model: Annotated[Path, typer.Argument(help="A checkpoint directory (only its config.json is read).")],
    keep: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of the parameters that stays.")] = 0.5,
    sequence_length: Annotated[int, typer.Option(min=1, help="Tokens per sequence, for FLOPs.")] = 2048,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Propose stages (how much to cut in each, depth before width) with parameters, FLOPs and recovery tokens."""
    from penjing.prune.propose import propose

    if what != "prune":
        raise ConfigError(fault(f"nothing to plan is called '{what}'", expected="prune"))
    if not (model / "config.json").is_file():
        raise InputError(fault("not a model", where=model, expected="a directory with config.json"))
    schedule = propose(read_json(model / "config.json"), keep, sequence_length=sequence_length)
    if as_json:
        print(json.dumps({"version": 1, "model": str(model), "keep": keep, "stages": [item.as_json() for item in schedule]},
                         ensure_ascii=False, indent=2))
        return
    names = list(schedule[0].sizes)
    print_table(["stage", "#params", *[name.replace("_", " ") for name in names], "FLOPs/token", "recovery tokens", "settings"],
                [[item.name, amount(item.parameters), *[str(item.sizes[name]) for name in names], amount(item.flops_per_token),
                  amount(item.recovery_tokens) if item.recovery_tokens else "", json.dumps(item.settings) if item.settings else ""]
                 for item in schedule])
