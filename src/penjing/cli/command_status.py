"""`penjing status RUN_DIR`: what is done, running, missing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from penjing.cli.tables import amount, print_table
from penjing.errors import InputError, fault
from penjing.files import read_json
from penjing.rundir import RunDir

app = typer.Typer(add_completion=False)


@app.command()
def status(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show each stage of a run: done, running, interrupted or missing, with its figures and time."""
    if not (run_dir / "run.json").is_file():
        raise InputError(fault("not a run directory", where=run_dir, expected="a directory with run.json"))
    plan = read_json(run_dir / "run.json")
    place = RunDir(run_dir)
    rows = [_row(place, stage) for stage in plan["stages"]]
    if as_json:
        print(json.dumps({"version": 1, "name": plan["name"], "running": _running(run_dir), "stages": rows},
                         ensure_ascii=False, indent=2))
        return
    print_table(["#", "stage", "kind", "state", "seconds", "figures"],
                [[str(row["number"]), row["name"], row["kind"], row["state"],
                  amount(row["seconds"]) if row["seconds"] is not None else "", row["note"]] for row in rows],
                title=f"{plan['name']} in {run_dir}{' (running)' if _running(run_dir) else ''}")


def _row(place: RunDir, stage: dict[str, Any]) -> dict[str, Any]:
    record = place.record(stage["name"])
    partial = place.partial(stage["name"])
    row = {"number": stage["number"], "name": stage["name"], "kind": stage["kind"], "seconds": None, "note": "", "figures": {}}
    if stage["given"]:
        return {**row, "state": "given", "note": stage["given"]}
    if record:
        figures = record["figures"]
        numbers = [f"{key} {amount(value)}" for key, value in figures.items()
                   if isinstance(value, (int, float)) and not isinstance(value, bool)]
        return {**row, "state": "done", "seconds": record["seconds"], "note": "  ".join(numbers[:4]), "figures": figures}
    if partial:
        return {**row, "state": "running" if _running(place.path) else "interrupted", "note": _last_metric(partial)}
    return {**row, "state": "missing"}


def _last_metric(partial: Path) -> str:
    path = partial / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in reversed(lines):
        try:
            last = json.loads(line)
        except json.JSONDecodeError:
            continue
        age = time.time() - last.pop("time_s", time.time())
        numbers = [f"{key} {amount(value)}" for key, value in last.items() if isinstance(value, (int, float))]
        return "  ".join(numbers[:5]) + f"  ({age:.0f} s ago)"
    return ""


def _running(run_dir: Path) -> bool:
    import fcntl

    path = run_dir / "run.lock"
    if not path.is_file():
        return False
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
