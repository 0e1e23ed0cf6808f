"""The hold-out stage: two parts that share nothing and lose nothing, the same on every machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from penjing.contract import Job
from penjing.data.document import CorpusWriter, documents, open_corpus
from penjing.errors import GateError
from penjing.stages import hold_out


def corpus(path: Path, number: int) -> Path:
    with CorpusWriter(path, provenance={}) as writer:
        for shard in range(2):
            rows = [
                {"id": f"d{i}", "text": f"text {i}", "lang": "zh" if i % 3 else "en", "source": "s"}
                for i in range(shard, number, 2)
            ]
            writer.write(documents(rows), f"part-{shard:05d}")
    return path


def ids(path: Path) -> set[str]:
    return {name for batch in open_corpus(path).batches(["id"]) for name in batch.column("id").to_pylist()}


def part(
    tmp_path: Path, source: Path, name: str, workers: int = 1, **settings: object
) -> tuple[set[str], dict[str, object]]:
    out = tmp_path / name
    out.mkdir()
    figures = hold_out.run(hold_out.Config(**settings), {"corpus": source}, out, Job(workers=workers, engine="thread"))
    return ids(out), figures


def test_the_parts_are_disjoint_and_complete(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", 600)
    settings = {"fraction": 0.2, "fractions": {"en": 0.05}, "seed": 3}
    train, figures = part(tmp_path, source, "train", **settings)
    held, _ = part(tmp_path, source, "held", workers=2, part="held_out", **settings)
    assert not train & held
    assert len(train | held) == 600
    english = sum(int(name[1:]) % 3 == 0 for name in held)
    assert 0.15 < (len(held) - english) / 400 < 0.25
    assert 0.01 < english / 200 < 0.09
    assert figures["funnel"]["dropped"]["held_out"]["documents"] == len(held)
    assert not (tmp_path / "train" / "dropped").is_dir() or not list((tmp_path / "train" / "dropped").iterdir())


def test_another_seed_holds_out_other_documents(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", 300)
    one, _ = part(tmp_path, source, "one", part="held_out", fraction=0.2)
    two, _ = part(tmp_path, source, "two", part="held_out", fraction=0.2, seed=1)
    assert one != two


def test_an_empty_part_says_no(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="the held_out part is empty; found 3 documents; hold out a larger share"):
        part(tmp_path, corpus(tmp_path / "in", 3), "out", part="held_out", fraction=0.0001)
