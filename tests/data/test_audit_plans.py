"""Sequential plans with exact chances, strata with exact bounds, planted documents, and drift of words."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.data.audit.acceptance import lower_bound, upper_bound
from penjing.data.audit.indicators import lexicon
from penjing.data.audit.language_drift import language_drift
from penjing.data.audit.seeded import FORMS, PER_CLASS, detector_recall
from penjing.data.audit.sequential import Plan, follow, operating, plan
from penjing.data.audit.strata import by_stratum, smallest, strata_of


def walk(made: Plan, rate: float) -> dict[str, float]:
    """The same chances by going through every document and every number of defects."""
    chance, accepts, refuses, read = {0: 1.0}, 0.0, 0.0, 0.0
    for n in range(1, made.most + 1):
        read += sum(chance.values())
        after: dict[int, float] = {}
        for d, share in chance.items():
            for found, part in ((d, share * (1 - rate)), (d + 1, share * rate)):
                if found > d and n <= made.refuse_up_to(found):
                    refuses += part
                elif n >= made.accept_at(found):
                    accepts += part
                else:
                    after[found] = after.get(found, 0.0) + part
        chance = after
    return {"accepts": accepts, "refuses": refuses, "undecided": sum(chance.values()), "documents": read}


@pytest.mark.parametrize(("good", "claim", "most"), [(0.01, 0.05, 400), (0.02, 0.05, 900), (0.003, 0.02, 1500), (0.1, 0.3, 90)])
def test_the_chances_of_a_sequential_plan_are_exact(good: float, claim: float, most: int) -> None:
    made = plan(good=good, claim=claim, alpha=0.05, beta=0.1, most=most)
    assert operating(made, claim)["accepts"] <= 0.05
    for rate in (good, claim, 2 * claim, good / 3):
        exact = walk(made, rate)
        for name, value in operating(made, rate).items():
            assert value == pytest.approx(exact[name], rel=1e-9, abs=1e-9), (rate, name)


def test_the_published_plan_for_one_in_a_thousand() -> None:
    made = plan(good=0.0003, claim=0.001, alpha=0.05, beta=0.05, most=40_000)
    assert made.accept_at(0) == pytest.approx(4204, abs=60)  # Wald's 4,204, drawn in until the exact error is 5%
    assert made.step == pytest.approx(1719, abs=1)
    assert 0.045 < operating(made, 0.001)["accepts"] <= 0.05
    assert operating(made, 0.0003)["accepts"] > 0.95
    assert follow(made, [False] * 5000) == {"answer": "accept", "n": made.accept_at(0), "defects": 0}
    assert follow(made, [False] * 4000) == {"answer": "undecided", "n": 4000, "defects": 0}
    assert follow(made, [True] * 10)["answer"] == "refuse"
    one = [n == 100 for n in range(9000)]
    assert follow(made, one) == {"answer": "accept", "n": made.accept_at(1), "defects": 1}
    short = plan(good=0.0003, claim=0.001, alpha=0.05, beta=0.05, most=3000)
    assert operating(short, 0.0003)["accepts"] == 0.0  # too few documents to accept anything, and the plan says so


@given(st.integers(0, 2**32), st.integers(0, 80))
@settings(max_examples=50, deadline=None)
def test_the_smallest_places_do_not_depend_on_how_they_come(seed: int, number: int) -> None:
    places = np.random.default_rng(seed).random(60)
    halves = np.concatenate([smallest(places[:25], number), smallest(places[25:], number)])
    assert smallest(halves, number).tolist() == sorted(places.tolist())[:number]


def test_strata_are_named_and_their_bounds_are_exact_together() -> None:
    table = pa.table({"id": ["a", "b"], "source": ["web", None], "lang": ["zh", "en"], "text": ["字" * 300, "x" * 20000]})
    assert strata_of(table, ("source", "lang", "length")) == ["source=web lang=zh length<1000", "source= lang=en length>=16000"]
    strata = ["a"] * 400 + ["b"] * 300 + ["c"] * 5
    bad = np.zeros(705, bool)
    bad[[0, 1, 2, 500]] = True
    found, weighted = by_stratum(strata, bad, {"a": 90_000, "b": 10_000, "c": 5}, alpha=0.05)
    assert (found["a"]["ci_low"], found["a"]["ci_high"]) == (lower_bound(3, 400, alpha=0.05 / 3), upper_bound(3, 400, alpha=0.05 / 3))
    assert found["c"] == {"documents": 5, "n": 5, "defects": 0, "rate": 0.0, "ci_low": 0.0, "ci_high": 0.0, "census": True}
    assert weighted["rate"] == pytest.approx((90_000 * 3 / 400 + 10_000 / 300) / 100_005)
    assert weighted["ci_high"] > weighted["rate"]
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):  # the true rates are covered as often as is said
        flags = np.concatenate([rng.random(200) < 0.01, rng.random(200) < 0.08])
        got, whole = by_stratum(["a"] * 200 + ["b"] * 200, flags, {"a": 9000, "b": 1000}, alpha=0.1)
        held += got["a"]["ci_high"] >= 0.01 and got["b"]["ci_high"] >= 0.08
        assert whole["ci_high"] <= 1
    assert held >= 270


def test_detectors_are_measured_on_planted_documents() -> None:
    hosts = [f"这是第{n}篇文章，讲的是山水与树木。\n它有两段话。" for n in range(50)] + ["write to a.b@c.org"]
    words = ["gadzook", "粗话"]
    found = detector_recall(hosts, np.random.default_rng(1), toxic=lexicon(words), words=words)
    assert set(found) == {*FORMS, "toxic"}
    for name, item in found.items():
        seen = [tuple(map(int, counts.split("/"))) for counts in item["forms"].values()]
        assert (sum(a for a, _ in seen), sum(b for _, b in seen)) == (item["found"], PER_CLASS), name
        assert item["recall_low"] == lower_bound(item["found"], PER_CLASS, alpha=0.05)
    for name, form in (("privacy", "e-mail"), ("privacy", "mobile number"), ("privacy", "resident number"),
                       ("advertising", "handle and offer"), ("markup", "tags"), ("garbled", "GBK read twice"), ("toxic", "as it is")):
        seen, planted = found[name]["forms"][form].split("/")
        assert seen == planted, (name, form)
    for name, form in (("privacy", "e-mail with (at)"), ("advertising", "handle in disguise"), ("garbled", "random Han")):
        assert found[name]["forms"][form].startswith("0/"), (name, form)  # what is overlooked is said
    assert detector_recall(["a@b.org"], np.random.default_rng(1), toxic=lexicon([])) == {}
    again = detector_recall(hosts, np.random.default_rng(1), toxic=lexicon(words), words=words)
    assert again == found


def texts(rng: np.random.Generator, number: int, low: int, high: int) -> list[str]:
    return [" ".join(f"w{int(n)}" for n in low + (high - low) * rng.random(80) ** 3) for _ in range(number)]


def test_words_that_moved_are_seen_and_named() -> None:
    rng = np.random.default_rng(2)
    reference = texts(rng, 300, 0, 500)
    same = language_drift(texts(rng, 300, 0, 500), reference)
    assert same["topic"]["state"] == same["perplexity"]["state"] == "steady"
    assert same["topic"]["distance_bits"] < 0.05 and abs(same["perplexity"]["shift"]) < 0.05
    moved = language_drift(texts(rng, 300, 300, 800), reference)
    assert moved["topic"]["state"] == moved["perplexity"]["state"] == "fail"
    assert moved["perplexity"]["shift"] > 1
    assert {"w300", "w301"} & set(moved["topic"]["more"]) and {"w0", "w1"} & set(moved["topic"]["fewer"])
    shuffled = [" ".join(rng.permutation(one.split())) for one in ("我 们 在 河 边 走 ， 看 见 一 只 鸟 飞 过 。 " * 5 for _ in range(60))]
    straight = ["我们在河边走，看见一只鸟飞过。" * 5] * 60
    order = language_drift(shuffled, straight)  # the same characters in another order: the topic stays, the perplexity does not
    assert order["topic"]["distance_bits"] == pytest.approx(0, abs=1e-9)
    assert order["perplexity"]["state"] == "fail"
    assert all(math.isfinite(item) for item in (order["perplexity"]["shift"], order["perplexity"]["stability_index"]))
    empty = language_drift(["", "。"], ["", "!"])
    assert empty["topic"]["state"] == "steady"


def test_a_corpus_that_is_its_own_reference_has_not_moved() -> None:
    rng = np.random.default_rng(3)
    reference = [" ".join(f"w{n}" for n in rng.integers(0, 3000, 60)) for _ in range(200)]
    same = language_drift(reference, reference)
    assert same["topic"]["distance_bits"] == 0
    assert same["perplexity"]["state"] == "steady" and abs(same["perplexity"]["shift"]) < 0.02
