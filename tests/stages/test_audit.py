"""The audit stage: counts what is bad, bounds it exactly, and says no with exit code 4 only when it is asked to gate."""

from __future__ import annotations

from pathlib import Path

import pytest

from penjing.config import generator
from penjing.contract import VOLATILE, Job
from penjing.data.document import CorpusWriter, documents
from penjing.errors import GateError, InputError
from penjing.files import hash_tree, read_json
from penjing.stages import audit

BAD = {
    "privacy": "write to someone@mail.example.org today",
    "markup": "<div><b>x</b></div>",
    "garbled": "锟斤拷锟斤拷 text",
    "advertising": "全场优惠，加微信：abc12345 咨询",
    "toxic": "such a gadzook of a day",
}


def corpus(path: Path, number: int, bad: dict[int, str] | None = None, *, longer: int = 1) -> Path:
    rows = []
    for i in range(number):
        rng = generator(2, "audit", i)
        text = " ".join(f"word{j}" for j in rng.integers(0, 500, 30 * longer)) + "."
        rows.append({"id": f"d{i}", "text": BAD[bad[i]] if bad and i in bad else text, "lang": "en", "source": "s"})
    with CorpusWriter(path, provenance={}) as writer:
        for shard in range(2):
            writer.write(documents(rows[shard::2]), f"part-{shard:05d}")
    return path


def run(out: Path, source: Path, *, workers: int = 1, reference: Path | None = None, **settings: object) -> dict:
    out.mkdir()
    return audit.run(
        audit.Config(**settings), {"corpus": source, "reference": reference}, out, Job(workers=workers, engine="thread")
    )


