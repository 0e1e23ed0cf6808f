"""The dedup stage: copies go, singles stay, whatever the order, the number of workers or an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from penjing.config import generator
from penjing.contract import VOLATILE, Job
from penjing.data.document import CorpusWriter, documents, open_corpus
from penjing.errors import InputError
from penjing.files import hash_tree
from penjing.stages import dedup

WORDS = [
    "river",
    "stone",
    "cloud",
    "engine",
    "market",
    "paper",
    "window",
    "garden",
    "signal",
    "doctor",
    "winter",
    "planet",
    "bridge",
    "copper",
    "forest",
    "letter",
]


def article(name: int, words: int = 120) -> str:
    rng = generator(7, "article", name)
    return " ".join(
        f"{WORDS[i]}{j}" for i, j in zip(rng.integers(0, 16, words), rng.integers(0, 40, words), strict=True)
    )


def rows() -> list[dict[str, object]]:
    texts = {
        "a": article(1),
        "a-punctuated": article(1).replace(" ", ", ", 30) + " 👍🏽!!",
        "b": article(2),
        "b-edited": article(2).replace(article(2).split()[60], "changed", 1),
        "c": article(3),
        "short": "好",
        "short-again": "好！",
        "page": article(4),
        "page-again": article(5, 60),
    }
    found = [{"id": name, "text": text, "lang": "en", "source": "web"} for name, text in texts.items()]
    found[-2]["url"] = "http://www.site.org/page/"
    found[-1]["url"] = "https://site.org/page?utm_source=mail"
    return found


def make(path: Path, records: list[dict[str, object]], shards: int = 2) -> Path:
    with CorpusWriter(path, provenance={"made": "for a test"}) as writer:
        for shard in range(shards):
            writer.write(documents(records[shard::shards]), f"part-{shard:05d}")
    return path


def kept(path: Path) -> set[str]:
    return {name for batch in open_corpus(path).batches(["id"]) for name in batch.column("id").to_pylist()}


def dropped(path: Path) -> dict[str, tuple[str, str]]:
    found = {}
    for shard in sorted((path / "dropped").glob("*.parquet")):
        for row in pq.read_table(shard).to_pylist():
            found[row["id"]] = (row["rule"], row["kept"])
    return found


def run(
    tmp_path: Path,
    records: list[dict[str, object]],
    name: str,
    *,
    shards: int = 2,
    workers: int = 1,
    engine: str = "local",
    old: Path | None = None,
    **settings: object,
) -> tuple[Path, dict[str, object]]:
    out = tmp_path / name
    out.mkdir()
    corpus = make(tmp_path / f"{name}-in", records, shards)
    return out, dedup.run(
        dedup.Config(**settings), {"corpus": corpus, "old": old}, out, Job(workers=workers, engine=engine)
    )


def test_each_kind_of_copy_goes_and_names_what_stays(tmp_path: Path) -> None:
    out, figures = run(tmp_path, rows(), "out")
    assert kept(out) == {"a", "b", "c", "short", "short-again", "page"} or kept(out) == {
        "a",
        "b-edited",
        "c",
        "short",
        "short-again",
        "page",
    }
    said = dropped(out)
    assert said["a-punctuated"] == ("exact", "a")
    assert said["page-again"] == ("url", "page")
    near = ({"b", "b-edited"} - kept(out)).pop()
    assert said[near] == ("near", ({"b", "b-edited"} & kept(out)).pop())
    funnel = figures["funnel"]
    assert (
        funnel["in"]["en"]["documents"]
        == 9
        == funnel["out"]["en"]["documents"] + sum(item["documents"] for item in funnel["dropped"].values())
    )
    assert funnel["in"]["en"]["bytes"] == funnel["out"]["en"]["bytes"] + sum(
        item["bytes"] for item in funnel["dropped"].values()
    )
    json.dumps(figures, allow_nan=False)


def test_clusters_do_not_depend_on_order_shards_or_workers(tmp_path: Path) -> None:
    first, _ = run(tmp_path, rows(), "first", near="both")
    for number, (shards, workers) in enumerate([(1, 1), (3, 2)]):
        order = generator(number, "order").permutation(9)
        other, _ = run(
            tmp_path, [rows()[i] for i in order], f"other{number}", shards=shards, workers=workers, near="both"
        )
        assert kept(other) == kept(first)
        assert dropped(other) == dropped(first)


def test_a_second_pass_drops_nothing(tmp_path: Path) -> None:
    out, _ = run(tmp_path, rows(), "once")
    again = tmp_path / "twice"
    again.mkdir()
    figures = dedup.run(dedup.Config(), {"corpus": out, "old": None}, again, Job())
    assert figures["funnel"]["dropped"] == {}


def test_an_interrupted_run_ends_byte_identical(tmp_path: Path) -> None:
    whole, _ = run(tmp_path, rows(), "whole")
    torn = tmp_path / "torn"
    torn.mkdir()
    corpus = make(tmp_path / "torn-in", rows())
    asked = iter([False, False, False, True])
    with pytest.raises(BaseException, match="stopped on request"):
        dedup.run(dedup.Config(), {"corpus": corpus, "old": None}, torn, Job(stop=lambda: next(asked, True)))
    dedup.run(dedup.Config(), {"corpus": corpus, "old": None}, torn, Job())
    assert hash_tree(torn, ignore=VOLATILE) == hash_tree(whole, ignore=VOLATILE)


def test_new_text_is_checked_against_an_old_index(tmp_path: Path) -> None:
    old, figures = run(tmp_path, rows()[:5], "old", keep_index=True)
    assert figures["index"]["documents"] == 3
    fresh = [
        {"id": "n1", "text": article(1) + " Etc.", "source": "new"},
        {"id": "n2", "text": article(9), "source": "new"},
    ]
    out, figures = run(tmp_path, fresh, "new", shards=1, old=old, keep_index=True)
    assert kept(out) == {"n2"}
    assert dropped(out)["n1"] == ("near", "a")
    assert figures["index"]["documents"] == 4
    with pytest.raises(InputError, match="the index was made with other signatures"):
        run(tmp_path, fresh, "otherwise", shards=1, old=old, sketch=64)


def test_an_address_of_many_texts_is_no_page(tmp_path: Path) -> None:
    records = [
        {"id": f"{i}", "text": article(100 + i), "source": "books", "url": "https://host.org/all.jsonl"}
        for i in range(30)
    ]
    out, figures = run(tmp_path, records, "container")
    assert len(kept(out)) == 30
    assert figures["near"]["addresses_of_many_texts"] == {"addresses": 1, "documents": 30}
    out, _ = run(tmp_path, records, "page", url_max_texts=30)
    assert len(kept(out)) == 1


def test_repeated_paragraphs_are_cut_but_for_the_first(tmp_path: Path) -> None:
    notice = "All rights to the texts on this site stay with the people who wrote them, and copies need leave."
    records = [
        {"id": f"p{i}", "lang": "en", "text": f"{article(20 + i)}\n{notice}\nYes.", "source": "web"} for i in range(4)
    ]
    out, figures = run(tmp_path, records, "lines", paragraphs="line")
    texts = {row["id"]: row["text"] for shard in open_corpus(out).shards for row in pq.read_table(shard).to_pylist()}
    holders = [name for name, text in texts.items() if notice in text]
    assert len(holders) == 1
    assert all(text.endswith("\nYes.") for text in texts.values())
    edited = figures["funnel"]["edited"]["paragraph"]
    assert edited == {"documents": 3, "bytes": 3 * (len(notice) + 1)}
    assert figures["funnel"]["in"]["en"]["bytes"] == figures["funnel"]["out"]["en"]["bytes"] + edited["bytes"]
    again, _ = run(
        tmp_path,
        [records[i] for i in (2, 0, 3, 1)],
        "shuffled",
        shards=3,
        workers=2,
        engine="thread",
        paragraphs="line",
    )
    assert {row["id"]: row["text"] for s in open_corpus(again).shards for row in pq.read_table(s).to_pylist()} == texts


def test_a_filter_of_addresses_goes_on_with_a_later_crawl(tmp_path: Path) -> None:
    settings = {"url_filter": "bloom", "url_capacity": 1000, "keep_index": True}
    first, figures = run(tmp_path, rows(), "first", **settings)
    assert dropped(first)["page-again"] == ("url", "page")
    assert figures["near"]["address_filter"]["expected_wrongful_drops"] < 1e-4
    later = [
        {"id": "l1", "text": article(50), "source": "web", "lang": "en", "url": "https://site.org/page/#top"},
        {"id": "l2", "text": article(51), "source": "web", "lang": "en", "url": "https://site.org/other"},
    ]
    out, figures = run(tmp_path, later, "later", shards=1, old=first, **settings)
    assert kept(out) == {"l2"}
    assert figures["near"]["address_filter"]["keys"] == 2


def test_shards_without_documents_change_nothing(tmp_path: Path) -> None:
    """Earlier stages may leave a shard empty: first, in the middle, last, or two in a row."""
    from penjing.data.document import SCHEMA, ShardWriter, finish_corpus

    plain = make(tmp_path / "plain", rows(), shards=2)
    holed = make(tmp_path / "holed", rows(), shards=2)
    for name in ("aaa-empty", "part-00000x", "part-00000y", "zzz-empty"):
        with ShardWriter(holed / f"{name}.parquet") as writer:
            writer.write(SCHEMA.empty_table())
    finish_corpus(holed, provenance={})
    for source in (plain, holed):
        (tmp_path / f"{source.name}-out").mkdir()
        dedup.run(dedup.Config(near="both"), {"corpus": source}, tmp_path / f"{source.name}-out", Job())
    assert kept(tmp_path / "holed-out") == kept(tmp_path / "plain-out")


def test_paragraphs_of_an_old_corpus_are_cut_from_a_new_one_without_its_text(tmp_path: Path) -> None:
    notice = "All rights to the texts on this site stay with the people who wrote them, and copies need leave."
    first = [{"id": f"o{i}", "text": f"{article(60 + i)}\n{notice}", "source": "web"} for i in range(2)]
    old, _ = run(tmp_path, first, "old", paragraphs="line", keep_index=True)
    for shard in open_corpus(old).shards:
        shard.unlink()  # the old text is gone: the index must do
    fresh = [
        {"id": "n1", "text": f"{article(70)}\n{notice}\n{article(71)}", "source": "web"},
        {"id": "n2", "text": f"{article(72)}\n{article(60)[:300]}\n{article(71)}", "source": "web"},
    ]
    new, figures = run(tmp_path, fresh, "new", old=old, paragraphs="line", keep_index=True)
    texts = {row["id"]: row["text"] for shard in open_corpus(new).shards for row in pq.read_table(shard).to_pylist()}
    assert texts == {"n1": article(70), "n2": fresh[1]["text"]}  # one line stands in the old corpus, one in a longer new text
    assert figures["funnel"]["edited"]["paragraph"] == {"documents": 1, "bytes": len(notice) + 1 + len(article(71)) + 1}
    third, figures = run(
        tmp_path, [{"id": "t", "text": f"{article(80)}\n{article(72)}\n{notice}", "source": "web"}], "third", shards=1, old=new,
        paragraphs="line")
    assert pq.read_table(open_corpus(third).shards[0]).column("text").to_pylist() == [article(80)]  # both generations are known
    keys = [pq.read_table(path).column("key").to_pylist() for path in sorted((new / "index" / "paragraphs").glob("*.parquet"))]
    every = [key for part in keys for key in part]
    assert len(keys) == 4 and len(set(every)) == len(every)  # every paragraph that stayed once, in one part
    with pytest.raises(InputError, match="the index was made with other settings for paragraphs"):
        run(tmp_path, fresh, "blocks", old=old, paragraphs="block")
    plain, _ = run(tmp_path, first, "plain", keep_index=True)
    with pytest.raises(InputError, match="found null"):
        run(tmp_path, fresh, "none", old=plain, paragraphs="line")
