"""Supervised items in their prompts: form by hash, nothing lost in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from penjing.contract import Job
from penjing.data.document import SCHEMA, CorpusWriter, open_corpus
from penjing.errors import GateError, InputError
from penjing.stages import supervise


def corpus(path: Path, metas: list[dict[str, str]], lang: str = "en") -> Path:
    rows = [{"id": f"i{index}", "url": None, "source": "s", "text": meta.pop("text", f"Ask {index}?"), "lang": lang,
             "meta": json.dumps(meta)} for index, meta in enumerate(metas)]
    with CorpusWriter(path, provenance={}) as writer:
        writer.write(pa.Table.from_pylist(rows, schema=SCHEMA))
    return path


def run(path: Path, out: Path, **settings: object) -> tuple[dict, list[dict]]:  # type: ignore[type-arg]
    out.mkdir()
    figures = supervise.run(supervise.Config(**settings), {"corpus": path}, out, Job())  # type: ignore[arg-type]
    return figures, [row for batch in open_corpus(out).batches() for row in batch.to_pylist()]


def test_text_is_prompt_and_answer_and_forms_vary(tmp_path: Path) -> None:
    figures, rows = run(corpus(tmp_path / "c", [{"output": f"Yes {index}."} for index in range(40)]), tmp_path / "out")
    prompts = [json.loads(row["meta"])["prompt"] for row in rows]
    assert {prompt.split(":")[0] for prompt in prompts} == {"Question", "Q"}
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        assert row["text"] == prompt + f"Yes {index}." and f"Ask {index}?" in prompt
        assert json.loads(row["meta"])["answer"] == f"Yes {index}."
    assert figures["tasks"] == {"task": 40}


def test_items_without_answer_are_counted_and_set_aside(tmp_path: Path) -> None:
    figures, rows = run(corpus(tmp_path / "c", [{"output": "A"}, {"output": ""}, {"other": "x"}]), tmp_path / "out")
    assert len(rows) == 1 and figures["funnel"]["dropped"]["no answer"]["documents"] == 2
    totals = {name: sum(item["documents"] for item in figures["funnel"][name].values()) for name in ("in", "out", "dropped")}
    assert totals["in"] == totals["out"] + totals["dropped"]


def test_form_does_not_depend_on_order(tmp_path: Path) -> None:
    run(corpus(tmp_path / "c", [{"output": str(index)} for index in range(20)]), tmp_path / "a")
    run(corpus(tmp_path / "d", [{"output": str(index)} for index in range(20)]), tmp_path / "b")
    assert [p.read_bytes() for p in (tmp_path / "a").glob("*.parquet")] == [p.read_bytes() for p in (tmp_path / "b").glob("*.parquet")]


def test_unknown_field_in_a_form_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names a field the item does not have: 'choices'"):
        run(corpus(tmp_path / "c", [{"output": "A"}]), tmp_path / "out", prompts={"en": ["{prompt}\n{choices}\n"]})


def test_nothing_left_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="no supervised item is left"):
        run(corpus(tmp_path / "c", [{"output": "A"}], lang="de"), tmp_path / "out")
