"""The stages perplexity-model and score: models from a corpus, tiers per language, cut-offs that later data is judged by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from penjing.config import generator
from penjing.contract import VOLATILE, Job
from penjing.data.document import CorpusWriter, documents, open_corpus
from penjing.data.perplexity.spread import buckets_needed, keys_of, percentiles, spread_of, together
from penjing.data.perplexity.tiers import weighted_percentiles
from penjing.errors import InputError
from penjing.files import hash_tree, read_json
from penjing.stages import perplexity_model, score

SENTENCES = {
    "en": [
        "the river runs to the sea",
        "a cloud hides the moon at night",
        "the doctor reads a long letter",
        "people walk over the old bridge",
        "winter comes early in the north",
    ],
    "zh": ["河水流向大海", "云遮住了夜里的月亮", "医生在读一封长信", "人们走过古老的桥", "北方的冬天来得早"],
}


def rows(number: int = 120, *, prefix: str = "d") -> list[dict[str, object]]:
    found = []
    for i in range(number):
        lang = "zh" if i % 2 else "en"
        rng = generator(5, prefix, i)
        text = "\n".join(SENTENCES[lang][j] for j in rng.integers(0, 5, 4))
        if i % 10 >= 8:  # a fifth of each language is noise
            text = " ".join("".join(chr(c) for c in rng.integers(97, 123, 6)) for _ in range(12))
        found.append({"id": f"{prefix}{i}", "text": text, "lang": lang, "source": "web" if i < number // 2 else "book"})
    return [
        *found,
        {"id": f"{prefix}-fr", "text": "bonjour", "lang": "fr", "source": "web"},
        {"id": f"{prefix}-empty", "text": "", "lang": "en", "source": "web"},
    ]


def corpus(path: Path, records: list[dict[str, object]], shards: int = 2) -> Path:
    with CorpusWriter(path, provenance={}) as writer:
        for shard in range(shards):
            writer.write(documents(records[shard::shards]), f"part-{shard:05d}")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    out = folder / "out"
    out.mkdir()
    figures = perplexity_model.run(
        perplexity_model.Config(order=3, min_count=1), {"corpus": corpus(folder / "in", rows())}, out, Job()
    )
    assert figures["languages"]["zh"]["ngrams"][0] == figures["languages"]["zh"]["words"]
    return out


def run(
    tmp_path: Path,
    name: str,
    records: list[dict[str, object]],
    model: Path,
    *,
    workers: int = 1,
    frozen: Path | None = None,
    **settings: object,
) -> tuple[Path, dict]:
    out = tmp_path / name
    out.mkdir()
    inputs = {"corpus": corpus(tmp_path / f"{name}-in", records), "model": model, "frozen": frozen}
    return out, score.run(score.Config(**settings), inputs, out, Job(workers=workers))


def tiers(path: Path) -> dict[str, str]:
    return {
        row["id"]: row["tier"]
        for shard in sorted((path / "scores").glob("*.parquet"))
        for row in pq.read_table(shard).to_pylist()
    }


def test_noise_lands_in_the_tail_and_goes(tmp_path: Path, model: Path) -> None:
    out, figures = run(tmp_path, "out", rows(), model, head=40, middle=80, low=0)
    kept = {name for batch in open_corpus(out).batches(["id"]) for name in batch.column("id").to_pylist()}
    said = tiers(out)
    assert said["d-fr"] == "all"
    assert said["d-empty"] == "tail"
    noise = {f"d{i}" for i in range(120) if i % 10 >= 8}
    assert not noise & kept
    assert len(kept) == 97
    assert figures["tiers"]["zh"]["tail"]["documents"] == 12
    dropped = [row for shard in (out / "dropped").glob("*.parquet") for row in pq.read_table(shard).to_pylist()]
    assert {row["rule"] for row in dropped} == {"perplexity-tail"}
    assert all(row["bound"].startswith(">= ") for row in dropped)


def test_scores_do_not_depend_on_workers_and_frozen_cuts_do_not_move(tmp_path: Path, model: Path) -> None:
    one, _ = run(tmp_path, "one", rows(), model)
    two, _ = run(tmp_path, "two", rows(), model, workers=2)
    assert hash_tree(one, ignore=VOLATILE) == hash_tree(two, ignore=VOLATILE)
    later, _ = run(tmp_path, "later", rows(60, prefix="e"), model, frozen=one)
    assert read_json(later / "cutoffs.json")["groups"] == read_json(one / "cutoffs.json")["groups"]
    fresh, _ = run(tmp_path, "fresh", rows(60, prefix="e"), model)
    assert read_json(fresh / "cutoffs.json")["groups"] != read_json(one / "cutoffs.json")["groups"]


def test_only_named_sources_are_cut_and_each_by_its_own_percentiles(tmp_path: Path, model: Path) -> None:
    out, figures = run(tmp_path, "out", rows(), model, sources=["web"], per_source=True)
    assert set(figures["cutoffs"]) == {"en/web", "zh/web"}
    assert {tier for name, tier in tiers(out).items() if name[1:].isdigit() and int(name[1:]) >= 60} == {"all"}


def test_pieces_make_a_model_that_scores(tmp_path: Path) -> None:
    out = tmp_path / "pieces"
    out.mkdir()
    settings = perplexity_model.Config(units="pieces", vocabulary=120, order=3, languages=("zh",), prune=(0,))
    figures = perplexity_model.run(settings, {"corpus": corpus(tmp_path / "in", rows())}, out, Job())
    assert figures["languages"]["zh"]["words"] <= 123
    scored, found = run(tmp_path, "out", rows(), out, head=40, middle=80, low=0)
    assert found["tiers"]["zh"]["tail"]["documents"] == 12
    assert found["tiers"]["en"] == {"all": {"documents": 61, "words": 0, "bytes": found["tiers"]["en"]["all"]["bytes"]}}
    assert open_corpus(scored).documents == 110


def test_a_language_without_text_is_a_fault_only_when_none_is_left(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", rows(10))
    with pytest.raises(InputError, match="no text in the wanted languages; found en, fr, zh; expected ja"):
        perplexity_model.run(perplexity_model.Config(languages=("ja",)), {"corpus": source}, tmp_path, Job())
    with pytest.raises(InputError, match=r"no model\.json here"):
        run(tmp_path, "out", rows(4), source)


@pytest.mark.parametrize("settings", [{}, {"basis": "words", "per_source": True},
                                      {"basis": "bytes", "sources": ("web",), "head": 10, "middle": 95}])
def test_cut_offs_found_in_parts_are_those_of_one_process(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch,
                                                         settings: dict[str, object]) -> None:
    one, figures = run(tmp_path, "one", rows(), model, **settings)
    monkeypatch.setattr(score, "IN_ONE_PROCESS", 0)
    parts, same = run(tmp_path, "parts", rows(), model, **settings)
    assert same == figures
    assert hash_tree(parts, ignore=VOLATILE) == hash_tree(one, ignore=VOLATILE)


def test_percentiles_of_parts_are_those_of_all_values() -> None:
    for trial in range(60):
        rng = generator(trial, "spread")
        number = int(rng.integers(1, 300))
        values = rng.integers(0, 5, number).astype(float) if trial % 3 == 0 else np.round(np.exp(rng.normal(5, 1.5, number)), trial % 4)
        weights = np.ones(number) if trial % 2 else rng.integers(1, 50, number).astype(float)
        percents = [0.5, 30, 60, *range(101)]
        whole = together(spread_of(values[part], weights[part]) for part in np.array_split(np.arange(number), trial % 5 + 1))
        inside = np.isin(keys_of(values), buckets_needed(whole, percents))
        assert percentiles(whole, percents, values[inside], weights[inside]) == weighted_percentiles(values, weights, percents)
