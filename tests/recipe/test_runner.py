"""The ledger: finished stages are skipped, changed ones refused, killed ones resumed to the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from penjing.errors import ConfigError, InputError
from penjing.files import hash_tree
from penjing.recipe import runner, schema, source
from penjing.rundir import VOLATILE, RunDir

from .conftest import write_documents


def check(text: str, *sets: str) -> schema.Recipe:
    return schema.check(source.parse(text, name="r.yaml"), sets=list(sets))


def contents(run_dir: Path) -> dict[str, str]:
    return {path.name: hash_tree(path, ignore=VOLATILE) for path in sorted(run_dir.glob("[0-9][0-9]-*"))}


def test_second_run_skips_everything(recipe_text: str, tmp_path: Path) -> None:
    first = runner.run(check(recipe_text), tmp_path / "run")
    before = contents(tmp_path / "run")
    second = runner.run(check(recipe_text), tmp_path / "run")
    assert first.ran == ("raw", "split", "unique") and second.ran == () and second.skipped == first.ran
    assert contents(tmp_path / "run") == before
    assert second.result == tmp_path / "run" / "03-unique"


def test_result_does_not_depend_on_workers_or_place(recipe_text: str, tmp_path: Path) -> None:
    runner.run(check(recipe_text), tmp_path / "one", workers=1)
    runner.run(check(recipe_text), tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_changed_setting_is_refused_and_named(recipe_text: str, tmp_path: Path) -> None:
    runner.run(check(recipe_text), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"02-split: stage 'split' is finished with other settings; "
                                          r"found fraction was 0.2, is 0.5; .*--restart-from split"):
        runner.run(check(recipe_text, "split.fraction=0.5"), tmp_path / "run")
    outcome = runner.run(check(recipe_text, "split.fraction=0.5"), tmp_path / "run", restart_from="split")
    assert outcome.skipped == ("raw",) and outcome.ran == ("split", "unique")


def test_changed_input_file_is_refused(recipe_text: str, documents: Path, tmp_path: Path) -> None:
    runner.run(check(recipe_text), tmp_path / "run")
    write_documents(documents, 20)
    with pytest.raises(ConfigError, match=r"the content of input 'file:.*documents.jsonl' changed"):
        runner.run(check(recipe_text), tmp_path / "run")


def test_damaged_stage_is_named(recipe_text: str, tmp_path: Path) -> None:
    runner.run(check(recipe_text), tmp_path / "run")
    shard = next((tmp_path / "run" / "01-raw").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"stage 'raw' is damaged: .*parquet has \d+ bytes instead of \d+"):
        runner.run(check(recipe_text), tmp_path / "run")


def test_until_stops_and_goes_on(recipe_text: str, tmp_path: Path) -> None:
    assert runner.run(check(recipe_text), tmp_path / "run", until="split").ran == ("raw", "split")
    assert runner.run(check(recipe_text), tmp_path / "run").ran == ("unique",)


def test_second_process_is_turned_away(recipe_text: str, tmp_path: Path) -> None:
    with RunDir(tmp_path / "run").exclusive(), pytest.raises(InputError, match=r"this run directory is in use; found process"):
        runner.run(check(recipe_text), tmp_path / "run")


def test_empty_corpus_is_one_sentence(recipe_text: str, documents: Path, tmp_path: Path) -> None:
    documents.write_text("")
    with pytest.raises(InputError) as caught:
        runner.run(check(recipe_text), tmp_path / "run")
    assert "\n" not in str(caught.value) and str(documents) in str(caught.value)


def test_repaired_input_of_a_failed_stage_needs_no_restart(recipe_text: str, documents: Path, tmp_path: Path) -> None:
    text = documents.read_text()
    documents.write_text("")
    with pytest.raises(InputError):
        runner.run(check(recipe_text), tmp_path / "run")
    documents.write_text(text)
    assert runner.run(check(recipe_text), tmp_path / "run").ran == ("raw", "split", "unique")


def test_kill_at_any_moment_then_run_again_gives_the_same_bytes(recipe_text: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(recipe_text)
    runner.run(check(recipe_text), tmp_path / "whole")
    command = [sys.executable, "-m", "penjing", "--quiet", "run", str(recipe), "--run-dir", str(tmp_path / "killed")]
    for wait in (0.5, 0.9, 1.3):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_full_disk_loses_nothing_finished(recipe_text: str, documents: Path, tmp_path: Path) -> None:
    """A file-size limit makes every write beyond it fail like a full disk does."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(recipe_text)
    write_documents(documents, 1500)
    command = [sys.executable, "-m", "penjing", "--quiet", "run", str(recipe), "--run-dir", str(tmp_path / "run")]
    subprocess.run([*command, "--until", "raw"], check=True, stdout=subprocess.DEVNULL)
    before = contents(tmp_path / "run")
    limited = ("import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
               "resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000)); "
               "from penjing.cli.main import main; main(sys.argv[1:])")
    failed = subprocess.run([sys.executable, "-c", limited, *command[3:]], capture_output=True, text=True)
    assert failed.returncode == 3, failed.stderr
    assert "no space left" in failed.stderr and len(failed.stderr.strip().splitlines()) == 1
    assert {name: value for name, value in contents(tmp_path / "run").items() if not name.endswith(".partial")} == before
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    runner.run(check(recipe_text), tmp_path / "whole")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_read_only_place_is_one_sentence(recipe_text: str, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        blocked = Path("/proc/penjing-run")  # root may write anywhere but here
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        blocked = tmp_path / "locked" / "run"
    with pytest.raises((InputError, FileNotFoundError)) as caught:
        runner.run(check(recipe_text), blocked)
    assert "\n" not in str(caught.value)


def test_first_ctrl_c_stops_between_stages_and_second_at_once(recipe_text: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(recipe_text)
    command = [sys.executable, "-m", "penjing", "run", str(recipe), "--run-dir", str(tmp_path / "run"), "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "raw" in line:
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait() == 130, rest
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runner.run(check(recipe_text), tmp_path / "whole")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_artefact_of_another_run_takes_a_stages_place(recipe_text: str, tmp_path: Path) -> None:
    runner.run(check(recipe_text), tmp_path / "first")
    outcome = runner.run(check(recipe_text, f"split={tmp_path / 'first' / '02-split'}"), tmp_path / "second")
    assert outcome.ran == ("unique",)
    assert contents(tmp_path / "second")["02-unique"] == contents(tmp_path / "first")["03-unique"]


def test_ledger_tells_what_happened(recipe_text: str, tmp_path: Path) -> None:
    runner.run(check(recipe_text), tmp_path / "run")
    events = [(event["event"], event["stage"]) for event in RunDir(tmp_path / "run").events()]
    assert events == [("start", "raw"), ("done", "raw"), ("start", "split"), ("done", "split"),
                      ("start", "unique"), ("done", "unique")]


def test_single_stage_runs_by_itself(recipe_text: str, documents: Path, tmp_path: Path) -> None:
    out = subprocess.run([sys.executable, "-m", "penjing", "--quiet", "stage", "collect", "--out", str(tmp_path / "raw"), "--set",
                          f"sources=[{{name: words, path: {documents}, lang: en}}]"], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout)["out"] == str(tmp_path / "raw")
    assert (tmp_path / "raw" / "corpus.json").is_file()


def test_input_that_changes_during_a_run_is_not_committed(recipe_text: str, documents: Path, tmp_path: Path) -> None:
    """A writer goes on appending while the stage reads: the stage must not be recorded as made from either state."""
    write_documents(documents, 30_000)

    def append() -> None:
        while not (tmp_path / "run" / "01-raw.partial").exists():
            time.sleep(0.001)
        with documents.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"id": "late", "text": "a late line that was written while the corpus was being read"}) + "\n")

    writer = threading.Thread(target=append)
    writer.start()
    with pytest.raises(InputError, match=r"raw: an input changed while the stage was reading it; found the content of input "
                                         r"'file:.*documents.jsonl' changed; let the writer finish"):
        runner.run(check(recipe_text), tmp_path / "run", until="raw")
    writer.join()
    assert RunDir(tmp_path / "run").finished("raw") is None
    assert runner.run(check(recipe_text), tmp_path / "run", until="raw").ran == ("raw",)


def test_truncated_and_non_utf8_files_are_named_and_the_rest_goes_on(tmp_path: Path, documents: Path) -> None:
    import gzip

    whole = gzip.compress(documents.read_bytes())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.jsonl").write_bytes(bytes(range(128, 256)) * 40)
    text = f"""penjing: 1
name: damaged
stages:
  raw:
    kind: collect
    max_damage: 0.5
    sources:
      - {{name: good, path: {documents}, lang: en}}
      - {{name: cut, path: {tmp_path}/cut.jsonl.gz, lang: en}}
  strict:
    kind: collect
    max_damage: 0
    sources: [{{name: noise, path: {tmp_path}/noise.jsonl, lang: en}}]
"""
    runner.run(check(text), tmp_path / "run", until="raw")
    record = RunDir(tmp_path / "run").record("raw") or {}
    assert record["figures"]["damaged_records"] >= 1 and record["figures"]["documents"] > 44
    with pytest.raises(InputError) as caught:
        runner.run(check(text), tmp_path / "run")
    assert "noise.jsonl" in str(caught.value) and "\n" not in str(caught.value)
    assert RunDir(tmp_path / "run").finished("raw") is not None
