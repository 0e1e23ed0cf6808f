"""More than one machine: a real two-worker Ray cluster that loses a worker, and Slurm arrays through their own commands."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from penjing.contract import VOLATILE, Job
from penjing.data.document import CorpusWriter, documents, open_corpus
from penjing.data.engine import map_shards
from penjing.data.engine_ray import _connect
from penjing.errors import InputError, PenjingError
from penjing.files import hash_tree
from penjing.stages import normalise

ROWS = [{"id": f"{n}", "text": f"盆景是一門藝術，這是第{n}段文字。", "source": "s"} for n in range(30)]


def die_once(unit: dict) -> int:
    """Kills its own process the first time unit 2 is run."""
    mark = Path(unit["mark"])
    if unit["n"] == 2 and not mark.exists():
        mark.touch()
        os._exit(1)
    return unit["n"] * 10


def refuse(unit: dict) -> int:
    """A fault of the input."""
    raise InputError("part.jsonl:3: not JSON")


def crash(unit: dict) -> int:
    """A bug."""
    return 1 // (unit["n"] - unit["n"])


@pytest.fixture()
def corpus(tmp_path: Path) -> Path:
    with CorpusWriter(tmp_path / "corpus", provenance={}) as writer:
        for shard in range(3):
            writer.write(documents(ROWS[shard * 10 : shard * 10 + 10]), shard=f"part-{shard:05d}")
    return tmp_path / "corpus"


def run_stage(corpus: Path, out: Path, job: Job) -> str:
    out.mkdir()
    normalise.run(normalise.Config(), {"corpus": corpus}, out, job)
    assert open_corpus(out).documents == 30
    return hash_tree(out, ignore=VOLATILE)


@pytest.mark.slow
def test_ray_gives_the_same_files_and_loses_nothing_when_a_worker_dies(tmp_path: Path, corpus: Path) -> None:
    ray = pytest.importorskip("ray")
    job = Job(workers=2, engine="ray")
    assert run_stage(corpus, tmp_path / "ray", job) == run_stage(corpus, tmp_path / "local", Job())
    assert not ray.is_initialized()
    _connect(ray, 2)  # a cluster that is there already is used and left alone
    try:
        check_faults(tmp_path, job)
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def check_faults(tmp_path: Path, job: Job) -> None:
    """A dead worker costs nothing, a fault keeps its kind, a bug names its unit."""
    units = [{"name": f"u{n}", "n": n, "mark": tmp_path / "mark"} for n in range(6)]
    assert map_shards(die_once, units, job=job, label="work") == [0, 10, 20, 30, 40, 50]
    assert (tmp_path / "mark").exists()
    with pytest.raises(InputError, match=r"^part\.jsonl:3: not JSON$"):
        map_shards(refuse, units[:2], job=job, label="work")
    with pytest.raises(PenjingError, match=r"unit 'u0' failed in a Ray task:[\s\S]*ZeroDivisionError"):
        map_shards(crash, units[:1], job=job, label="work")


SBATCH = """#!/bin/sh
# The part of sbatch that is used, run here: every task of the array one after another.
for argument in "$@"; do
  case "$argument" in
    --array=0-*) last=${argument#--array=0-} ;;
  esac
  command=$argument
done
echo "$@" >> "$SLURM_RECORD"
(task=0; while [ $task -le $last ]; do SLURM_ARRAY_TASK_ID=$task sh -c "$command" >> "$SLURM_RECORD.out" 2>&1
 task=$((task + 1)); done; rm -f "$SLURM_RECORD.running") &
echo $! > "$SLURM_RECORD.running"
echo "42;cluster"
"""
SQUEUE = """#!/bin/sh
test -f "$SLURM_RECORD.running" && echo "42 RUNNING"
exit 0
"""


@pytest.fixture()
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sbatch and squeue on the PATH that run the array on this machine."""
    place = tmp_path / "bin"
    place.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", "#!/bin/sh\nexit 0\n")):
        (place / name).write_text(text)
        (place / name).chmod((place / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_RECORD", str(tmp_path / "record"))
    monkeypatch.setenv("PENJING_SBATCH", "--partition=cpu --mem=4G")
    monkeypatch.setattr("penjing.data.engine_slurm.POLL_SECONDS", 0.1)
    return tmp_path / "record"


@pytest.mark.slow
def test_slurm_arrays_give_the_same_files(tmp_path: Path, corpus: Path, slurm: Path) -> None:
    assert run_stage(corpus, tmp_path / "slurm", Job(workers=2, engine="slurm")) == run_stage(corpus, tmp_path / "local", Job())
    assert "--parsable --array=0-1 --job-name=penjing-normalise" in slurm.read_text()
    assert "--partition=cpu --mem=4G" in slurm.read_text()


@pytest.mark.slow
def test_a_slurm_array_that_loses_a_unit_is_named_and_goes_on_when_run_again(tmp_path: Path, slurm: Path) -> None:
    units = [{"name": f"u{n}", "n": n, "mark": tmp_path / "mark"} for n in range(4)]
    job = Job(workers=4, engine="slurm")
    with pytest.raises(PenjingError, match=r"work: Slurm job 42 ended without 1 of 4 units; found first missing 'u2'"):
        map_shards(die_once, units, job=job, label="work", state=tmp_path / "state")
    assert map_shards(die_once, units, job=job, label="work", state=tmp_path / "state") == [0, 10, 20, 30]
    with pytest.raises(InputError, match=r"^part\.jsonl:3: not JSON$"):
        map_shards(refuse, units[:1], job=job, label="other", state=tmp_path / "state")
