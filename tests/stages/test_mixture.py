"""The mixture stage: shares as asked, epochs capped, documents repeated under ids of their own, nothing left to chance."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from penjing.contract import VOLATILE, Job
from penjing.data.document import CorpusWriter, documents, open_corpus
from penjing.data.mixture import plan, times
from penjing.errors import ConfigError
from penjing.files import hash_tree
from penjing.stages import mixture


def corpus(path: Path, sources: dict[str, int], lang: str = "en") -> Path:
    with CorpusWriter(path, provenance={}) as writer:
        for source, number in sources.items():
            rows = [{"id": f"{source}{i}", "text": "x" * 100, "lang": lang, "source": source} for i in range(number)]
            writer.write(documents(rows), f"part-{source}")
    return path


def run(tmp_path: Path, name: str, corpora: list[Path], *, workers: int = 1, **settings: object) -> tuple[Path, dict]:
    out = tmp_path / name
    out.mkdir()
    return out, mixture.run(
        mixture.Config(**settings), {"corpora": corpora}, out, Job(workers=workers, engine="thread")
    )


def test_shares_are_met_and_epochs_capped() -> None:
    shares = plan(
        {"a": 100.0, "b": 1000.0, "c": 1000.0}, {"a": 2, "b": 1, "c": 1}, budget=800, epochs={"a": 3, "b": 1, "c": 1}
    )
    assert shares["a"].amount == pytest.approx(300) and shares["a"].capped and shares["a"].epochs == pytest.approx(3)
    assert shares["b"].amount == shares["c"].amount == pytest.approx(250)
    assert sum(share.amount for share in shares.values()) == pytest.approx(800)
    exact = plan({"a": 100.0, "b": 1000.0}, {"a": 1, "b": 4}, budget=None, epochs=1)
    assert (exact["a"].amount, exact["b"].amount) == (pytest.approx(100), pytest.approx(400))
    with pytest.raises(
        ConfigError,
        match="the budget is more than the sources have within their epochs; found 300; expected at most 200",
    ):
        plan({"a": 100.0, "b": 100.0}, {"a": 1, "b": 1}, budget=300, epochs=1)
    with pytest.raises(ConfigError, match="no text of source 'c'; expected one of a, b"):
        plan({"a": 100.0, "b": 100.0}, {"c": 1}, budget=None, epochs=1)
    assert [times(0.3, 2.5), times(0.7, 2.5), times(0.0, 0.0)] == [3, 2, 0]


def test_the_mixture_has_the_shares_and_the_repeats(tmp_path: Path) -> None:
    corpora = [corpus(tmp_path / "one", {"web": 1000, "code": 200}), corpus(tmp_path / "two", {"book": 50})]
    settings = {"weights": {"web": 0.5, "book": 0.5}, "epochs": 4, "tokens": 200 * 100 / 4 * 2, "seed": 2}
    out, figures = run(tmp_path, "out", corpora, **settings)
    seen = Counter(
        name.rstrip("0123456789").split("@")[0] if "@" not in name else "repeat"
        for batch in open_corpus(out).batches(["id"])
        for name in batch.column("id").to_pylist()
    )
    assert seen["repeat"] == 150 and seen["book"] == 50 and "code" not in seen
    assert 160 < seen["web"] < 240
    assert figures["sources"]["book"] == {
        **figures["sources"]["book"],
        "weight": 0.5,
        "epochs": 4.0,
        "documents": 200,
        "tokens": 5000.0,
    }
    assert figures["sources"]["book"]["share"] == pytest.approx(0.5, abs=0.06)
    assert figures["repeats"] == 150
    funnel = figures["funnel"]
    assert (
        funnel["in"]["en"]["documents"]
        == 1250
        == funnel["out"]["en"]["documents"] + funnel["dropped"]["not in the mixture"]["documents"]
    )
    again, _ = run(tmp_path, "again", corpora, workers=2, **settings)
    assert hash_tree(again, ignore=VOLATILE) == hash_tree(out, ignore=VOLATILE)


def test_a_larger_mixture_contains_the_smaller(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", {"web": 400})
    names = []
    for tokens in (2000, 6000):
        out, _ = run(tmp_path, f"out{tokens}", [source], tokens=tokens)
        names.append({name for batch in open_corpus(out).batches(["id"]) for name in batch.column("id").to_pylist()})
    assert names[0] < names[1]
