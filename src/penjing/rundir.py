"""A run directory: finished stages, the stage in progress, and the ledger of what happened.

    runs/quickstart/
      run.json  recipe.yaml          what was asked for, resolved
      ledger.jsonl                   one line per event: start, resume, done, skip, stop, fail
      01-english/stage.json …        finished: the directory name without `.partial` is the proof
      07-train.partial/stage.json    in progress or interrupted; the next run goes on from it

`stage.json` keeps a fingerprint of (kind, version, settings, content of the inputs) and a hash of the stage's own content.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penjing import __version__
from penjing.errors import InputError, fault
from penjing.files import canonical_json, disk_faults, hash_text, hash_tree, read_json, write_json

VOLATILE = frozenset({"metrics.jsonl", "log.txt", "tensorboard", "state", "stage.json", "samples-live.txt", "wandb"})
"""Names inside a stage's directory that do not count as content: timings, logs, resume state."""


@dataclass(frozen=True)
class Identity:
    """What makes a stage's result what it is."""

    kind: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, Any]
    """Input name -> content hash, or list of content hashes, or None."""

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that change when anything does that could change the result."""
        return hash_text(canonical_json([self.kind, self.version, self.config, self.inputs]))

    def difference(self, record: Mapping[str, Any]) -> str:
        """What in a stage.json differs from this identity, in words; empty when nothing does."""
        notes: list[str] = []
        if record.get("kind") != self.kind:
            notes.append(f"kind was {record.get('kind')}, is {self.kind}")
        if record.get("version") != self.version:
            notes.append(f"version of the stage was {record.get('version')}, is {self.version}")
        notes += _changed(record.get("config", {}), json.loads(canonical_json(self.config)), "")
        for name in sorted({*self.inputs, *record.get("inputs", {})}):
            if record.get("inputs", {}).get(name) != self.inputs.get(name):
                notes.append(f"the content of input '{name}' changed")
        return "; ".join(notes)


class RunDir:
    """One run directory. Reading needs no lock; `exclusive()` is held while stages are written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the directory for one process; InputError at once when another process has it."""
        with disk_faults(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / "run.lock").open("a+")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise InputError(fault("this run directory is in use", where=self.path, found=holder,
                                       fix="wait for it, stop it, or choose another --run-dir")) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def log(self, event: str, stage: str, **more: object) -> None:
        """Append one event to the ledger."""
        line = json.dumps({"time_s": round(time.time(), 3), "event": event, "stage": stage, **more}, ensure_ascii=False)
        with disk_faults(self.path), (self.path / "ledger.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def events(self) -> list[dict[str, Any]]:
        """The ledger, oldest first; a last line cut short by a kill is left out."""
        path = self.path / "ledger.jsonl"
        found = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def finished(self, stage: str) -> Path | None:
        """The directory of a finished stage, whatever its number; None when it is not finished."""
        found = [path for path in self.path.glob(f"[0-9][0-9]-{stage}") if (path / "stage.json").is_file()]
        return found[0] if found else None

    def partial(self, stage: str) -> Path | None:
        """The directory of a stage in progress or interrupted; None when there is none."""
        found = list(self.path.glob(f"[0-9][0-9]-{stage}.partial"))
        return found[0] if found else None

    def record(self, stage: str) -> dict[str, Any] | None:
        """stage.json of a finished stage."""
        path = self.finished(stage)
        return read_json(path / "stage.json") if path else None

    def begin(self, number: int, stage: str, identity: Identity) -> tuple[Path, bool]:
        """The directory to work in, and whether it holds earlier work to go on from."""
        partial = self.partial(stage)
        resumed = partial is not None
        with disk_faults(self.path):
            if partial is None:
                partial = self.path / f"{number:02d}-{stage}.partial"
                partial.mkdir()
                write_json(partial / "stage.json", {"state": "partial", **_facts(stage, identity)})
            _sweep(partial)
        self.log("resume" if resumed else "start", stage, fingerprint=identity.fingerprint)
        return partial, resumed

    def commit(self, partial: Path, stage: str, identity: Identity, *, figures: Mapping[str, Any], seconds: float) -> Path:
        """Make a stage final: hash its content, write stage.json, rename the directory."""
        with disk_faults(partial):
            if (partial / "state").exists():
                shutil.rmtree(partial / "state")
            _sweep(partial)
            content = hash_tree(partial, ignore=VOLATILE)
            sizes = {
                file.relative_to(partial).as_posix(): file.stat().st_size
                for file in sorted(partial.rglob("*"))
                if file.is_file() and not VOLATILE.intersection(file.relative_to(partial).parts)
            }
            write_json(partial / "stage.json", {
                "state": "done", **_facts(stage, identity), "content": content, "files": sizes,
                "figures": figures, "seconds": round(seconds, 3), "finished_s": round(time.time(), 3),
                "versions": versions(),
            })
            final = partial.with_name(partial.name.removesuffix(".partial"))
            partial.rename(final)
            _sync_directory(final.parent)
        self.log("done", stage, fingerprint=identity.fingerprint, content=content, seconds=round(seconds, 3))
        return final

    def damage(self, stage: str) -> str | None:
        """What is wrong with a finished stage's files (missing, other size), or None."""
        path, record = self.finished(stage), self.record(stage)
        if path is None or record is None:
            return None
        for name, size in record["files"].items():
            file = path / name
            if not file.is_file():
                return f"{file} is missing"
            if file.stat().st_size != size:
                return f"{file} has {file.stat().st_size} bytes instead of {size}"
        return None

    def discard(self, stage: str) -> None:
        """Remove a stage's finished and partial directories."""
        for path in (self.finished(stage), self.partial(stage)):
            if path is not None:
                with disk_faults(path):
                    doomed = path.with_name(f".discarded-{path.name}")
                    shutil.rmtree(doomed, ignore_errors=True)
                    path.rename(doomed)
                    shutil.rmtree(doomed)
                self.log("discard", stage)


def versions() -> dict[str, str]:
    """Versions of penjing, Python and the libraries whose numerics or formats reach the artefacts."""
    from importlib import metadata

    found = {"penjing": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "transformers", "tokenizers", "sentencepiece", "numpy", "pyarrow", "polars", "numba"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _facts(stage: str, identity: Identity) -> dict[str, Any]:
    return {
        "name": stage, "kind": identity.kind, "version": identity.version, "fingerprint": identity.fingerprint,
        "config": json.loads(canonical_json(identity.config)), "inputs": dict(identity.inputs),
    }


def _changed(old: Any, new: Any, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            note
            for key in sorted({*old, *new})
            for note in _changed(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    if old == new:
        return []
    return [f"{path} was {json.dumps(old, ensure_ascii=False)[:80]}, is {json.dumps(new, ensure_ascii=False)[:80]}"]


def _sweep(partial: Path) -> None:
    """Remove what a killed process left half-written (`.name.pid.tmp`); the directory is ours alone while we hold the lock."""
    for file in partial.rglob(".*.tmp"):
        file.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
