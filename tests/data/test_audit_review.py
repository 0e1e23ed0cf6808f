"""The review page: readers mark over HTTP, marks are kept at once, plants measure the readers, and the gate listens."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from penjing.contract import Job
from penjing.data.audit.review import main, serve
from penjing.data.audit.sheet import add_mark, conclude, disputed, judge, make_sheet, read_marks, read_sheet
from penjing.data.document import CorpusWriter, documents
from penjing.errors import GateError, InputError
from penjing.stages import audit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with CorpusWriter(tmp_path / "corpus", provenance={}) as writer:
        writer.write(documents([{"id": f"d{i}", "text": f"plain text number {i}.", "source": "s"} for i in range(40)]))
    (tmp_path / "audit").mkdir()
    audit.run(audit.Config(), {"corpus": tmp_path / "corpus"}, tmp_path / "audit", Job())
    (tmp_path / "bad.jsonl").write_text(
        "\n".join(json.dumps({"text": f"buy buy buy {i}"}) for i in range(20)), encoding="utf-8"
    )
    assert make_sheet(tmp_path / "review", tmp_path / "audit" / "sample.parquet", [tmp_path / "bad.jsonl"]) == 60
    return tmp_path


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    server = serve(folder / "review")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(5)


def get(url: str) -> dict:
    with urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


def post(url: str, body: bytes, kind: str = "application/json") -> int:
    with urlopen(Request(url, body, {"Content-Type": kind}), timeout=10) as answer:
        return answer.status


def read_all(folder: Path, reader: str, *, misses: set[str] = frozenset(), sees: dict[str, str] | None = None) -> None:
    for item in read_sheet(folder):
        bad = (item["planted"] and item["id"] not in misses) or item["id"] in (sees or {})
        add_mark(
            folder, reader=reader, key=item["key"], mark=(sees or {}).get(item["id"], "advertising") if bad else "good"
        )


def test_a_reader_sees_items_without_their_secret_and_marks_are_kept(folder: Path, address: str) -> None:
    with urlopen(address + "/", timeout=10) as page:
        assert b"<kbd>Space</kbd>" in page.read()
    seen = get(address + "/items?reader=anna")
    assert len(seen["items"]) == 60
    assert set(seen["items"][0]) == {"key", "text", "mark", "others"}
    key = seen["items"][3]["key"]
    assert post(address + "/marks", json.dumps({"reader": "anna", "key": key, "mark": "toxic"}).encode()) == 200
    assert post(address + "/marks", json.dumps({"reader": "anna", "key": key, "mark": "good"}).encode()) == 200
    assert read_marks(folder / "review") == {"anna": {key: "good"}}
    assert get(address + "/items?reader=anna")["items"][3]["mark"] == "good"
    assert get(address + "/items?reader=ben")["items"][3]["mark"] is None


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"reader": "a", "key": "none", "mark": "good"}', b"x" * 5000])
def test_bad_requests_change_nothing(folder: Path, address: str, body: bytes) -> None:
    with pytest.raises(HTTPError, match="400"):
        post(address + "/marks", body)
    key = read_sheet(folder / "review")[0]["key"]
    for row, kind in (
        ({"reader": "", "key": key, "mark": "good"}, "application/json"),
        ({"reader": "a", "key": key, "mark": "ugly"}, "application/json"),
        ({"reader": "a", "key": key, "mark": "good"}, "text/plain"),
    ):
        with pytest.raises(HTTPError, match="400"):
            post(address + "/marks", json.dumps(row).encode(), kind)
    with pytest.raises(HTTPError, match="404"):
        get(address + "/etc/passwd")
    assert read_marks(folder / "review") == {}


def test_disagreements_go_to_the_adjudicator_and_count_until_settled(folder: Path, address: str) -> None:
    review = folder / "review"
    read_all(review, "anna", sees={"d3": "toxic"})
    read_all(review, "ben", misses={"planted/0"})
    items = read_sheet(review)
    found = conclude(items, read_marks(review))
    assert (found.read, found.defects, found.planted, found.found) == (40, 1, 20, 20)
    assert (found.disagreements, found.unsettled, found.readers) == (2, 2, ["anna", "ben"])
    shown = get(address + "/items?reader=adjudicator")["items"]
    assert {item["key"] for item in shown} == set(disputed(read_marks(review))) and len(shown) == 2
    assert sorted(shown[0]["others"])[0].startswith("anna: ")
    toxic = next(item["key"] for item in items if item["id"] == "d3")
    add_mark(review, reader="adjudicator", key=toxic, mark="good")
    found = conclude(items, read_marks(review))
    assert (found.defects, found.unsettled) == (0, 1)
    assert found.kappa == pytest.approx(1 - (2 / 60) / (1 - (20 * 20 + 40 * 40 - 20 - 40 + 61) / 3600), abs=0.05)


def test_overlooked_plants_widen_the_bound(folder: Path) -> None:
    review = folder / "review"
    read_all(review, "anna", misses={f"planted/{i}" for i in range(5)})
    read_all(review, "ben", misses={f"planted/{i}" for i in range(5)})
    poor = judge(conclude(read_sheet(review), read_marks(review)), claim=0.2, alpha=0.05)
    read_all(review, "anna")
    read_all(review, "ben")
    good = judge(conclude(read_sheet(review), read_marks(review)), claim=0.2, alpha=0.05)
    assert (poor["planted_found"], good["planted_found"]) == (15, 20)
    assert poor["ci_high"] == good["ci_high"] < good["ci_high_with_reader_error"] < poor["ci_high_with_reader_error"]
    assert good["accepted"]


def test_marks_feed_the_gate(folder: Path) -> None:
    review = folder / "review"
    out = folder / "gated"
    out.mkdir()
    inputs = {"corpus": folder / "corpus", "marks": review}
    with pytest.raises(InputError, match="no document was marked by two readers"):
        audit.run(audit.Config(gate=True, claim=0.2), inputs, out, Job())
    read_all(review, "anna")
    read_all(review, "ben")
    assert audit.run(audit.Config(gate=True, claim=0.2), inputs, out, Job())["readers"]["defects"] == 0
    read_all(review, "ben", sees=dict.fromkeys(("d1", "d2", "d3", "d4"), "incoherent"))
    read_all(review, "anna", sees=dict.fromkeys(("d1", "d2", "d3", "d4"), "incoherent"))
    with pytest.raises(
        GateError, match=r"readers have not shown fewer than 0\.2 defects at 0\.95; found 4 defects in 40 documents"
    ):
        audit.run(audit.Config(gate=True, claim=0.2), inputs, out, Job())


def test_marks_on_another_sample_and_torn_marks_are_refused(folder: Path, tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "other", provenance={}) as writer:
        writer.write(documents([{"id": f"o{i}", "text": "text", "source": "s"} for i in range(5)]))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="the marks belong to another sample; found d0"):
        audit.run(audit.Config(), {"corpus": tmp_path / "other", "marks": folder / "review"}, out, Job())
    marks = folder / "review" / "marks.jsonl"
    marks.write_text('{"reader": "a", "key": "k", "mark": "good"}\n{"reader": "a", "k', encoding="utf-8")
    assert read_marks(folder / "review") == {"a": {"k": "good"}}
    marks.write_text('{"reader"\n{"reader": "a", "key": "k", "mark": "good"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"marks\.jsonl:1: unreadable mark"):
        read_marks(folder / "review")
    assert main([str(tmp_path / "nothing"), "--out", str(tmp_path / "sheet")]) == 3


def test_a_sequential_plan_follows_the_sheet_as_far_as_both_have_read(folder: Path) -> None:
    review = folder / "review"
    config = audit.Config(plan="sequential", claim=0.3, good=0.02)
    inputs = {"corpus": folder / "corpus", "marks": review}

    def said(name: str) -> dict:
        (folder / name).mkdir()
        return audit.run(config, inputs, folder / name, Job())["readers"]

    read_all(review, "anna")
    items = read_sheet(review)
    for item in items[:12]:
        add_mark(review, reader="ben", key=item["key"], mark="advertising" if item["planted"] else "good")
    few = said("few")
    assert few["sequential"]["answer"] == "undecided" and not few["accepted"]
    read_all(review, "ben")
    done = said("done")
    assert done["accepted"] and done["sequential"]["n"] == done["sequential"]["plan"]["first"] < 20
    assert done["sequential"]["plan"]["claim"] == pytest.approx(0.3 * done["sensitivity_low"])
    real = [item for item in items if not item["planted"]]
    for reader in ("anna", "ben"):
        for item in real[5:11]:
            add_mark(review, reader=reader, key=item["key"], mark="incoherent")
    bad = said("bad")
    assert bad["sequential"]["answer"] == "refuse" and not bad["accepted"]
    assert 6 <= bad["sequential"]["n"] <= 11


def test_documents_that_fill_up_strata_are_not_shown_to_readers(tmp_path: Path) -> None:
    rows = [{"id": f"d{i}", "text": f"text {i}", "lang": "zh" if i % 40 == 0 else "en", "source": "s"} for i in range(800)]
    with CorpusWriter(tmp_path / "corpus", provenance={}) as writer:
        writer.write(documents(rows))
    (tmp_path / "audit").mkdir()
    config = audit.Config(least=50, strata=["lang"], per_stratum=20)
    report = audit.run(config, {"corpus": tmp_path / "corpus", "reference": None}, tmp_path / "audit", Job())
    assert report["strata"]["read"] > 50
    assert make_sheet(tmp_path / "review", tmp_path / "audit" / "sample.parquet") == 50
