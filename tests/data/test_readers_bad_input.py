"""Broken input of every kind: named with its place, counted, and the rest goes on; packed pages and remote files."""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
import tarfile
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from penjing.contract import Job
from penjing.data.document import open_corpus
from penjing.data.readers import Damage, Options, expand, read
from penjing.data.readers.packed import unpack
from penjing.errors import ConfigError, InputError
from penjing.stages import collect

TEXT = "盆景是一门古老的艺术，它把山水和树木放进小小的盆里。养盆景的人要有耐心，每天浇水，每年修剪。"
PAGE = f"<html><head><title>盆景</title></head><body>{''.join(f'<p>{TEXT}第{n}段。</p>' for n in range(9))}</body></html>".encode()


def split(name: Path | str, kind: str | None = None, **options: Any) -> tuple[list[dict[str, Any]], list[Damage]]:
    found = list(read(str(name), Options(**options), kind=kind))
    return [one for one in found if isinstance(one, dict)], [one for one in found if isinstance(one, Damage)]


def lines(number: int) -> bytes:
    rows = ({"id": str(n), "text": f"{n * n * 7919} {TEXT}"} for n in range(number))
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


PACK = {
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data),
    ".xz": lambda data: __import__("lzma").compress(data),
    ".bz2": lambda data: __import__("bz2").compress(data),
}


