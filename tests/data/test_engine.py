"""The engine's promises: equal results, resume per unit, and faults within seconds instead of hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penjing.contract import Job
from penjing.data.engine import map_shards
from penjing.errors import ConfigError, InputError, Interrupted, PenjingError


def square(unit: dict) -> int:
    """Square of unit["n"]; leaves a mark in unit["seen"] when it is given."""
    if "seen" in unit:
        with Path(unit["seen"]).open("a") as file:
            file.write(f"{unit['n']}\n")
    return unit["n"] ** 2


def die_on_three(unit: dict) -> int:
    """Kill the worker on n = 3: always, or only while the file unit["once"] is absent."""
    if unit["n"] == 3 and not ("once" in unit and Path(unit["once"]).exists()):
        if "once" in unit:
            Path(unit["once"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return unit["n"]


def refuse(unit: dict) -> int:
    """A fault of the input on n = 2."""
    if unit["n"] == 2:
        raise InputError("file.jsonl:7: not JSON")
    return unit["n"]


def chatter(unit: dict) -> str:
    """Prints, which must not disturb the protocol, and returns a long text with newlines."""
    print("noise on stdout", flush=True)
    os.write(1, b"more noise\n")
    return "line\n" * 200_000 + str(unit["n"])


def units(number: int, **more: object) -> list[dict]:
    return [{"name": f"u{n}", "n": n, **more} for n in range(number)]


@pytest.mark.parametrize("job", [Job(), Job(workers=2), Job(workers=2, engine="thread")], ids=["one", "two", "thread"])
def test_every_engine_gives_the_same_results_in_order(job: Job) -> None:
    assert map_shards(square, units(7), job=job, label="squares") == [n * n for n in range(7)]


def test_finished_units_are_not_run_again(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    todo = units(4, seen=seen)
    map_shards(square, todo[:3], job=Job(workers=2), label="squares", state=tmp_path / "state")
    assert map_shards(square, todo, job=Job(), label="squares", state=tmp_path / "state") == [0, 1, 4, 9]
    assert sorted(seen.read_text().split()) == ["0", "1", "2", "3"]
    todo[0]["n"] = 5
    assert map_shards(square, todo, job=Job(), label="squares", state=tmp_path / "state")[0] == 25


def test_a_dead_worker_is_named_within_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(PenjingError, match=r"worker died \(killed by SIGKILL.*on unit 'u3', 2 times"):
        map_shards(die_on_three, units(6), job=Job(workers=2), label="work")
    assert time.monotonic() - began < 30


def test_a_worker_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    once = tmp_path / "once"
    assert map_shards(die_on_three, units(6, once=once), job=Job(workers=2), label="work") == list(range(6))


def test_a_fault_keeps_its_kind_and_words() -> None:
    with pytest.raises(InputError, match=r"^file\.jsonl:7: not JSON$"):
        map_shards(refuse, units(4), job=Job(workers=2), label="work")


def test_prints_and_long_results_pass_through_workers() -> None:
    texts = map_shards(chatter, units(3), job=Job(workers=2), label="work")
    assert [text[-1] for text in texts] == ["0", "1", "2"]
    assert all(len(text) == 1_000_001 for text in texts)


def test_a_script_without_a_main_guard_runs_or_says_why(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from penjing.contract import Job\nfrom penjing.data.engine import map_shards\n"
        "from shapes import area\n"
        "print(map_shards(area, [{'side': 2}, {'side': 3}], job=Job(workers=2), label='areas'))\n"
        "def inside(unit): return 1\n"
        "try:\n    map_shards(inside, [{}, {}], job=Job(workers=2), label='inside')\n"
        "except Exception as error:\n    print(error)\n")
    (tmp_path / "shapes.py").write_text("def area(unit):\n    return unit['side'] ** 2\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        "[4, 9]",
        "__main__: 'inside' cannot be run in worker processes; expected a function at the top of an importable module; "
        "move it out of the script into a module, or use one worker",
    ]


def test_a_stop_is_honoured_and_what_is_done_is_kept(tmp_path: Path) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(Interrupted):
        map_shards(square, units(9), job=Job(stop=stop), label="squares", state=tmp_path)
    assert 0 < len(list((tmp_path / "squares").glob("*.json"))) < 9
    assert map_shards(square, units(9), job=Job(), label="squares", state=tmp_path) == [n * n for n in range(9)]


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\n"
        "def sleep(unit):\n    pathlib.Path(unit['pid']).write_text(str(os.getpid()))\n    time.sleep(60)\n")
    script = tmp_path / "script.py"
    script.write_text(
        "from penjing.contract import Job\nfrom penjing.data.engine import map_shards\nfrom slow import sleep\n"
        f"map_shards(sleep, [{{'pid': '{tmp_path}/a'}}, {{'pid': '{tmp_path}/b'}}], job=Job(workers=2), label='z')\n")
    parent = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 30
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "ab"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    for name in "ab":
        pid = int((tmp_path / name).read_text())
        while _alive(pid):
            assert time.monotonic() < deadline + 10
            time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def sleep(unit: dict) -> int:
    """Hangs on n = 1 without using the processor."""
    if unit["n"] == 1:
        time.sleep(300)
    return unit["n"]


def test_a_hung_unit_is_reported_and_given_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("penjing.data.engine_local.REPORT_IDLE_SECONDS", 0.3)
    monkeypatch.setattr("penjing.data.engine_local.GIVE_UP_SECONDS", 2.0)
    with pytest.raises(PenjingError, match="on unit 'u1', 2 times"):
        map_shards(sleep, units(3), job=Job(workers=2), label="work")
    assert "work: unit 'u1' has used no processor time for" in capsys.readouterr().err


def spin(unit: dict) -> int:
    """Hangs on n = 1 in a loop, for two seconds."""
    began = time.monotonic()
    while unit["n"] == 1 and time.monotonic() - began < 2:
        pass
    return unit["n"]


@pytest.mark.parametrize("job", [Job(), Job(workers=2)], ids=["here", "worker"])
def test_a_unit_that_never_ends_is_named_while_it_runs(job: Job, monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("penjing.data.engine_local.SLOW_SECONDS", 0.1)
    monkeypatch.setattr("penjing.data.engine_local.SLOW_TIMES", 0.1)
    map_shards(spin, units(2), job=job, label="work")
    assert "work: unit 'u1' has been running for" in capsys.readouterr().err


def nap(unit: dict) -> int:
    """Waits for a second and a half without using the processor."""
    time.sleep(1.5)
    return unit["n"]


def test_a_unit_that_hangs_in_this_process_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("penjing.data.engine_local.REPORT_IDLE_SECONDS", 0.3)
    assert map_shards(nap, units(1), job=Job(), label="work") == [0]
    assert "work: unit 'u0' has used no processor time for" in capsys.readouterr().err


def test_workers_of_the_package_wait_for_the_next_stage_and_others_do_not(tmp_path: Path) -> None:
    from penjing.data import engine_local
    from penjing.data.document import CorpusWriter, documents
    from penjing.stages.normalise import normalise_unit

    engine_local.let_go()
    with CorpusWriter(tmp_path / "raw", provenance={}) as writer:
        for shard in "ab":
            writer.write(documents([{"id": shard, "text": "A text in plain English words.", "source": "s"}]), shard=shard)
    settings = {"languages": ["en"], "min_score": {"en": 0.5}}
    todo = [{"name": shard, "shard": tmp_path / "raw" / f"{shard}.parquet", "out": tmp_path / "out", "settings": settings}
            for shard in "ab"]
    first = map_shards(normalise_unit, todo, job=Job(workers=2), label="normalise")
    waiting = engine_local.spare_workers()
    assert len(waiting) == 2
    assert map_shards(normalise_unit, todo, job=Job(workers=2), label="normalise") == first
    assert sorted(engine_local.spare_workers()) == sorted(waiting)
    map_shards(square, units(2), job=Job(workers=2), label="squares")
    assert sorted(engine_local.spare_workers()) == sorted(waiting)
    os.kill(waiting[0], signal.SIGKILL)  # one that dies while it waits is replaced without a word
    while _alive(waiting[0]):
        time.sleep(0.01)
    assert map_shards(normalise_unit, todo, job=Job(workers=2), label="normalise") == first
    engine_local.let_go()
    assert not engine_local.spare_workers() and not _alive(waiting[1])


def test_unknown_engine() -> None:
    with pytest.raises(ConfigError, match="unknown engine 'rya'; expected one of local, thread, ray, slurm; "
                                          "did you mean 'ray'"):
        map_shards(square, units(2), job=Job(engine="rya"), label="squares")
