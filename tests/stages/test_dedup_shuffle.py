"""De-duplication in parts over files: the same bytes as in one process, for any number of parts, workers and shards' sizes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penjing.config import generator
from penjing.contract import VOLATILE, Job
from penjing.data.document import SCHEMA, CorpusWriter, ShardWriter, documents, finish_corpus
from penjing.data.engine_ray import _connect
from penjing.errors import InputError
from penjing.files import hash_tree
from penjing.stages import dedup
from tests.data.test_clusters import slurm  # noqa: F401 - a fixture

NOTICE = "All rights to the texts on this site stay with the people who wrote them, and copies need leave."


def article(name: int, words: int) -> list[str]:
    rng = generator(11, "shuffle", name)
    return [f"w{n}" for n in rng.integers(0, 4000, words)]


def crawl(seed: int, size: int) -> list[dict[str, Any]]:
    """Singles, copies of every kind, chains of edits, one address for many texts, and documents that tie in everything."""
    rng = generator(seed, "crawl")
    rows: list[dict[str, Any]] = []
    for n in range(size):
        words = article(int(rng.integers(0, size // 2)), int(40 + n % 50))
        for at in rng.choice(len(words), int(rng.integers(0, 4)), replace=False):
            words[at] = f"x{at}"
        text = " ".join(words) + ("\n" + NOTICE if n % 3 == 0 else "")
        page = int(rng.integers(0, size))
        url = None if n % 4 else f"https://site{page % 7}.org/p/{page % 40}"
        rows.append({"id": f"d{n}", "text": text, "lang": "en", "source": ("web", "books", None)[n % 3], "url": url})
    for n in range(40):
        rows.append({"id": f"c{n}", "text": " ".join(article(10_000 + n, 50)), "source": "feed", "url": "https://feed.org/all"})
    rows += [{"id": "same", "text": "the very same text of more than twenty letters", "source": "web"} for _ in range(9)]
    rows += [{"id": None, "text": "the very same text of more than twenty letters", "source": "web"} for _ in range(3)]
    rows += [{"id": f"e{n}", "text": "", "lang": "zh", "source": "web", "url": "http://www.empty.org/"} for n in range(3)]
    order = rng.permutation(len(rows))
    return [rows[i] for i in order]


def write(path: Path, rows: list[dict[str, Any]], shards: int) -> Path:
    edges = np.linspace(0, len(rows), shards + 1).astype(int)
    with CorpusWriter(path, provenance={}) as writer:
        for n, (low, high) in enumerate(itertools.pairwise(edges.tolist())):
            writer.write(documents(rows[low:high]), f"part-{n:05d}")
    with ShardWriter(path / "part-00001x.parquet") as empty:
        empty.write(SCHEMA.empty_table())
    finish_corpus(path, provenance={})
    return path


def run(out: Path, corpus: Path, old: Path | None, job: Job, **settings: Any) -> tuple[str, dict[str, Any]]:
    out.mkdir()
    figures = dedup.run(dedup.Config(**settings), {"corpus": corpus, "old": old}, out, job)
    return hash_tree(out, ignore=VOLATILE), figures


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("crawls")
    return write(place / "first", crawl(1, 300), 5), write(place / "second", crawl(2, 200), 3)


@pytest.mark.parametrize("url_filter", ["exact", "bloom"])
def test_parts_and_workers_change_no_byte(corpora: tuple[Path, Path], tmp_path: Path, url_filter: str) -> None:
    settings = {"url_filter": url_filter, "keep_index": True, "paragraphs": "line", "source_priority": ("books",), "url_max_texts": 6}
    ways = {"one": (1, Job()), "two": (2, Job()), "seven": (7, Job(workers=2, engine="thread")), "many": (25, Job())}
    if url_filter == "bloom":
        ways = {name: ways[name] for name in ("one", "seven")}
    first, second = {}, {}
    for name, (parts, job) in ways.items():
        first[name] = run(tmp_path / f"{name}-1", corpora[0], None, job, partitions=parts, **settings)
        second[name] = run(tmp_path / f"{name}-2", corpora[1], tmp_path / f"{name}-1", job, partitions=parts, **settings)
    _, figures = first["one"]
    dropped = figures["funnel"]["dropped"]
    assert all(dropped[rule]["documents"] > 8 for rule in ("url", "exact", "near"))
    assert figures["near"]["addresses_of_many_texts"]["documents"] >= 40
    assert figures["funnel"]["edited"]["paragraph"]["documents"] > 20
    for name in ways:
        assert first[name] == first["one"]
        assert second[name] == second["one"]
    assert second["one"][1]["funnel"]["dropped"]["near"]["documents"] > 20
    assert second["one"][1]["index"]["documents"] > first["one"][1]["index"]["documents"]


@pytest.mark.parametrize(
    "settings",
    [{"near": "simhash", "distance": 3}, {"near": "minhash", "exact": False}, {"near": "off"}, {"url": False, "similarity": 0.4}],
    ids=lambda settings: "-".join(f"{k}={v}" for k, v in settings.items()),
)
def test_every_switch_works_in_parts(corpora: tuple[Path, Path], tmp_path: Path, settings: dict[str, Any]) -> None:
    whole = run(tmp_path / "whole", corpora[0], None, Job(), partitions=1, **settings)
    assert run(tmp_path / "parts", corpora[0], None, Job(), partitions=3, **settings) == whole
    assert whole[1]["funnel"]["dropped"]


def test_an_interrupted_run_in_parts_ends_byte_identical(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", corpora[1], None, Job(), partitions=3, near="minhash", bands=4)
    (tmp_path / "torn").mkdir()
    asked, stops = 0, 0

    def stop() -> bool:  # asks to stop after every seventh unit
        nonlocal asked
        asked += 1
        return asked % 8 == 0

    config = dedup.Config(partitions=3, near="minhash", bands=4)
    while True:
        try:
            dedup.run(config, {"corpus": corpora[1], "old": None}, tmp_path / "torn", Job(stop=stop))
            break
        except BaseException as error:
            assert "stopped on request" in str(error)
            stops += 1
    assert stops >= 4
    assert hash_tree(tmp_path / "torn", ignore=VOLATILE) == whole


@pytest.mark.slow
def test_ray_tasks_give_the_same_bytes(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    settings = {"near": "minhash", "bands": 4, "paragraphs": "block", "keep_index": True}
    whole = run(tmp_path / "whole", corpora[1], None, Job(), partitions=1, **settings)
    _connect(ray, 2)  # one cluster for all steps; without it every step starts one of its own
    try:
        assert run(tmp_path / "ray", corpora[1], None, Job(workers=2, engine="ray"), partitions=3, **settings) == whole
    finally:
        ray.shutdown()


def test_more_documents_than_have_numbers_are_refused(corpora: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penjing.data.dedup.columns.MOST_DOCUMENTS", 100)
    with pytest.raises(InputError, match=r"too many documents for one run; found 25\d with the old index; expected fewer than 100"):
        run(tmp_path / "out", corpora[1], None, Job())


@pytest.mark.slow
def test_slurm_arrays_give_the_same_bytes(corpora: tuple[Path, Path], tmp_path: Path, slurm: Path) -> None:  # noqa: F811
    settings = {"near": "minhash", "bands": 2}
    whole = run(tmp_path / "whole", corpora[1], None, Job(), partitions=1, **settings)
    assert run(tmp_path / "slurm", corpora[1], None, Job(workers=1, engine="slurm"), partitions=2, **settings) == whole
    for step in ("unfold", "ranks", "addresses", "texts", "candidates", "verify", "stars", "conclude"):
        assert f"--job-name=penjing-{step}" in slurm.read_text()
