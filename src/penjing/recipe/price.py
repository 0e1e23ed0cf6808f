"""The price of a recipe before anything is spent: each stage's estimate made from the estimates of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penjing.contract import CHECKPOINT, CORPUS, Estimate
from penjing.files import read_json, size_of
from penjing.recipe.schema import Recipe, Step


def price(recipe: Recipe) -> dict[str, Estimate]:
    """Stage name -> Estimate, in the recipe's order. Reads only the headers of artefacts that exist already."""
    found: dict[str, Estimate] = {}
    for step in recipe.steps:
        if step.given is not None:
            found[step.name] = of_artefact(step.given, step.output)
            continue
        assert step.module is not None
        inputs = {name: _estimates(value, step, name, found) for name, value in step.inputs.items()}
        found[step.name] = step.module.price(step.config, inputs)
    return found


def total(prices: Mapping[str, Estimate]) -> Estimate:
    """FLOPs and disk add up, memory is the largest stage's."""
    return Estimate(
        flops=sum(item.flops or 0 for item in prices.values()),
        memory_bytes=max((item.memory_bytes or 0 for item in prices.values()), default=0),
        disk_bytes=sum(item.disk_bytes or 0 for item in prices.values()),
    )


def of_artefact(path: Path, kind: str) -> Estimate:
    """What is known of an existing artefact from its description file."""
    if kind == CORPUS and (path / "corpus.json").is_file():
        corpus = read_json(path / "corpus.json")
        return Estimate(documents=corpus["documents"], text_bytes=corpus["text_bytes"], disk_bytes=size_of(path))
    if kind == CHECKPOINT and (path / "config.json").is_file():
        from penjing.models import cost

        config = read_json(path / "config.json")
        return Estimate(parameters=cost.count_parameters(config), vocab_size=config.get("vocab_size"), model=config,
                        disk_bytes=size_of(path))
    if path.exists():
        return Estimate(disk_bytes=size_of(path))
    return Estimate()


def _estimates(value: Any, step: Step, name: str, found: Mapping[str, Estimate]) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        return [_estimates(item, step, name, found) for item in value]
    if isinstance(value, Path):
        assert step.module is not None
        return of_artefact(value, step.module.INPUTS[name].rstrip("?*"))
    return found[value]
