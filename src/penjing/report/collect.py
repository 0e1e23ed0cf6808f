"""Everything the report shows, read from a run directory as it stands; nothing is computed twice, nothing is loaded."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penjing.errors import InputError, fault
from penjing.files import read_json
from penjing.rundir import RunDir

MAX_CURVE_POINTS = 400


@dataclass(frozen=True)
class Stage:
    """One stage of the plan and what is known of it."""

    number: int
    name: str
    kind: str
    state: str
    """done, interrupted, missing or given."""
    path: Path | None
    inputs: Mapping[str, Any]
    config: Mapping[str, Any]
    figures: Mapping[str, Any]
    seconds: float | None
    metrics: tuple[Mapping[str, Any], ...] = field(repr=False, default=())


@dataclass(frozen=True)
class Model:
    """A checkpoint of the run: a row of the stage table."""

    stage: Stage
    config: Mapping[str, Any]
    parameters: int | None
    sizes: Mapping[str, int]
    tokens: float | None = None
    flops: float | None = None
    loss_before: float | None = None
    """Nats per token before a cut, where the cut measured it."""
    loss_after: float | None = None
    """Nats per token right after a cut, or the training loss at the end of a training stage."""


@dataclass(frozen=True)
class Run:
    """A run as the report sees it."""

    path: Path
    plan: Mapping[str, Any]
    recipe: str
    stages: tuple[Stage, ...]
    models: tuple[Model, ...]
    scores: Mapping[str, Mapping[str, Any]]
    samples: tuple[Mapping[str, Any], ...]
    versions: Mapping[str, str]
    events: tuple[Mapping[str, Any], ...]

    def of_kind(self, *kinds: str) -> list[Stage]:
        """Finished stages of these kinds, in order."""
        return [stage for stage in self.stages if stage.kind in kinds and stage.figures]


def collect(path: Path) -> Run:
    """The run in `path`; InputError when it is not a run directory."""
    if not (path / "run.json").is_file():
        raise InputError(fault("not a run directory", where=path, expected="a directory with run.json"))
    plan = read_json(path / "run.json")
    place = RunDir(path)
    stages = tuple(_stage(place, entry) for entry in plan["stages"])
    recipe = path / "recipe.yaml"
    scores: dict[str, Any] = {}
    samples: list[Any] = []
    for stage in stages:
        if stage.kind == "evaluate":
            scores.update(stage.figures.get("scores", {}))
            samples += stage.figures.get("samples", [])
    versions: dict[str, str] = {}
    for stage in stages:
        record = place.record(stage.name)
        versions.update(record["versions"] if record else {})
    return Run(path, plan, recipe.read_text(encoding="utf-8") if recipe.is_file() else "", stages,
               tuple(_models(stages, plan)), scores, tuple(samples), versions, tuple(place.events()))


def curve(stage: Stage, key: str) -> list[tuple[float, float]]:
    """(tokens, value) of a training stage's metric, thinned to MAX_CURVE_POINTS; of repeated steps the last counts."""
    found: dict[float, float] = {}
    for line in stage.metrics:
        if isinstance(line.get("tokens"), (int, float)) and isinstance(line.get(key), (int, float)):
            found[float(line["tokens"])] = float(line[key])
    points = sorted(found.items())
    step = max(1, len(points) // MAX_CURVE_POINTS)
    return points[::step] if step == 1 else [*points[::step], points[-1]]


def lineage(run: Run, name: str) -> list[Stage]:
    """The checkpoints a checkpoint was made from, oldest first, itself last."""
    by_name = {stage.name: stage for stage in run.stages}
    chain: list[Stage] = []
    current: str | None = name
    while current is not None and current in by_name and by_name[current] not in chain:
        chain.append(by_name[current])
        value = by_name[current].inputs.get("checkpoint")
        current = value if isinstance(value, str) and not value.startswith("path:") else None
    return chain[::-1]


def _stage(place: RunDir, entry: Mapping[str, Any]) -> Stage:
    record = place.record(entry["name"])
    finished, partial = place.finished(entry["name"]), place.partial(entry["name"])
    where = finished or partial
    state = "given" if entry["given"] else "done" if record else "interrupted" if partial else "missing"
    if entry["given"]:
        where = Path(entry["given"])
    metrics = tuple(_json_lines(where / "metrics.jsonl")) if where and (where / "metrics.jsonl").is_file() else ()
    return Stage(entry["number"], entry["name"], entry["kind"], state, where, entry["inputs"], entry["config"],
                 record["figures"] if record else {}, record["seconds"] if record else None, metrics)


def _models(stages: Iterable[Stage], plan: Mapping[str, Any]) -> list[Model]:
    from penjing.models import cost, family

    outputs = {entry["name"]: entry["output"] for entry in plan["stages"]}
    found = []
    for stage in stages:
        if outputs[stage.name] != "checkpoint" or stage.state not in ("done", "given") or stage.path is None:
            continue
        if not (stage.path / "config.json").is_file():
            continue
        config = read_json(stage.path / "config.json")
        parameters: int | None = None
        sizes: Mapping[str, int] = {}
        with contextlib.suppress(InputError):  # a family penjing has no table for: the row stays, without sizes
            parameters, sizes = cost.count_parameters(config), family.of(config).sizes(config)
        figures = stage.figures
        tokens = _number(figures, "tokens") if stage.kind == "train" else None
        flops = None
        if tokens and parameters:
            flops = tokens * cost.flops_per_token(config, sequence_length=int(stage.config["sequence_length"]))
        loss_after = _number(figures, "final_loss" if stage.kind == "train" else "loss_after")
        found.append(Model(stage, config, parameters, sizes, tokens, flops, _number(figures, "loss_before"), loss_after))
    return found


def _number(figures: Mapping[str, Any], key: str) -> float | None:
    value = figures.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _json_lines(path: Path) -> Iterable[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # the last line of a killed run may be cut short
            yield json.loads(line)
