"""Readers: pages, archives and encodings as they are found, broken ones included; damage is named and the rest goes on."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest

from penjing.data.encoding import decode
from penjing.data.html import extract
from penjing.data.readers import Damage, Options, expand, kind_of, read

TEXT = "盆景是一门古老的艺术，它把山水和树木放进小小的盆里。养盆景的人要有耐心，每天浇水，每年修剪。"


def split(name: Path | str, kind: str | None = None, **options: object) -> tuple[list[dict], Counter]:
    """(documents, kinds of damage) of one file."""
    documents, damage = [], Counter()
    for record in read(str(name), Options(**options), kind=kind):
        if isinstance(record, Damage):
            damage[record.what] += 1
        else:
            documents.append(record)
    return documents, damage


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "big5hkscs", "utf-16", "utf-8-sig"])
def test_chinese_encodings_are_told(encoding: str) -> None:
    traditional = "盆景是一門古老的藝術，它把山水和樹木放進小小的盆裡。養盆景的人要有耐心，每天澆水。"
    text = traditional if encoding == "big5hkscs" else TEXT
    assert decode(text.encode(encoding))[0] == text


@pytest.mark.parametrize(("text", "encoding"), [
    ("Grüße aus Österreich, où l'été est déjà là; señor, ¿qué tal?", "cp1252"),
    ("これは日本語の文章です。漢字と仮名が混ざっています。", "euc-jp"),
    ("これは日本語の文章です。漢字と仮名が混ざっています。", "shift_jis"),
])
def test_other_encodings_are_told(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == (text, encoding)


def test_utf8_wins_over_a_wrong_declaration_and_a_cut_character_is_dropped() -> None:
    assert decode(TEXT.encode(), declared="gb2312") == (TEXT, "utf-8")
    assert decode(TEXT.encode()[:-1]) == (TEXT[:-1], "utf-8")
    assert decode(b"\xff\xfe\xfa\x00\x81" * 3)[0]


def test_names_tell_the_kind() -> None:
    assert [kind_of(name) for name in ("a.jsonl.zst", "b.WARC.gz", "c.warc.wet.gz", "d.tar.xz", "e.htm", "f.md", "g.bin")] == [
        "jsonl", "warc", "wet", "tar", "html", "markdown", None]


def test_directories_and_globs_are_expanded_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.md", "a/.hidden.txt", "z.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [Path(name).name for name in expand(str(tmp_path))] == ["c.md", "b.txt"]
    assert [Path(name).name for name in expand(str(tmp_path / "*.txt"))] == ["b.txt"]


def test_urls_are_read_through_fsspec(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (found,) = expand(f"file://{tmp_path}/*.jsonl")
    assert split(found)[0][0]["text"] == "x"


def test_main_text_is_the_article() -> None:
    article = "".join(f"<p>{TEXT}第{n}段。</p>" for n in range(5))
    page = (f"<html><head><title>盆景 &amp; 树</title><script>var a = '<p>no</p>';</script></head><body class='has-sidebar'>"
            f"<div class='nav'><a href='/'>首页</a><a href='/b'>博客</a></div><div class='content'>{article}</div>"
            "<div class='related'><ul><li><a href='x'>相关文章一的标题也不短</a></li></ul></div><footer>版权所有</footer></body>")
    found = extract(page)
    assert found.title == "盆景 & 树"
    assert found.text == "\n".join(f"{TEXT}第{n}段。" for n in range(5))


def test_extraction_agrees_with_the_gold_articles(shared: Path) -> None:
    with gzip.open(shared / "dirty/html/article_benchmark_gold.jsonl.gz") as file:
        gold = {row["file"]: row["gold_text"] for row in map(json.loads, file)}
    scores = []
    with tarfile.open(shared / "dirty/html/article_benchmark_pages.tar.xz") as archive:
        for member in list(archive)[:60]:
            if member.isfile():
                key = next(key for key in gold if member.name.endswith(key) or key.endswith(member.name))
                opened = archive.extractfile(member)
                assert opened is not None
                found, wanted = (Counter(re.findall(r"\w+", text.lower())) for text in
                                 (extract(decode(opened.read())[0]).text, gold[key]))
                common = sum((found & wanted).values())
                scores.append(2 * common / max(1, sum(found.values()) + sum(wanted.values())))
    assert sum(scores) / len(scores) > 0.9


def test_chinese_pages_that_declare_gb2312_come_out_as_chinese(shared: Path) -> None:
    documents, damage = split(shared / "dirty/html/chinese_news_pages.tar.xz")
    assert len(documents) == 42 and not damage
    assert {document["encoding"] for document in documents} == {"utf-8"}
    good = [sum("一" <= c <= "鿿" for c in document["text"]) > 0.4 * len(document["text"]) for document in documents]
    assert sum(good) >= 40


@pytest.mark.parametrize(("page", "text"), [
    ("<div>" * 50_000 + TEXT + TEXT, TEXT + TEXT), ("<" * 50_000, None), ("<a href='" * 20_000, None), ("<!--" * 20_000, None),
    ("<script>" * 20_000, None), ("</div>" * 50_000 + TEXT, TEXT), ("&" * 50_000, None),
])
def test_hostile_pages_take_linear_time(page: str, text: str | None) -> None:
    began = time.process_time()
    found = extract(page)
    assert time.process_time() - began < 10
    if text is not None:
        assert found.text == text


@pytest.mark.parametrize(("name", "documents", "damage"), [
    ("warcio_example.warc.gz", 1, {}),
    ("warcio_example-trunc.warc", 1, {"bytes between records": 1}),
    ("warcio_example-wget-bad-target-uri.warc.gz", 1, {}),
    ("commoncrawl_whirlwind.warc.gz", 1, {}),
    ("commoncrawl_whirlwind.warc.wet.gz", 1, {}),
    ("dolma_sample-0000.warc.gz", 22, {}),
])
def test_real_archives(shared: Path, name: str, documents: int, damage: dict) -> None:
    found, bad = split(shared / "dirty/warc" / name)
    assert (len(found), dict(bad)) == (documents, damage)
    assert all(document["text"].strip() for document in found)


def test_every_archive_gives_what_it_holds_and_raises_nothing(shared: Path) -> None:
    for path in sorted((shared / "dirty/warc").iterdir()):
        split(path, kind="warc")
    found, _ = split(shared / "dirty/warc/resiliparse_warcfile.warc.gz")
    assert Counter(document["encoding"] for document in found)["gb18030"] >= 2


def test_a_cut_archive_gives_all_before_the_cut(shared: Path, tmp_path: Path) -> None:
    whole = (shared / "dirty/warc/dolma_sample-0000.warc.gz").read_bytes()
    (tmp_path / "cut.warc.gz").write_bytes(whole[: len(whole) * 2 // 3])
    found, damage = split(tmp_path / "cut.warc.gz")
    assert 5 < len(found) < 22
    assert sum(damage.values()) == 1


def test_a_damaged_member_in_the_middle_costs_one_record(tmp_path: Path) -> None:
    members = []
    for number in range(5):
        body = f"{TEXT}{number}".encode()
        head = (f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://x/{number}\r\n"
                f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n")
        members.append(bytearray(gzip.compress(head.encode() + body + b"\r\n\r\n", mtime=0)))
    members[2][30:60] = bytes(30)
    (tmp_path / "a.wet.gz").write_bytes(b"".join(members))
    found, damage = split(tmp_path / "a.wet.gz")
    assert [document["url"] for document in found] == [f"http://x/{n}" for n in (0, 1, 3, 4)]
    assert sum(damage.values()) == 1


def test_a_tar_that_is_cut_short(tmp_path: Path) -> None:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as archive:
        for number in range(3):
            data = (TEXT * 40).encode()
            info = tarfile.TarInfo(f"{number}.txt")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (tmp_path / "cut.tar.gz").write_bytes(memory.getvalue()[:-60])
    found, damage = split(tmp_path / "cut.tar.gz")
    assert len(found) >= 1
    assert sum(damage.values()) == 1


def test_a_long_line_costs_no_memory_and_is_named(tmp_path: Path) -> None:
    with (tmp_path / "long.jsonl").open("w") as file:
        file.write('{"text": "first"}\n')
        for _ in range(30):
            file.write("x" * (1 << 20))
        file.write('\n{"text": "last"}\n')
    import tracemalloc

    tracemalloc.start()
    found, damage = split(tmp_path / "long.jsonl", max_record_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [document["text"] for document in found] == ["first", "last"]
    assert damage == {"record longer than 1048576 bytes": 1}
    assert peak < 10 << 20


def test_nul_bytes_and_invalid_utf8_in_lines(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b'{"text": "a\\u0000b"}\n{"text": "\xff\xfe broken"}\n\x00\x00\n{"text": "'
                     + TEXT.encode("gb18030") + b'"}\n')
    found, damage = split(path)
    assert [document.get("encoding", "utf-8") for document in found] == ["utf-8", "cp1252", "gb18030"]
    assert found[2]["text"] == TEXT
    assert damage == {"not JSON": 1}
