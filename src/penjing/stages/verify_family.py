"""Prove an architecture's table of axes on tiny random models: cutting equals masking along every axis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penjing.config import Config as Settings
from penjing.contract import CHECKPOINT, FILES, Estimate, Inputs, Job
from penjing.errors import GateError, fault
from penjing.files import write_json

VERSION = 1
INPUTS = {"checkpoint": CHECKPOINT + "?"}
OUTPUT = FILES


class Config(Settings):
    """Which tables to prove; a checkpoint input gives the configuration instead (its weights are not read)."""

    families: list[str] = []
    """Model types; empty means all that have built-in examples."""
    seed: int = 0
    """Seed of the random weights and cuts."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    import torch

    from penjing.models import tiny
    from penjing.prune.verify import verify

    cases = {}
    if inputs.get("checkpoint") is not None:
        cases["checkpoint"] = tiny.like(Path(inputs["checkpoint"]), seed=config.seed)
    else:
        for name in tiny.cases(config.families):
            cases[name] = tiny.make(name, seed=config.seed)
    results: dict[str, list[dict[str, Any]]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are far too small to share out
    for name, model in cases.items():
        checks = verify(model, seed=config.seed)
        results[name] = [{"check": check.name, "passed": check.passed, "detail": check.detail} for check in checks]
        job.record(case=name, checks=len(checks), failed=sum(not check.passed for check in checks))
    torch.set_num_threads(threads)
    write_json(out / "verified.json", {"version": 1, "cases": results})
    failed = [(name, item) for name, items in results.items() for item in items if not item["passed"]]
    if failed:
        name, item = failed[0]
        raise GateError(fault(f"{len(failed)} checks failed, first '{item['check']}' of {name}", where=out / "verified.json",
                              found=item["detail"]))
    return {"cases": len(results), "checks": sum(len(items) for items in results.values()), "failed": 0}


def price(config: Config, inputs: Mapping[str, Estimate]) -> Estimate:
    return Estimate(memory_bytes=5e8, disk_bytes=1e5)
