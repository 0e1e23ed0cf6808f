"""Carries out a checked recipe: skips what is finished, resumes what was interrupted, runs the rest."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from penjing import console
from penjing.contract import Job
from penjing.errors import ConfigError, InputError, Interrupted, PenjingError, fault
from penjing.files import disk_faults, hash_tree, write_json, write_text
from penjing.recipe.schema import Recipe, Step, stage_names
from penjing.rundir import VOLATILE, Identity, RunDir

CHEAP_SECONDS = 600.0
"""A failed attempt of less work than this is discarded without asking when its settings or inputs have changed since."""


@dataclass(frozen=True)
class Outcome:
    """What a run ended with."""

    run_dir: Path
    outputs: dict[str, Path]
    result: Path | None
    ran: tuple[str, ...]
    skipped: tuple[str, ...]


class Stop:
    """The user's wish to stop: the first Ctrl-C (or SIGTERM) asks, the second one insists."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM inside the block; elsewhere than the main thread nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                # Once asked, the command is on its way out: a late second Ctrl-C must not hit the interpreter's shutdown.
                signal.signal(number, signal.SIG_IGN if self.asked else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        console.say("stopping at the next safe point; press Ctrl-C again to stop at once (nothing finished is lost)")


def run(
    recipe: Recipe,
    run_dir: Path,
    *,
    workers: int = 1,
    engine: str = "local",
    until: str | None = None,
    restart_from: str | None = None,
    tensorboard: bool = False,
    after_stage: Callable[[Step, Path], None] | None = None,
) -> Outcome:
    """Run every stage of `recipe` that is not finished in `run_dir`.

    Raises ConfigError when a finished or interrupted stage was made with other settings, InputError for damaged or changing
    inputs, GateError from a gate, Interrupted after Ctrl-C. Whatever was finished stays.
    """
    if until is not None:
        recipe.step(until)
    place = RunDir(run_dir)
    outputs: dict[str, Path] = {}
    contents: dict[str, str] = {}
    ran: list[str] = []
    skipped: list[str] = []
    stop = Stop()
    with place.exclusive(), console.live(), stop.listening():
        if restart_from is not None:
            _restart(recipe, place, restart_from)
        _write_plan(recipe, place)
        total = len(recipe.steps)
        for number, step in enumerate(recipe.steps, 1):
            if stop():
                raise Interrupted(_interrupted(step.name, run_dir))
            if step.given is not None:
                outputs[step.name] = step.given
                contents[step.name] = hash_tree(step.given, ignore=VOLATILE)
                continue
            identity = _identity(step, outputs, contents)
            head = f"[{number}/{total}] {step.name}"
            done = _finished(place, step, identity)
            if done is not None:
                skipped.append(step.name)
                console.say(f"{head}: finished earlier")
                outputs[step.name], contents[step.name] = done, (place.record(step.name) or {})["content"]
            else:
                job = Job(workers=workers, engine=engine, tensorboard=tensorboard, stop=stop)
                outputs[step.name] = _carry_out(place, step, identity, outputs, number, head, job)
                contents[step.name] = (place.record(step.name) or {})["content"]
                ran.append(step.name)
                if after_stage is not None:
                    after_stage(step, outputs[step.name])
            if step.name == until:
                break
    result = outputs.get(recipe.result) if recipe.result else None
    return Outcome(run_dir, outputs, result, tuple(ran), tuple(skipped))


def run_stage(step: Step, out: Path, *, workers: int = 1, engine: str = "local", tensorboard: bool = False) -> dict[str, Any]:
    """One stage by itself, from given paths into `out` (which must not exist yet); the figures it returns."""
    if out.exists():
        raise InputError(fault("the output directory exists already", where=out, fix="choose another --out or remove it"))
    place = RunDir(out.parent / f".{out.name}.stage")
    contents: dict[str, str] = {}
    stop = Stop()
    with place.exclusive(), console.live(), stop.listening():
        identity = _identity(step, {}, contents)
        partial = place.partial(step.name)
        change = _partial_change(partial, identity) if partial else ""
        if change and _failed_early(place, step.name):
            place.discard(step.name)
        elif change:
            raise ConfigError(fault("an interrupted run with other settings is in the way", where=place.path, found=change,
                                    fix="remove that directory or repeat the earlier settings"))
        job = Job(workers=workers, engine=engine, tensorboard=tensorboard, stop=stop)
        final = _carry_out(place, step, identity, {}, 1, step.name, job)
        record = place.record(step.name) or {}
        final.rename(out)
    shutil.rmtree(place.path)
    return dict(record["figures"])


def _carry_out(place: RunDir, step: Step, identity: Identity, outputs: dict[str, Path], number: int, head: str,
               job: Job) -> Path:
    assert step.module is not None
    partial, resumed = place.begin(number, step.name, identity)
    console.say(f"{head}: {step.kind}{' (going on from where it stopped)' if resumed else ''}")
    started = time.monotonic()
    inputs = {name: _paths(value, outputs) for name, value in step.inputs.items()}
    job = Job(job.workers, job.engine, partial / "metrics.jsonl", job.tensorboard, job.stop)
    try:
        with disk_faults(partial):
            figures = step.module.run(step.config, inputs, partial, job)
        again = _identity(step, outputs, {})
        if again.inputs != identity.inputs:
            raise InputError(fault("an input changed while the stage was reading it", where=step.name,
                                   found=again.difference({"kind": step.kind, "version": identity.version,
                                                           "config": again.config, "inputs": identity.inputs}),
                                   fix="let the writer finish, then run the same command again"))
    except Interrupted as error:
        place.log("stop", step.name)
        raise Interrupted(_interrupted(step.name, place.path)) from error
    except PenjingError as error:
        place.log("fail", step.name, error=str(error), exit_code=error.exit_code)
        raise
    except KeyboardInterrupt:
        place.log("stop", step.name, hard=True)
        raise
    seconds = time.monotonic() - started
    final = place.commit(partial, step.name, identity, figures=figures, seconds=seconds)
    line = _summary(figures)
    console.say(f"{head}: done in {seconds:.1f} s{'  ' + line if line else ''}")
    return final


def _finished(place: RunDir, step: Step, identity: Identity) -> Path | None:
    done, record = place.finished(step.name), place.record(step.name)
    if done is None or record is None:
        partial = place.partial(step.name)
        if partial and (change := _partial_change(partial, identity)):
            if _failed_early(place, step.name):
                console.say(f"{step.name}: what the failed attempt left is discarded, its settings or inputs have changed")
                place.discard(step.name)
                return None
            raise ConfigError(fault(f"stage '{step.name}' was begun with other settings", where=partial, found=change,
                                    fix=f"use the earlier settings, or --restart-from {step.name}"))
        return None
    if record["fingerprint"] != identity.fingerprint:
        raise ConfigError(fault(f"stage '{step.name}' is finished with other settings", where=done,
                                found=identity.difference(record),
                                fix=f"use the earlier settings, another --run-dir, or --restart-from {step.name}"))
    damage = place.damage(step.name)
    if damage:
        raise InputError(fault(f"stage '{step.name}' is damaged: {damage}", where=done, fix=f"--restart-from {step.name}"))
    return done


def _failed_early(place: RunDir, stage: str) -> bool:
    """Whether the stage failed by itself after less than CHEAP_SECONDS of work, so that nothing dear is lost with it."""
    events = [event for event in place.events() if event["stage"] == stage]
    if not events or events[-1]["event"] != "fail":
        return False
    begun = [event["time_s"] for event in events if event["event"] in ("start", "resume")]
    return bool(begun) and events[-1]["time_s"] - begun[0] < CHEAP_SECONDS


def _partial_change(partial: Path, identity: Identity) -> str:
    from penjing.files import read_json

    if not (partial / "stage.json").is_file():  # killed between making the directory and writing the record
        write_json(partial / "stage.json", {"state": "partial", "fingerprint": identity.fingerprint, "name": "",
                                            "kind": identity.kind, "version": identity.version,
                                            "config": dict(identity.config), "inputs": dict(identity.inputs)})
        return ""
    record = read_json(partial / "stage.json")
    return "" if record.get("fingerprint") == identity.fingerprint else identity.difference(record)


def _identity(step: Step, outputs: dict[str, Path], contents: dict[str, str]) -> Identity:
    assert step.module is not None and step.config is not None

    def content(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, list):
            return [content(item) for item in value]
        if isinstance(value, Path):
            return hash_tree(value, ignore=VOLATILE)
        if value not in contents:
            contents[value] = hash_tree(outputs[value], ignore=VOLATILE)
        return contents[value]

    inputs = {name: content(value) for name, value in sorted(step.inputs.items())}
    external = getattr(step.module, "external", None)
    if external is not None:
        for path in external(step.config):
            inputs[f"file:{path}"] = hash_tree(path)
    return Identity(step.kind, step.module.VERSION, step.config.model_dump(mode="json"), inputs)


def _paths(value: Any, outputs: dict[str, Path]) -> Any:
    if isinstance(value, list):
        return [_paths(item, outputs) for item in value]
    return outputs[value] if isinstance(value, str) else value


def _restart(recipe: Recipe, place: RunDir, name: str) -> None:
    """Discard the stage and everything that was made from it."""
    recipe.step(name)
    doomed = {name}
    for step in recipe.steps:
        if any(used in doomed for value in step.inputs.values() for used in stage_names(value)):
            doomed.add(step.name)
    for step in recipe.steps:
        if step.name in doomed:
            place.discard(step.name)


def _write_plan(recipe: Recipe, place: RunDir) -> None:
    with disk_faults(place.path):
        write_text(place.path / "recipe.yaml", recipe.source.text)
        write_json(place.path / "run.json", {
            "version": 1, "name": recipe.name, "about": recipe.about, "seed": recipe.seed, "result": recipe.result,
            "sets": sorted(set(recipe.source.overrides.values())),
            "stages": [
                {
                    "number": number, "name": step.name, "kind": step.kind, "output": step.output,
                    "inputs": _plain(dict(step.inputs)), "given": str(step.given) if step.given else None,
                    "config": step.config.model_dump(mode="json") if step.config else {},
                }
                for number, step in enumerate(recipe.steps, 1)
            ],
        })


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return f"path:{value}" if isinstance(value, Path) else value


def _summary(figures: Any) -> str:
    """The figures a person wants to see at once: numbers at the top level."""
    shown = []
    for key, value in (figures or {}).items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        shown.append(f"{key.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{key.replace('_', ' ')} {value:.4g}")
    return "  ".join(shown[:5])


def _interrupted(stage: str, run_dir: Path) -> str:
    return fault(f"stopped in stage '{stage}'", where=run_dir, fix="run the same command again to go on from there")
