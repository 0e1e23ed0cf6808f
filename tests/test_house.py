"""The house rules that no linter knows: who may load torch, and that every room has a subject."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import penjing

LIGHT = ("penjing.cli", "penjing.recipe", "penjing.report", "penjing.stages", "penjing.data", "penjing.objectives",
         "penjing.models.families", "penjing.models.family", "penjing.models.cost", "penjing.contract", "penjing.rundir",
         "penjing.config", "penjing.lookup", "penjing.files", "penjing.console", "penjing.errors")
ROOT = Path(penjing.__file__).parent


def test_light_rooms_do_not_load_torch() -> None:
    modules = [info.name for info in pkgutil.walk_packages([str(ROOT)], "penjing.")
               if info.name.startswith(LIGHT) and not info.name.endswith("__main__")]
    assert len(modules) > 60
    script = ("import importlib, sys\n"
              f"for name in {modules!r}:\n"
              "    importlib.import_module(name)\n"
              "    heavy = [item for item in ('torch', 'transformers') if item in sys.modules]\n"
              "    assert not heavy, (name, heavy)\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_stages_import_nothing_heavy() -> None:
    names = [f"penjing.stages.{info.name}" for info in pkgutil.iter_modules([str(ROOT / "stages")])]
    assert len(names) > 20
    names += ["penjing.data.rules", "penjing.data.measures.edits"]  # rule sets are checked too
    script = ("import importlib, sys\n"  # `check` imports every stage of a recipe, and is to answer at once
              f"for name in {names!r}:\n"
              "    importlib.import_module(name)\n"
              "    heavy = [item for item in ('numba', 'polars', 'pyarrow', 'sentencepiece', 'tokenizers', 'tiktoken', 'torch',\n"
              "                               'transformers') if item in sys.modules]\n"
              "    assert not heavy, (name, heavy)\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_junk_rooms() -> None:
    junk = {"utils", "util", "common", "helpers", "base", "misc"}
    assert not [path for path in ROOT.rglob("*.py") if path.stem in junk or junk.intersection(path.parts)]


def test_package_data_is_under_two_megabytes() -> None:
    data = [path for path in ROOT.rglob("*") if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in data) < 2_000_000


def test_shipped_prose_is_large_and_varied_enough() -> None:
    import json

    lines = [json.loads(line) for path in sorted((ROOT / "samples").glob("prose_*.jsonl"))
             for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [line["text"] for line in lines]
    assert sum(len(text.encode()) for text in texts) >= 60_000
    assert len(set(texts)) == len(texts) and {line["lang"] for line in lines} == {"zh", "mixed"}
    openings = [text[:6] for text in texts]
    assert len(set(openings)) > 0.95 * len(openings)