def test_each_defect_class_is_counted_and_named(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("gadzook\n", encoding="utf-8")
    bad = dict(zip(range(0, 100, 20), BAD, strict=True))
    report = run(tmp_path / "out", corpus(tmp_path / "in", 200, bad), toxic_words=[str(words)])
    for at, name in bad.items():
        assert report["metrics"][name]["examples"] == [f"d{at}"], name
    assert report["metrics"]["unqualified"] == {
        "n": 200,
        "defects": 5,
        "rate": 0.025,
        "ci_low": 0.025,
        "ci_high": 0.025,
        "method": "every document read",
        "examples": report["metrics"]["unqualified"]["examples"],
    }
    assert not report["decision"]["accepted"]
    assert read_json(tmp_path / "out" / "report.json")["decision"]["plan"]["least_n"] == 2995


def test_the_gate_says_no_with_exit_code_4_and_keeps_the_report(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", 400, {3: "privacy"})
    with pytest.raises(
        GateError,
        match=(
            r"not shown to have fewer than 0.01 defects at 0.95; found 1 unqualified of 300, so at most 0.0\d+ is shown; "
            r"expected at most 0; make score and rules stricter and audit again with the next round"
        ),
    ) as caught:
        run(tmp_path / "no", source, gate=True, claim=0.01, least=300, round=1, seed=_seed_that_draws(3, 400, 300))
    assert caught.value.exit_code == 4
    assert read_json(tmp_path / "no" / "report.json")["decision"]["accepted"] is False
    with pytest.raises(
        GateError, match=r"a sample of 100 documents cannot show fewer than 0\.001 defects; expected at least 2995"
    ):
        run(tmp_path / "few", source, gate=True, least=100)
    assert run(tmp_path / "yes", corpus(tmp_path / "clean", 700), gate=True, claim=0.01, least=600)["decision"][
        "accepted"
    ]


def _seed_that_draws(number: int, of: int, sample: int) -> int:
    for seed in range(100):
        places = sorted(range(of), key=lambda i: audit._place(f"d{i}", f"{seed}/audit/1"))
        if number in places[:sample]:
            return seed
    raise AssertionError("no seed draws it")


def test_a_round_draws_a_fresh_sample_and_spends_less(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", 400)
    one = run(tmp_path / "one", source, least=100)
    two = run(tmp_path / "two", source, least=100, round=2, rounds=0, workers=2)
    assert two["decision"]["alpha"] == pytest.approx(one["decision"]["alpha"] / 6)
    with pytest.raises(ValueError, match="plan the number of rounds before the first one"):
        audit.Config(round=2)
    assert one["sampled"] == two["sampled"] == 100
    assert hash_tree(tmp_path / "one" / "sample.parquet") != hash_tree(tmp_path / "two" / "sample.parquet")
    run(tmp_path / "again", source, least=100, workers=2)
    assert hash_tree(tmp_path / "one", ignore=VOLATILE) == hash_tree(tmp_path / "again", ignore=VOLATILE)


def test_drift_against_a_reference_is_seen(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", 300)
    same = run(tmp_path / "same", source, reference=corpus(tmp_path / "ref", 200), least=300)
    assert same["drift"]["length"]["state"] == "steady"
    far = corpus(tmp_path / "far", 200, longer=8)
    with pytest.raises(GateError, match="the corpus has drifted from the reference; found length"):
        run(tmp_path / "moved", source, reference=far, least=300, gate=True, drift_gate=True, claim=0.02)


def test_a_missing_word_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no readable word list"):
        run(tmp_path / "out", corpus(tmp_path / "in", 5), toxic_words=["/nowhere/words.txt"])


def test_strata_are_filled_up_and_the_claim_stays_on_the_random_part(tmp_path: Path) -> None:
    rows = [{"id": f"d{i}", "text": f"text {i}", "lang": "en", "source": "rare" if i % 50 == 0 else "web"} for i in range(2000)]
    rows[100]["text"] = BAD["privacy"]
    with CorpusWriter(tmp_path / "in", provenance={}) as writer:
        for shard in range(3):
            writer.write(documents(rows[shard::3]), f"part-{shard:05d}")
    plain = run(tmp_path / "plain", tmp_path / "in", least=400)
    report = run(tmp_path / "strata", tmp_path / "in", least=400, strata=["source", "length"], per_stratum=35, workers=2)
    assert report["sampled"] == plain["sampled"] == 400
    assert report["decision"] == plain["decision"] and report["metrics"] == plain["metrics"]
    strata = report["strata"]["strata"]
    assert set(strata) == {"source=rare length<250", "source=web length<250"}
    rare = strata["source=rare length<250"]
    assert rare["documents"] == 40 and rare["n"] == 35
    assert report["strata"]["read"] > 400
    assert run(tmp_path / "again", tmp_path / "in", least=400, strata=["source", "length"], per_stratum=35) == report


def test_a_sequential_plan_stops_early_and_says_what_it_risks(tmp_path: Path) -> None:
    clean = corpus(tmp_path / "clean", 900)
    settings = {"plan": "sequential", "claim": 0.02, "good": 0.005, "least": 800, "gate": True}
    said = run(tmp_path / "yes", clean, **settings)["decision"]["sequential"]
    assert said["answer"] == "accept" and said["n"] == said["plan"]["first"] < 300
    assert said["operating"]["0.02"]["accepts"] <= 0.05
    bad = corpus(tmp_path / "bad", 900, dict.fromkeys(range(0, 900, 20), "privacy"))
    with pytest.raises(GateError, match=r"the sequential plan does not accept fewer than 0\.02 defects at 0\.95; found refuse after \d+"):
        run(tmp_path / "no", bad, **settings)
    with pytest.raises(GateError, match=r"found undecided after 100 documents with 0 unqualified; raise least"):
        run(tmp_path / "few", clean, **{**settings, "least": 100})
    with pytest.raises(ValueError, match="good below claim"):
        audit.Config(plan="sequential", good=0.01)


def test_the_report_says_what_share_of_planted_defects_the_detectors_see(tmp_path: Path) -> None:
    report = run(tmp_path / "out", corpus(tmp_path / "in", 100))
    privacy = report["detectors"]["privacy"]
    assert privacy["planted"] == 60 and 0.4 < privacy["recall"] < 1
    assert privacy["forms"]["e-mail"] == "8/8" and privacy["forms"]["e-mail with (at)"] == "0/8"
    assert "toxic" not in report["detectors"]
    assert "detectors" not in run(tmp_path / "off", tmp_path / "in", known_bad=False)
