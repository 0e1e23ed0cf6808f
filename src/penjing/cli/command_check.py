"""`penjing check RECIPE`: everything is validated and every stage priced; nothing runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from penjing.cli.tables import amount, print_table
from penjing.contract import Estimate
from penjing.recipe import price, schema, source

app = typer.Typer(add_completion=False)


@app.command()
def check(
    recipe: Annotated[str, typer.Argument(help="A recipe file or the name of a shipped one.")],
    sets: Annotated[list[str] | None, typer.Option("--set", help="As for `penjing run`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Validate a recipe whole and print the price of each stage: parameters, FLOPs, tokens, peak memory, disk."""
    checked = schema.check(source.read(recipe), sets=sets or [])
    prices = price.price(checked)
    if as_json:
        print(json.dumps({"version": 1, "recipe": checked.name, "seed": checked.seed,
                          "stages": [{"name": step.name, "kind": step.kind, **_plain(prices[step.name])}
                                     for step in checked.steps]}, ensure_ascii=False, indent=2))
        return
    rows = [[step.name, step.kind, *_cells(prices[step.name])] for step in checked.steps]
    total = price.total(prices)
    rows.append(["total", "", "", "", "", amount(total.flops), amount(total.memory_bytes, "B"), amount(total.disk_bytes, "B")])
    print_table(["stage", "kind", "documents", "tokens", "parameters", "FLOPs", "peak memory", "disk"], rows,
                title=f"{checked.name}: {len(checked.steps)} stages, seed {checked.seed}")
    for step in checked.steps:
        for note in prices[step.name].notes:
            print(f"{step.name}: {note}")


def _cells(estimate: Estimate) -> list[str]:
    return [amount(estimate.documents), amount(estimate.tokens), amount(estimate.parameters), amount(estimate.flops),
            amount(estimate.memory_bytes, "B"), amount(estimate.disk_bytes, "B")]


def _plain(estimate: Estimate) -> dict[str, Any]:
    found = asdict(estimate)
    found.pop("model")
    return found
