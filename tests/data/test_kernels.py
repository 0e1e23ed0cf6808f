"""Compiled kernels equal their plain definitions."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from penjing.data.kernels import views
from penjing.data.kernels.assemble import assemble
from penjing.data.kernels.grams import CHAR_3, CHAR_10, CHAR_13, ENTROPY, GRAMS, UNIQUE, grams
from penjing.data.kernels.lines import lines, sentences
from penjing.data.kernels.near import near_repeats
from penjing.data.kernels.phrases import compile_phrases, hits
from penjing.data.kernels.words import HAS_LETTER, members, per_document, split


def texts_of(seed: int, alphabet: str, number: int, size: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choice(alphabet) for _ in range(chance.randint(0, size))) for _ in range(number)]


@pytest.mark.parametrize(("alphabet", "size"), [("ab ", 60), ("的一是不在 。a\n", 400), ("the quick fox,.\n", 3000)])
def test_character_grams_and_entropy(alphabet: str, size: int) -> None:
    texts = texts_of(1, alphabet, 40, size)
    data, offsets = views(pa.array(texts, pa.large_string()))
    words = split(data, offsets)
    found = grams(data, offsets, words, np.full(len(texts), CHAR_3 | CHAR_10 | CHAR_13 | ENTROPY | UNIQUE, np.uint8))
    for text, row in zip(texts, found, strict=True):
        said = dict(zip(GRAMS, row, strict=True))
        points = [c for c in text if c not in " \n"]
        for n in (3, 10, 13):
            counts = Counter(tuple(points[i : i + n]) for i in range(len(points) - n + 1))
            assert said[f"char_{n}"] == sum(counts.values())
            if n == 13:
                assert said["char_13_repeats"] == sum(counts.values()) - len(counts)
            else:
                often = sorted(counts.values(), reverse=True)[: math.isqrt(len(counts))]
                assert said[f"char_{n}_repeats"] == sum(number for number in often if number > 1)
        shares = [number / len(points) for number in Counter(points).values()]
        assert said["char_entropy"] == pytest.approx(-sum(share * math.log(share) for share in shares))


def distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, two in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != two))
    return row[-1]


def test_nearly_repeated_sentences_equal_the_plain_definition() -> None:
    chance = random.Random(5)
    words = ["water", "stone", "pine", "moss", "root", "leaf", "pot", "wire", "盆", "景", "树", "木", "石", "水", "土", "根"]
    documents = []
    for _ in range(12):
        said: list[str] = []
        for _ in range(30):
            if said and chance.random() < 0.5:
                letters = list(chance.choice(said))
                for _ in range(chance.randint(0, 6)):
                    place = chance.randrange(len(letters))
                    letters[place : place + chance.randint(0, 1)] = chance.choice(["", "x", "木"])
                said.append("".join(letters))
            else:
                said.append(" ".join(chance.choice(words) for _ in range(chance.randint(2, 40))))
        documents.append("\n".join(said))
    data, offsets = views(pa.array(documents, pa.large_string()))
    found = lines(data, offsets)
    parts = sentences(data, found, found["tokens"] > 0)
    document = np.repeat(np.arange(len(documents)), np.diff(found.first))[parts.line]
    result = near_repeats(data, parts, document)
    texts = [data[a:b].tobytes().decode().replace(" ", "") for a, b in zip(parts.starts, parts.ends, strict=True)]
    assert 30 < result.sum() < len(result) - 30
    for here, text in enumerate(texts):
        expected = False
        for there in range(here):
            if document[there] != document[here] or len(text) < 6:
                continue
            longer = max(len(text), len(texts[there]))
            if longer < 16:
                expected |= parts.folded[here] == parts.folded[there] != 0
            elif len(texts[there]) >= 6 and abs(len(text) - len(texts[there])) <= longer // 10:
                expected |= distance(text, texts[there]) <= longer // 10
        assert result[here] == expected, text


def plainly(text: str, gone: list[bool], new: dict[int, str]) -> str:
    """What `assemble` does, on strings."""
    parts: list[str] = []
    gap = False
    for place, line in enumerate(text.split("\n")):
        if gone[place]:
            gap = True
            continue
        if not line.strip() and gap and (not parts or not parts[-1].strip()):
            continue
        parts.append(new.get(place, line))
        if line.strip():
            gap = False
    return "\n".join(parts).strip("\n")


def test_texts_are_put_together_as_strings_would_be() -> None:
    chance = random.Random(3)
    texts = ["\n".join(chance.choice(["", "", " ", "one", "两行", "\u3000", "three 三"]) for _ in range(chance.randint(1, 12)))
             for _ in range(400)]
    data, offsets = views(pa.array(texts, pa.large_string()))
    found = lines(data, offsets)
    gone = np.array([chance.random() < 0.3 for _ in range(len(found.starts))])
    replaced = [line for line in range(len(gone)) if not gone[line] and found["tokens"][line] and chance.random() < 0.3]
    chosen = np.array([row for row in range(len(texts)) if chance.random() < 0.7])
    out, ends = assemble(data, found, chosen, gone, np.array(replaced, np.int64), [f"new {line} 新".encode() for line in replaced])
    for place, row in enumerate(chosen.tolist()):
        low, high = int(found.first[row]), int(found.first[row + 1])
        expected = plainly(texts[row], gone[low:high].tolist(), {line - low: f"new {line} 新" for line in replaced if low <= line < high})
        assert out[ends[place] : ends[place + 1]].tobytes().decode() == expected


def test_lines_and_words_of_some_documents_are_those_of_all() -> None:
    texts = texts_of(9, "the 的一，.\n 3A_", 30, 200)
    rows = np.array([0, 3, 4, 17, 29])
    data, offsets = views(pa.array(texts, pa.large_string()))
    some_data, some_offsets = views(pa.array([texts[row] for row in rows], pa.large_string()))
    taken, counted = lines(data, offsets).take(rows), lines(some_data, some_offsets)
    assert (taken.facts == counted.facts).all() and (taken.folded == counted.folded).all() and (taken.first == counted.first).all()
    words, again = split(data, offsets).take(rows), split(some_data, some_offsets)
    assert (words.hashes == again.hashes).all() and (words.first == again.first).all()


def test_counts_of_words_equal_the_plain_definition() -> None:
    texts = ["the tree and the 树 12", "", "of and and of", "12 34"]
    words = split(*views(pa.array(texts, pa.large_string())))
    different, total = members(words, ("the", "and", "of", "树"))
    assert different.tolist() == [3, 0, 2, 0] and total.tolist() == [4, 0, 4, 0]
    assert per_document(words, HAS_LETTER).tolist() == [5, 0, 4, 0]
    assert per_document(words, HAS_LETTER, have=False, characters=True).tolist() == [2, 0, 0, 4]


def test_phrases_are_found_where_a_search_finds_them() -> None:
    chance = random.Random(2)
    phrases = ["隐私政策", "隐私", "点击查看", "read more", "cookie", "éclair"]
    texts = ["".join(chance.choice(["隐私政策", "隐私", "私", "点击", "查看", "Read More", " ", "cookies", " cookie ", "é", "éclair", "策"])
                     for _ in range(30)) for _ in range(50)]
    data, offsets = views(pa.array(texts, pa.large_string()))
    which, where = hits(data, offsets, compiled := compile_phrases([phrases], whole_words=False))
    expected = []
    for text, base in zip(texts, offsets.tolist(), strict=False):
        raw = "".join(c.lower() if c.isascii() else c for c in text).encode()
        place = 0
        while place < len(raw):
            known = [phrase for phrase in compiled.texts if raw.startswith(phrase.encode(), place)]
            if known:
                best = max(known, key=lambda phrase: len(phrase.encode()))
                expected.append((compiled.texts.index(best), base + place))
                place += len(best.encode())
            else:
                place += 1
    assert list(zip(which.tolist(), where.tolist(), strict=True)) == expected
