"""The shipped recipes run whole, survive a kill to the byte, and end in a model that plain transformers loads."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penjing.files import hash_tree, read_json
from penjing.recipe import source
from penjing.rundir import VOLATILE

pytestmark = pytest.mark.slow

QUICK = ["base.tokens=24000", "stage-1.tokens=24000", "stage-2.tokens=8000", "stage-3.tokens=8000", "layers-recovered.tokens=12000",
         "width-recovered.tokens=12000", "docstring_bytes=150000", "topics_bytes=150000", "scores.documents_per_language=4",
         "scores.max_new_tokens=8", "base-shape.num_layers=4", "base-shape.hidden_size=64", "base-shape.ffn_size=96"]
"""Quickstart with every stage, a fraction of the text and of the training."""


def command(recipe: str, run_dir: Path, sets: list[str]) -> list[str]:
    options = [part for item in sets for part in ("--set", item)]
    return [sys.executable, "-m", "penjing", "--quiet", "run", recipe, "--run-dir", str(run_dir), *options]


def contents(run_dir: Path) -> dict[str, str]:
    return {path.name: hash_tree(path, ignore=VOLATILE) for path in sorted(run_dir.glob("[0-9][0-9]-*"))}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("quickstart") / "run"
    done = subprocess.run(command("quickstart", run_dir, QUICK), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^model: .*small$", done.stdout, re.M) and re.search(r"^report: .*report.html$", done.stdout, re.M)
    return run_dir


def test_every_stage_of_quickstart_is_finished(quick: Path) -> None:
    plan = read_json(quick / "run.json")
    assert len(plan["stages"]) > 25
    assert {path.name for path in quick.glob("[0-9][0-9]-*")} == {f"{s['number']:02d}-{s['name']}" for s in plan["stages"]}


def test_model_loads_without_penjing(quick: Path) -> None:
    [model] = quick.glob("*-small")
    script = ("import sys\nsys.modules['penjing'] = None\n"
              "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
              f"tokenizer = AutoTokenizer.from_pretrained({str(model)!r})\n"
              f"model = AutoModelForCausalLM.from_pretrained({str(model)!r})\n"
              "ids = tokenizer('春天 The function', return_tensors='pt')\n"
              "out = model.generate(**{k: v for k, v in ids.items() if k != 'token_type_ids'}, max_new_tokens=8, do_sample=False)\n"
              "assert tokenizer.decode(tokenizer('春天 The function')['input_ids'], skip_special_tokens=True) == '春天 The function'\n"
              "assert out.shape[1] > ids['input_ids'].shape[1]\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_generate_answers_in_both_languages(quick: Path) -> None:
    [model] = quick.glob("*-small")
    done = subprocess.run([sys.executable, "-m", "penjing", "generate", str(model), "盆景是", "The function returns"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "盆景是" in done.stdout and "The function returns" in done.stdout and len(done.stdout) > 40


def test_report_shows_every_part(quick: Path) -> None:
    page = (quick / "report.html").read_text(encoding="utf-8")
    for part in ("corpus", "scorecard", "rules", "audit", "stages", "loss", "bits", "vocabulary", "samples", "time", "recipe"):
        assert f'id="{part}"' in page, part


def test_cleaning_finds_most_of_what_was_added(quick: Path) -> None:
    [card] = quick.glob("*-cleaning")
    scores = read_json(card / "scores.json")
    shares = {(item["what"], item["lang"]): item for item in read_json(card / "stage.json")["figures"]["table"]}
    assert shares["recall of what should vanish", "all"]["low"] > 0.6
    assert shares["documents lost for good", "all"]["high"] < 0.3
    assert scores["version"] == 1


def test_kill_again_and_again_gives_the_same_bytes(quick: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    kills, deadline = 0, time.monotonic() + 900
    for wait in (4, 7, 10, 13, 16, 16, 16):
        process = subprocess.Popen(command("quickstart", run_dir, QUICK), start_new_session=True, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=wait)
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills >= 3 and time.monotonic() < deadline
    subprocess.run(command("quickstart", run_dir, QUICK), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert contents(run_dir) == contents(quick)


def test_any_checkpoint_takes_the_place_of_the_base(shared: Path, quick: Path, tmp_path: Path) -> None:
    base = shared / "models" / "stories260K"
    sets = [item for item in QUICK if not item.startswith("base")]
    done = subprocess.run([*command("quickstart", tmp_path / "run", [*sets, f"base={base}"]), "--until", "cut-layers"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "run").glob("*-base*"))


def test_bilingual_small_runs_whole(shared: Path, tmp_path: Path) -> None:
    sets = [f"data={shared}", f"base={shared / 'models' / 'stories260K'}", "source_bytes=60000", "stage-1.tokens=16000",
            "stage-2.tokens=8000", "stage-3.tokens=8000", "layers-recovered.tokens=8000", "width-recovered.tokens=8000",
            "scores.documents_per_language=2", "scores.max_new_tokens=8", "grown.size=1024",
            "grown-random.size=1024", "grown-mean.size=1024",
            "exercises.count=200", "held-out.fraction=0.1", "clean.fraction=0.1"]
    done = subprocess.run(command("bilingual-small", tmp_path / "run", sets), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = json.loads(next((tmp_path / "run").glob("*-scores/scores.json")).read_text())["models"]
    assert scores["grown"]["zh"]["bits_per_byte"] < scores["grown-random"]["zh"]["bits_per_byte"]


def test_clean_crawl_takes_web_archives_to_an_audited_corpus(shared: Path, tmp_path: Path) -> None:
    sets = [f"input={shared / 'dirty' / 'warc'}"]
    done = subprocess.run(command("clean-crawl", tmp_path / "run", sets), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [unique] = (tmp_path / "run").glob("*-unique")
    figures = read_json(next((tmp_path / "run").glob("*-raw")) / "stage.json")["figures"]
    kept = read_json(unique / "corpus.json")["documents"]
    assert figures["documents"] > 100 and figures["damaged_records"] and 10 < kept < figures["documents"]
    assert (unique / "index").is_dir() and (tmp_path / "run" / "report.html").is_file()
    assert subprocess.run(command("clean-crawl", tmp_path / "run", sets), capture_output=True, text=True).returncode == 0


def test_every_shipped_recipe_has_a_test() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert all(f'"{name}"' in text for name in source.shipped())
