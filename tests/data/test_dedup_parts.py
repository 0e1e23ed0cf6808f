"""The parts of de-duplication: folding, fingerprints, complete candidate search, verified pairs, stars, addresses, filters."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.data.dedup.bands import band_pairs
from penjing.data.dedup.bloom import Bloom, bloom, load_bloom
from penjing.data.dedup.cluster import chains, stars
from penjing.data.dedup.fold import fold, fold_bytes, fold_letters, language_model_table, skeleton_table
from penjing.data.dedup.near import near_pairs, plan_tables
from penjing.data.dedup.signature import Signatures, SignatureShape, _sorted, sign
from penjing.data.dedup.url import canonical_url
from penjing.data.dedup.verify import similarities
from penjing.errors import InputError


def texts(*values: str) -> pa.Array:
    return pa.array(values, pa.large_string())


def skeleton(text: str) -> str:
    return "".join(map(chr, fold(texts(text), skeleton_table()).points))


def test_punctuation_emoji_case_width_and_script_do_not_count() -> None:
    assert skeleton("Hello, Ｗorld! 👨‍👩‍👧‍👦 1️⃣ ❤️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿") == "helloworld1"
    assert skeleton("漢語（測試）") == skeleton("汉语测试") == "汉语测试"
    assert skeleton("cafe\u0301") == skeleton("café")
    assert skeleton("café") != skeleton("cafe")
    assert skeleton("Straße") == "strasse"
    assert skeleton("a\u200bb\u00adc\ufeffd") == "abcd"
    assert skeleton("½ ㎡ ①") == "12m21"


def test_tokens_are_characters_of_han_and_runs_of_letters() -> None:
    folded = fold(texts("我用Python3写code。", "ok"), skeleton_table(), places=True)
    assert np.diff(folded.token_offsets).tolist() == [5, 1]
    raw = "我用Python3写code。ok".encode()
    assert [raw[start : start + 3].decode() for start in folded.token_bytes[:3]] == ["我", "用", "Pyt"]


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_bytes_fold_without_fault_and_within_bounds(parts: list[bytes]) -> None:
    data = np.frombuffer(b"".join(parts), np.uint8)
    offsets = np.cumsum([0, *map(len, parts)]).astype(np.int64)
    for table in (skeleton_table(), language_model_table()):
        folded = fold_bytes(data, offsets, table, places=True)
        assert len(folded.points) <= len(data)
        if table is skeleton_table():
            whole = pa.LargeStringArray.from_buffers(len(parts), pa.py_buffer(offsets), pa.py_buffer(data))
            letters = fold_letters(whole, table)
            assert letters.points.tolist() == folded.points.tolist()
            assert letters.point_offsets.tolist() == folded.point_offsets.tolist()
        assert (np.diff(folded.token_offsets) >= 0).all()
        if len(folded.points):
            assert folded.points.max() < 0x110000


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_document_folds_alike_alone_and_in_a_batch(values: list[str]) -> None:
    values = [value.encode("utf-8", "replace").decode() for value in values]
    together = fold(texts(*values), skeleton_table())
    for d, value in enumerate(values):
        alone = fold(texts(value), skeleton_table())
        start, end = together.token_offsets[d], together.token_offsets[d + 1]
        assert together.tokens[start:end].tolist() == alone.tokens.tolist()


def brute(fingerprints: np.ndarray, distance: int) -> set[tuple[int, int]]:
    found = set()
    for a in range(len(fingerprints)):
        different = np.bitwise_count(fingerprints[a + 1 :] ^ fingerprints[a])
        found |= {(a, a + 1 + int(b)) for b in np.flatnonzero(different <= distance)}
    return found


@pytest.mark.parametrize(("distance", "blocks"), [(3, 4), (3, 5), (3, 6), (8, None), (0, None), (6, 10)])
def test_every_pair_within_the_distance_is_found_once(distance: int, blocks: int | None) -> None:
    rng = np.random.default_rng(distance)
    fingerprints = rng.integers(0, 2**64, 2000, np.uint64)
    for row in range(0, 1500, 3):  # plant near copies at every distance
        for bit in rng.choice(64, rng.integers(0, 10), replace=False):
            fingerprints[row + 1] = fingerprints[row + 1] if bit else fingerprints[row]
        flips = sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, 10), replace=False))
        fingerprints[row + 1] = fingerprints[row] ^ np.uint64(flips)
    pairs, skipped = near_pairs(fingerprints, plan_tables(len(fingerprints), distance, blocks=blocks))
    assert skipped == 0
    assert len(pairs) == len({tuple(p) for p in pairs.tolist()})
    assert {tuple(p) for p in pairs.tolist()} == brute(fingerprints, distance)
    fresh, _ = near_pairs(fingerprints, plan_tables(len(fingerprints), distance, blocks=blocks), old=700)
    assert {tuple(p) for p in fresh.tolist()} == {(a, b) for a, b in brute(fingerprints, distance) if b >= 700}


def test_long_runs_are_compared_with_their_best_documents_and_cost_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penjing.data.dedup.near.LONGEST_RUN", 60)
    monkeypatch.setattr("penjing.data.dedup.bands.LONGEST_RUN", 60)
    rng, number = np.random.default_rng(6), 900
    low = rng.integers(0, 4, number).astype(np.uint64)  # one template: everything within two bits, in an order that tells nothing
    fingerprints = np.uint64(0xABCDEF0123456789) ^ low
    found: list[np.ndarray] = []
    plan = plan_tables(number, 3, blocks=4)
    pairs, left_out = near_pairs(fingerprints, plan)
    assert len(pairs) == len({tuple(pair) for pair in pairs.tolist()})
    assert (np.bitwise_count(fingerprints[pairs[:, 0]] ^ fingerprints[pairs[:, 1]]) <= 2).all() and (pairs[:, 0] < pairs[:, 1]).all()
    found.append(pairs)
    assert left_out > number * number // 4
    banded, left_out = band_pairs(np.zeros((number, 1), np.uint64))
    assert len(banded) == len({tuple(pair) for pair in banded.tolist()}) == number * (number - 1) // 2 - left_out
    found.append(banded)
    for one in found:
        assert len(one) < 2 * (number * (16 + 16) + 60 * 60)  # SimHash: twice, in the table of the block that differs and in the next
        assert (stars(number, one) == 0).all()  # the best document takes all the others, however long the run
    short, left_out = band_pairs(np.zeros((60, 1), np.uint64))
    assert (len(short), left_out) == (60 * 59 // 2, 0)


def words(rng: np.random.Generator, number: int) -> list[str]:
    return [f"w{i}" for i in rng.integers(0, 5000, number)]


def jaccard(a: list[str], b: list[str], width: int = 5) -> float:
    one = {tuple(a[i : i + width]) for i in range(len(a) - width + 1)}
    two = {tuple(b[i : i + width]) for i in range(len(b) - width + 1)}
    return len(one & two) / len(one | two)


def edited(rng: np.random.Generator, base: list[str], share: float) -> list[str]:
    out = list(base)
    for at in rng.choice(len(out), int(share * len(out)), replace=False):
        out[at] = f"x{at}"
    return out


def test_similarity_is_exact_for_short_documents_and_close_for_long_ones() -> None:
    rng = np.random.default_rng(1)
    for size, tolerance in ((150, 1e-12), (3000, 0.1)):
        for share in (0.01, 0.03, 0.1):
            base = words(rng, size)
            other = edited(rng, base, share)
            signatures = sign(texts(" ".join(base), " ".join(other)), SignatureShape())
            got = similarities(np.array([[0, 1]]), signatures)[0]
            assert got == pytest.approx(jaccard(base, other), abs=tolerance)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=400), st.integers(1, 2**32), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_hashes_are_sorted_however_they_are_spread(picks: list[int], bound: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    few, many = rng.integers(0, bound, 5, np.uint64)[picks], rng.integers(0, bound, len(picks), np.uint64)
    near = np.arange(len(picks), dtype=np.uint64)[::-1] % np.uint64(bound)  # all in one bucket, in the worst order
    for values in (few.astype(np.uint32), many.astype(np.uint32), near.astype(np.uint32)):
        got = _sorted(values, len(values), np.uint64(bound), np.empty(len(values) + 1, np.int64), np.empty(len(values), np.uint32))
        assert got.tolist() == np.sort(values).tolist()


def test_sim_hash_is_the_majority_of_the_bits_of_the_features() -> None:
    from penjing.data.dedup.signature import shingle

    for number in (1, 2, 3, 9, 10, 17, 40, 3001):
        value = " ".join(f"w{i * i % 977}" for i in range(number))
        tokens = fold(texts(value), skeleton_table()).tokens
        features = [int(shingle(tokens, i, min(2, number))) for i in range(max(1, number - 1))]
        majority = sum(1 << bit for bit in range(64) if 2 * sum(f >> bit & 1 for f in features) > len(features))
        assert int(sign(texts(value), SignatureShape()).simhash[0]) == majority


def test_min_hash_bands_find_similar_documents_and_hardly_others() -> None:
    rng = np.random.default_rng(3)
    base = [words(rng, 300) for _ in range(100)]
    copies = [edited(rng, one, 0.01) for one in base]
    signatures = sign(texts(*[" ".join(one) for one in base + copies]), SignatureShape(bands=14, rows=8))
    pairs, skipped = band_pairs(signatures.bands)
    found = {tuple(pair) for pair in pairs.tolist()}
    assert skipped == 0
    assert len(found & {(i, 100 + i) for i in range(100)}) >= 97
    assert len(found) <= 102


def test_nearly_equal_texts_have_near_fingerprints() -> None:
    rng = np.random.default_rng(4)
    base = words(rng, 400)
    one, two, other = sign(
        texts(" ".join(base), " ".join(edited(rng, base, 0.01)), " ".join(words(rng, 400))), SignatureShape()
    ).simhash
    assert np.bitwise_count(one ^ two) <= 8
    assert np.bitwise_count(one ^ other) > 12


def test_a_chain_of_pairs_never_drops_a_document_without_a_pair_to_what_stays() -> None:
    pairs = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    centre = stars(6, pairs)
    assert centre.tolist() == [0, 0, 2, 2, 4, 5]
    assert chains(6, pairs).tolist() == [0, 0, 0, 0, 0, 5]
    rng = np.random.default_rng(0)
    many = np.unique(np.sort(rng.integers(0, 60, (90, 2)), axis=1), axis=0)
    many = many[many[:, 0] != many[:, 1]]
    linked = {tuple(pair) for pair in many.tolist()}
    centre = stars(60, many)
    for document, kept in enumerate(centre.tolist()):
        assert centre[kept] == kept
        assert kept == document or (kept, document) in linked
    assert (stars(60, many[rng.permutation(len(many))]) == centre).all()
    assert not any(centre[a] == a and centre[b] == b for a, b in linked)


def test_signatures_survive_taking_rows() -> None:
    values = [" ".join(words(np.random.default_rng(i), 20 * i)) for i in range(1, 8)]
    whole = sign(texts(*values), SignatureShape(bands=2, sketch=64))
    order = np.array([4, 0, 6])
    some = whole.take(order)
    again = sign(texts(*[values[i] for i in order]), SignatureShape(bands=2, sketch=64))
    for name in Signatures.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(some, name), getattr(again, name))


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("HTTP://www.Example.com:80/a/./b/../index.html?utm_source=x&b=2&a=1#top", "https://example.com/a?a=1&b=2"),
        ("https://example.com/a/", "https://example.com/a"),
        ("http://例子.cn/路径?q=字", "https://例子.cn/%E8%B7%AF%E5%BE%84?q=%E5%AD%97"),
        ("http://例子.cn/%e8%b7%af%E5%BE%84?q=%E5%AD%97&spm=1", "https://例子.cn/%E8%B7%AF%E5%BE%84?q=%E5%AD%97"),
        ("https://h.org:8443/", "https://h.org:8443"),
        ("http://www.h.org/a/b.c/index.php", "https://h.org/a/b.c"),
        ("http://h.org/a//b/", "https://h.org/a//b"),
        ("ftp://h.org/x", ""),
        ("not an address", ""),
        ("https://[bad", ""),
        ("http://h.org:99999999/", ""),
    ],
)
def test_one_spelling_per_address(url: str, canonical: str) -> None:
    assert canonical_url(url) == canonical
    assert canonical_url(canonical) == canonical


def test_the_filter_claims_few_new_keys_and_says_how_many(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    keys = rng.integers(0, 2**64, (20_000, 2), np.uint64)
    seen = bloom(20_000, rate=0.01)
    wrong = int(seen.add(keys).sum())
    assert seen.wrongful == pytest.approx(wrong, abs=5 * math.sqrt(seen.wrongful) + 5)
    assert seen.wrongful < 0.01 * 20_000
    assert seen.add(keys[:500]).all()
    fresh = int(bloom_copy(seen, tmp_path).add(rng.integers(0, 2**64, (20_000, 2), np.uint64)[:2000]).sum())
    assert fresh < 60
    assert abs(seen.bits / 20_000 - 9.59) < 0.1 and seen.probes == 7
    (tmp_path / "bad").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a saved filter"):
        load_bloom(tmp_path / "bad")


def bloom_copy(seen: Bloom, folder: Path) -> Bloom:
    seen.save(folder / "filter")
    return load_bloom(folder / "filter")


def test_plans_find_all_pairs_for_any_number_of_documents() -> None:
    for documents, distance in itertools.product((10, 10_000, 10_000_000, 1_000_000_000), (3, 6, 8)):
        plan = plan_tables(documents, distance)
        assert len(plan.masks) == math.comb(plan.blocks, distance)
