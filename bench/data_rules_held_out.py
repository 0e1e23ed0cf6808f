"""`gopher-calibrated` on documents that its bounds were not fitted on: how often is the verdict datatrove's?

    python bench/data_rules_held_out.py --peer-python DATATROVE_VENV/bin/python [--json] [--megabytes 2]

Two questions. *Other documents*: the shipped bounds on documents of the same sources that the fit did not see. *Other sources*: bounds
fitted anew on half of the sources, tried on the other half, both ways round. Beside them `gopher` as published, on our words, and what a
filter that always keeps or always drops would agree on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from data_rules import PEER, calibrated

FITTED_MEGABYTES = 4.0
"""`python bench/data_rules.py --calibrate --megabytes 4` chose every k-th document."""


def held_out(shared: Path, megabytes: float, language: str) -> list[dict[str, str]]:
    """Every k-th of the documents that the fit did not see, with their source."""
    files = sorted((shared / "corpus" / language).glob("*.jsonl.gz"))
    files += [shared / "wiki/wiki_zh.jsonl.gz"] if language == "zh" else []
    rows: list[dict[str, str]] = []
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found = [{"id": row["id"], "text": row["text"], "source": path.name} for row in map(json.loads, file)]
        rows += [row for row in found if 0 < len(row["text"]) < 200_000]
    total = sum(len(row["text"].encode()) for row in rows)
    step = max(1, round(total / (FITTED_MEGABYTES * 1e6)))
    seen = {row["text"] for row in rows[::step]}
    fresh = [row for row in rows if row["text"] not in seen]
    size = sum(len(row["text"].encode()) for row in fresh)
    return fresh[:: max(1, round(size / (megabytes * 1e6)))]


def verdicts(rows: list[dict[str, str]], language: str, rule_set: str, bounds: dict[str, Any] | None = None) -> list[bool]:
    """Whether each document is dropped, on our words."""
    import pyarrow as pa

    from penjing.data import rules
    from penjing.data.rules_apply import apply, facts_of

    one = rules.load(rule_set, overrides=bounds)
    column = pa.array([row["text"] for row in rows], pa.large_string())
    facts = facts_of(column, [language] * len(rows), [None] * len(rows), one, rules.phrase_lists())
    return [rule is not None for rule in apply(facts, one).rule]


def same(mine: list[bool], theirs: list[bool]) -> float:
    """Share of equal verdicts."""
    return sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(theirs)


def crossed(rows: list[dict[str, str]], words: list[list[str]], theirs: list[bool], language: str) -> float:
    """Agreement with bounds fitted on every other source and tried on the rest, both ways."""
    names = sorted({row["source"] for row in rows})
    right = 0.0
    for turn in (0, 1):
        inside = [i for i, row in enumerate(rows) if names.index(row["source"]) % 2 == turn]
        outside = [i for i, row in enumerate(rows) if names.index(row["source"]) % 2 != turn]
        fitted = calibrated([rows[i] for i in inside], language, [words[i] for i in inside])
        bounds = {name: {language: item["bound"]} for name, item in fitted.items()}  # type: ignore[index]
        right += len(outside) * same(verdicts([rows[i] for i in outside], language, "gopher", bounds), [theirs[i] for i in outside])
    return right / len(rows)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("PENJING_SHARED", "../shared")) / "data")
    parser.add_argument("--languages", default="en,zh")
    parser.add_argument("--peer-python", required=True)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": f"{os.cpu_count()} cores {platform.machine()}", "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as folder:
        for language in options.languages.split(","):
            code = {"en": "eng", "zh": "cmn_Hani"}[language]
            rows = held_out(options.shared, options.megabytes, language)
            path, out, words_out = (Path(folder) / f"{language}.{end}" for end in ("jsonl", "out", "words"))
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            subprocess.run([options.peer_python, "-c", PEER, str(path), code, str(out), str(words_out)], check=True, stdout=sys.stderr,
                           env={**os.environ, "OMP_NUM_THREADS": "1"})
            words = [json.loads(line) for line in words_out.open(encoding="utf-8")]
            said = json.loads(out.read_text())["verdicts"]
            theirs = [any(row[key] is not True for key in ("gopher_repetition", "gopher_quality")) for row in said]
            dropped = sum(theirs) / len(theirs)
            result[language] = {
                "documents": len(rows),
                "sources": len({row["source"] for row in rows}),
                "datatrove_drops": round(dropped, 4),
                "one_answer_for_all": round(max(dropped, 1 - dropped), 4),
                "gopher": round(same(verdicts(rows, language, "gopher"), theirs), 4),
                "gopher_calibrated_other_documents": round(same(verdicts(rows, language, "gopher-calibrated"), theirs), 4),
                "calibrated_other_sources": round(crossed(rows, words, theirs, language), 4),
            }
    print(json.dumps(result, ensure_ascii=False, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