@pytest.mark.parametrize("suffix", PACK)
def test_a_compressed_file_that_is_cut_short_gives_what_stands_before(tmp_path: Path, suffix: str) -> None:
    whole = PACK[suffix](lines(12_000))
    (tmp_path / f"a.jsonl{suffix}").write_bytes(whole[: len(whole) * 3 // 4])
    found, damage = split(tmp_path / f"a.jsonl{suffix}")
    assert 1000 < len(found) < 12_000 or suffix == ".bz2"
    assert [one["id"] for one in found] == [str(n) for n in range(len(found))]
    assert {one.what for one in damage} <= {"compressed data is cut short", "not JSON", "not UTF-8 and not JSON"} and damage
    assert damage[0].file.endswith(suffix) and damage[0].offset > 0


@pytest.mark.parametrize("suffix", PACK)
def test_garbage_in_the_middle_of_a_compressed_file_is_named(tmp_path: Path, suffix: str) -> None:
    whole = bytearray(PACK[suffix](lines(12_000)))
    whole[len(whole) // 2 : len(whole) // 2 + 64] = bytes(range(64))
    (tmp_path / f"a.jsonl{suffix}").write_bytes(whole)
    found, damage = split(tmp_path / f"a.jsonl{suffix}")
    assert damage and any("damaged compressed data" in one.what for one in damage)
    assert len(found) + len(damage) <= 12_001


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.md", "a.csv", "a.html", "a.warc", "a.wet.gz", "a.tar", "a.parquet", "a.jsonl.zst"])
def test_an_empty_file_of_every_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    found, damage = split(tmp_path / name)
    assert found == []
    assert len(damage) == (0 if "jsonl" in name else 1)  # no lines are no documents, and no damage either


def test_nul_bytes_are_text_or_damage_but_never_a_fault(tmp_path: Path) -> None:
    for name, data in {
        "a.txt": f"{TEXT}\0\0{TEXT}".encode(),
        "a.csv": f"text,n\n{TEXT}\0,1\n{TEXT},2\n".encode(),
        "a.html": PAGE.replace(b"<p>", b"<p>\0", 3),
        "a.jsonl": b'{"text": "a\\u0000b"}\n\0\0\0\n{"te\0xt": "c"}\n' + lines(1),
        "a.warc": b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 6\r\n\r\na\0b\0c\0\r\n\r\n",
    }.items():
        (tmp_path / name).write_bytes(data)
        found, damage = split(tmp_path / name)
        assert found, name
        assert len(damage) == (2 if name == "a.jsonl" else 0)


def test_a_line_of_200_megabytes_is_stepped_over_in_little_memory(tmp_path: Path) -> None:
    machine = zlib.compressobj(1, wbits=31)
    with (tmp_path / "a.jsonl.gz").open("wb") as file:
        file.write(machine.compress(b'{"text": "first"}\n{"text": "'))
        for _ in range(200):
            file.write(machine.compress(b"x" * (1 << 20)))
        file.write(machine.compress(b'"}\n{"text": "last"}\n') + machine.flush())
    tracemalloc.start()
    found, damage = split(tmp_path / "a.jsonl.gz", max_record_bytes=8 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(one["text"], one["offset"]) for one in found] == [("first", 0), ("last", 18 + (200 << 20) + 13)]
    assert [(one.offset, one.what, one.size) for one in damage] == [(18, "record longer than 8388608 bytes", (200 << 20) + 12)]
    assert peak < 40 << 20


def test_deep_nesting_is_damage_or_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": ' + b"[" * 200_000 + b"\n" + b'{"a": ' * 50_000 + b"\n" + lines(1))
    found, damage = split(tmp_path / "a.jsonl")
    assert len(found) == 1 and [one.what for one in damage] == ["not JSON", "not JSON"]
    (tmp_path / "a.html").write_bytes(b"<div><span>" * 100_000 + PAGE)
    found, damage = split(tmp_path / "a.html")
    assert TEXT in found[0]["text"] and not damage


def test_columns_of_the_wrong_type_and_missing_fields(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    found, damage = split(tmp_path / "numbers.parquet")
    assert not found and [one.what for one in damage] == ["field 'text' is int, not text"] * 2
    pq.write_table(pa.table({"text": pa.array([TEXT, None, ""], pa.string())}), tmp_path / "gaps.parquet")
    found, damage = split(tmp_path / "gaps.parquet")
    assert [one["text"] for one in found] == [TEXT, ""] and [one.offset for one in damage] == [1]
    with pytest.raises(InputError, match=r"no column 'body'; found text; set text_field"):
        split(tmp_path / "gaps.parquet", text_field="body")


def test_parquet_text_that_is_not_utf8_is_decoded_by_what_it_is(tmp_path: Path) -> None:
    raw = [TEXT.encode(), TEXT.encode("gb18030"), b"caf\xe9 au lait", None]
    strings = pa.array(raw, pa.binary()).view(pa.string())
    nested = pa.StructArray.from_arrays([strings], ["inner"])
    pq.write_table(pa.table({"text": strings, "note": nested, "n": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    found, damage = split(tmp_path / "a.parquet")
    assert [one["text"] for one in found] == [TEXT, TEXT, "café au lait"]
    assert [one["meta"] for one in found] == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert [one.what for one in damage] == ["no field 'text'"]


def test_a_damaged_row_group_costs_that_group(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"{n} {TEXT}" for n in range(400)]}), tmp_path / "a.parquet", row_group_size=100)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    at = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0).data_page_offset
    data[at : at + 40] = bytes(40)
    (tmp_path / "a.parquet").write_bytes(data)
    found, damage = split(tmp_path / "a.parquet")
    assert [int(one["text"].split()[0]) for one in found] == [*range(100), *range(200, 400)]
    assert [(one.offset, one.what, one.size) for one in damage] == [(100, "damaged row group", 100)]
    (tmp_path / "cut.parquet").write_bytes(data[:-100])
    assert [one.what for one in split(tmp_path / "cut.parquet")[1]] == ["not readable as Parquet"]


def test_a_csv_file_longer_than_a_record_is_read_row_by_row(tmp_path: Path) -> None:
    rows = "".join(f'{n},"{TEXT}\n第{n}行"\n' for n in range(400))
    (tmp_path / "a.csv").write_bytes(f"n,text\n{rows}".encode("gb18030"))
    short, _ = split(tmp_path / "a.csv")
    long, damage = split(tmp_path / "a.csv", max_record_bytes=4096)
    assert not damage and len(long) == 400
    assert [one["text"] for one in long] == [one["text"] for one in short] == [f"{TEXT}\n第{n}行" for n in range(400)]
    assert long[0]["encoding"] == "gb18030"


def record(body: bytes, head: str) -> bytes:
    http = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{head}\r\n\r\n".encode() + body
    fields = f"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: {len(http)}\r\n\r\n"
    return fields.encode() + http + b"\r\n\r\n"


def deflate(data: bytes) -> bytes:
    machine = zlib.compressobj(9, wbits=-15)
    return machine.compress(data) + machine.flush()


def brotli(data: bytes) -> bytes:
    return pytest.importorskip("brotli").compress(data)


ENCODINGS = {"gzip": PACK[".gz"], "x-gzip": PACK[".gz"], "deflate": deflate, "zstd": PACK[".zst"], "br": brotli}


@pytest.mark.parametrize("name", ENCODINGS)
def test_pages_packed_in_every_usual_way_are_read(tmp_path: Path, name: str) -> None:
    packed = ENCODINGS[name](PAGE)
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (packed[:50], packed[50:])) + b"0\r\n\r\n"
    (tmp_path / "a.warc").write_bytes(
        record(packed, f"Content-Encoding: {name}") + record(chunked, f"Content-Encoding: {name}\r\nTransfer-Encoding: chunked")
        + record(PAGE, f"Content-Encoding: {name}") + record(ENCODINGS["gzip"](packed), f"Content-Encoding: {name}, gzip")
        + record(b"\xff" * 40, f"Content-Encoding: {name}") + record(PAGE, "Content-Encoding: identity"))
    found, damage = split(tmp_path / "a.warc")
    assert len(found) == 5 and all(one["text"] == found[-1]["text"] for one in found)
    assert [one.what for one in damage] == [f"content encoding {name} cannot be read"]


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_small_page_that_unpacks_to_gigabytes_is_refused_early(name: str) -> None:
    bomb = ENCODINGS[name](bytes(24 << 20))
    tracemalloc.start()
    assert unpack(bomb, transfer="", encoding=name, limit=1 << 20) == "record longer than 1048576 bytes"
    if name != "br":  # its library gives out what one block of input holds
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_brotli_without_its_package_is_damage_that_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "brotli", None)
    (tmp_path / "a.warc").write_bytes(record(b"\x0b\x02\x80abc\x03", "Content-Encoding: br") + record(PAGE, ""))
    found, damage = split(tmp_path / "a.warc")
    assert len(found) == 1
    assert [one.what for one in damage] == ["content encoding br needs the brotli package: pip install brotli"]


def test_files_in_memory_are_found_and_read_through_fsspec() -> None:
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for name in ("a.jsonl.gz", "b.jsonl.gz", "sub/c.jsonl.gz"):
        with store.open(f"/crawl/{name}", "wb") as file:
            file.write(gzip.compress(lines(3)))
    assert expand("memory://crawl/*.jsonl.gz") == ["memory://crawl/a.jsonl.gz", "memory://crawl/b.jsonl.gz"]
    assert len(expand("memory://crawl")) == 3
    found, damage = split("memory://crawl/a.jsonl.gz")
    assert [one["id"] for one in found] == ["0", "1", "2"] and not damage
    with pytest.raises(InputError, match=r"memory://crawl/none\.jsonl: URL cannot be opened; found .*none\.jsonl"):
        split("memory://crawl/none.jsonl")


@pytest.mark.parametrize(("url", "package"), [("s3://bucket/a.jsonl", "s3fs"), ("hf://datasets/a/b/c.jsonl", "huggingface_hub")])
def test_a_kind_of_url_whose_package_is_missing_says_which(url: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setitem(sys.modules, package, None)
    scheme = url.partition("://")[0]
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    with pytest.raises(ConfigError, match=rf"{url}: {scheme}:// URLs need another package; .*pip install {package}"):
        expand(url)


def collected(tmp_path: Path, sources: list[dict[str, Any]], **settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    out = tmp_path / "out"
    out.mkdir()
    figures = collect.run(collect.Config(sources=sources, **settings), {}, out, Job())
    notes = [json.loads(line) for path in sorted((out / "damaged").glob("*.jsonl")) for line in path.read_text().splitlines()]
    return figures, notes


def test_a_file_that_vanishes_is_named_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(30):
        (tmp_path / f"{n:02d}.jsonl.gz").write_bytes(gzip.compress(lines(3)))
    expanded = expand(str(tmp_path / "*.gz"))
    monkeypatch.setattr("penjing.data.readers.expand", lambda path: expanded)
    (tmp_path / "07.jsonl.gz").unlink()
    source = {"name": "s", "path": str(tmp_path / "*.gz")}
    figures, notes = collected(tmp_path, [source])
    assert figures["documents"] == 87
    assert [(note["file"], note["offset"], note["what"]) for note in notes] == [("07.jsonl.gz", 0, "file vanished")]
    for n in (1, 2, 3):
        (tmp_path / f"{n:02d}.jsonl.gz").unlink()
    (tmp_path / "again").mkdir()
    with pytest.raises(InputError, match=r"4 of 30 files of source 's' vanished while it was read; expected at most a share of 0\.05"):
        collect.run(collect.Config(sources=[source]), {}, tmp_path / "again", Job())


def test_the_shared_broken_archives_are_counted_by_what_is_wrong(tmp_path: Path, shared: Path) -> None:
    folder = shared / "dirty/warc"
    whole = (folder / "aut_example.warc.gz").read_bytes()
    (tmp_path / "cut.warc.gz").write_bytes(whole[: len(whole) // 3])
    files = [path for pattern in ("*trunc*", "dolma*", "resili*") for path in sorted(folder.glob(pattern))]
    files.append(tmp_path / "cut.warc.gz")
    sources = [{"name": path.stem.replace(".", "-"), "path": str(path), "kind": "warc"} for path in files]
    figures, notes = collected(tmp_path, sources, max_damage=0.9)
    assert figures["documents"] > 40
    assert figures["damaged_records"] == len(notes)
    assert Counter(note["what"] for note in notes)["bytes between records"] >= 1
    assert any(note["what"] == "compressed data is cut short" and note["file"] == "cut.warc.gz" for note in notes)
    assert open_corpus(tmp_path / "out").documents == figures["documents"]


def test_halves_of_characters_are_replaced_wherever_they_stand(tmp_path: Path) -> None:
    row = b'{"id": "a\\ud800", "text": "b\\ud800c", "url": "http://x/\\udfff", "lang": "e\\ud801", "more": {"k": "\\ud802"}}\n'
    (tmp_path / "a.jsonl").write_bytes(row + lines(2))
    figures, _ = collected(tmp_path, [{"name": "s", "path": str(tmp_path / "a.jsonl")}])
    assert figures["documents"] == 3
    first = next(open_corpus(tmp_path / "out").batches()).to_pylist()[0]
    assert first["id"].startswith("a\ufffd") and first["text"].startswith("b\ufffd") and "\ufffd" in first["meta"]


def test_ids_that_repeat_across_shards_are_told_apart_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["x", "y", "x", "x#2", "x#2", "z#1", "z", "z", "x", "y#2#2", "y", "y#2"]
    for n, name in enumerate(names):
        (tmp_path / f"{n:02d}.jsonl").write_text(json.dumps({"id": name, "text": f"text {n}"}) + "\n")
    source = {"name": "s", "path": str(tmp_path / "*.jsonl")}
    figures, _ = collected(tmp_path, [source])
    found = [name for batch in open_corpus(tmp_path / "out").batches(["id"]) for name in batch.column("id").to_pylist()]
    assert len(set(found)) == len(names)
    assert found == ["x", "y", "x#3", "x#2", "x#2#2", "z#1", "z", "z#2", "x#4", "y#2#2", "y#3", "y#2"]
    assert figures["renamed_ids"] == 5
    monkeypatch.setattr("penjing.data.ids.parts_of", lambda documents: 5)
    (tmp_path / "parts").mkdir()
    collect.run(collect.Config(sources=[source]), {}, tmp_path / "parts", Job(workers=2, engine="thread"))
    assert [name for batch in open_corpus(tmp_path / "parts").batches(["id"]) for name in batch.column("id").to_pylist()] == found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_in_a_file_reading_it_raises_nothing_but_faults(tmp_path: Path, seed: int) -> None:
    """Files of every kind with bytes changed, cut, put in and left out."""
    rng = random.Random(seed)
    pages = io.BytesIO()
    with tarfile.open(fileobj=pages, mode="w") as archive:
        info = tarfile.TarInfo("a.html")
        info.size = len(PAGE)
        archive.addfile(info, io.BytesIO(PAGE))
    table = io.BytesIO()
    pq.write_table(pa.table({"text": [TEXT] * 50, "meta": ['{"a": 1}'] * 50}), table, row_group_size=10)
    packed = [record(pack(PAGE), f"Content-Encoding: {name}\r\nTransfer-Encoding: chunked") for name, pack in ENCODINGS.items()]
    whole = {
        "a.jsonl": lines(9), **{f"a.jsonl{suffix}": pack(lines(9)) for suffix, pack in PACK.items()}, "a.tar": pages.getvalue(),
        "a.tar.gz": gzip.compress(pages.getvalue()), "a.parquet": table.getvalue(), "a.html": PAGE, "a.txt": TEXT.encode(),
        "a.csv": f'n,text\n1,"{TEXT}"\n2,"a ""b"""\n'.encode(), "a.warc": b"".join(packed), "a.warc.gz": gzip.compress(packed[0]) * 3,
    }
    for _ in range(40):
        for name, data in whole.items():
            changed = bytearray(data)
            for _ in range(rng.randint(1, 6)):
                at = rng.randrange(len(changed) + 1)
                what = rng.randrange(5)
                new = [bytes([rng.randrange(256)]), b"", rng.randbytes(20), bytes(20), b"WARC/1.0\r\nContent-Length: 99999999999\r\n"][what]
                changed[at : at + [1, rng.randint(1, 60), 0, 20, 0][what]] = new
            (tmp_path / name).write_bytes(changed[: rng.choice([len(changed), rng.randrange(len(changed) + 1)])])
            try:
                split(tmp_path / name, max_record_bytes=1 << 20)
            except InputError:
                assert name == "a.parquet"  # a column is gone: that is said once for the whole file


DIRTY = {  # file: (text field, documents, damage)
    "encodings/medical_qa_gb18030.csv.gz": ("title+ask+answer", 1453, {}),
    "html/article_benchmark_pages.tar.xz": ("text", 114, {"page without main text": 2}),
    "html/chinese_news_pages.tar.xz": ("text", 42, {}),
    "html/chinese_news_pages_index.jsonl": ("title", 0, {"no field 'title'": 42}),
    "html/multilingual_pages.tar.xz": ("text", 120, {}),
    "html/readability_pages.tar.xz": ("text", 102, {}),
    "text/commoncrawl_spam_zh.jsonl.gz": ("raw_content", 65, {}),
    "text/quality_clean_dirty_zh.jsonl.gz": ("text", 10, {}),
    "warc/aut_example.warc.gz": ("text", 128, {"page without main text": 1}),
    "warc/commoncrawl_whirlwind.warc.wat.gz": ("text", 0, {}),
    "warc/resiliparse_warcfile.warc.gz": ("text", 16, {}),
    "warc/warcio_example-bad.warc.gz.bad": ("text", 1, {}),
    "warc/warcio_example-space-in-target-uri.warc.gz": ("text", 0, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DIRTY)
def test_every_dirty_file_gives_what_it_holds(shared: Path, name: str) -> None:
    field, documents, damage = DIRTY[name]
    found, bad = split(shared / "dirty" / name, kind="warc" if "warc" in name else None, text_field=field)
    assert (len(found), dict(Counter(one.what for one in bad))) == (documents, damage)
    assert all(one["text"].strip() for one in found)
