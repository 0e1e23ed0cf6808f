"""Audit a corpus: sample it, look for defects, bound their rate exactly, compare with a reference, and say yes or no."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from penjing.config import Config as BaseConfig
from penjing.contract import CORPUS, FILES, Estimate, Inputs, Job
from penjing.data.audit.acceptance import (
    allowed_defects,
    alpha_of_round,
    binomial_cdf,
    lower_bound,
    needed_sample,
    power,
    upper_bound,
)
from penjing.data.audit.drift import length_bins, shift, stability_index, state
from penjing.data.audit.indicators import DEFECTS, LEVEL_2, DefectClass, defects, lexicon, measures
from penjing.data.audit.sequential import follow, operating
from penjing.data.audit.sequential import plan as sequential_plan
from penjing.data.engine import map_shards
from penjing.errors import GateError, InputError, fault
from penjing.files import write_json
from penjing.stages.hold_out import position

if TYPE_CHECKING:
    import pyarrow as pa

    from penjing.data.document import Corpus

VERSION = 2
COMPARED = 5000
"""Most documents of one language whose words are compared with the reference's."""
INPUTS = {"corpus": CORPUS, "reference": CORPUS + "?", "marks": FILES + "?"}
OUTPUT = FILES
MEAN_SHIFT = 0.10
"""Relative shift of a level-2 mean against the reference from which it is reported as failed."""


class Config(BaseConfig):
    """What is claimed, on which sample, and whether a no ends the run."""

    claim: float = Field(0.001, gt=0, lt=1)
    """The defect rate the corpus is claimed to be below."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Confidence of the claim over all rounds together."""
    round: int = Field(1, ge=1)
    """Which attempt this is: each round draws a fresh sample."""
    rounds: int = Field(1, ge=0)
    """How many attempts there may be, fixed before the first: each may spend an equal part of the error 1 - confidence. 0 = any
    number, of which attempt i spends the part 1 / (i (i + 1)). Auditing until it passes without this accepts bad data."""
    fraction: float = Field(0.01, gt=0, le=1)
    """Share of the documents that is sampled."""
    least: int = Field(3000, ge=1)
    """Fewest documents sampled (2,995 without a defect prove "below 0.1%" at 95%); a smaller corpus is read whole."""
    classes: tuple[DefectClass, ...] = DEFECTS
    """Defect classes that count against a document."""
    toxic_words: tuple[str, ...] = ()
    """Files of words, one per line, whose presence is the class `toxic`; none is shipped."""
    strata: tuple[Literal["source", "lang", "length"], ...] = ()
    """What documents are told apart by. Of every stratum at least `per_stratum` documents are read and its own exact bound is given;
    the claim about the corpus rests on the simple random part of the sample, as without strata."""
    per_stratum: int = Field(300, ge=1)
    """Fewest documents read of each stratum; a smaller one is read whole."""
    plan: Literal["fixed", "sequential"] = "fixed"
    """`sequential` (Wald) reads the sample in its random order and stops when the answer is clear: fewer documents when the corpus is
    much better or worse than the claim. Its exact chances are in the report."""
    good: float | None = Field(None, gt=0, lt=1)
    """For `sequential`: the rate that should be accepted; None = 0.3 of the claim."""
    beta: float = Field(0.05, gt=0, lt=0.5)
    """For `sequential`: chance of refusing a corpus that is `good`."""
    known_bad: bool = True
    """Plant known-bad documents into clean ones and report what share the detectors see, by class and form."""
    gate: bool = False
    """End the run with exit code 4 when the answer is no."""
    drift_gate: bool = False
    """Let drift against the reference say no as well."""
    seed: int = 0
    """Another seed draws another sample."""

    @model_validator(mode="after")
    def _planned(self) -> Config:
        if self.rounds and self.round > self.rounds:
            raise ValueError(f"round at most rounds ({self.rounds}); plan the number of rounds before the first one")
        if self.plan == "sequential" and self.good_rate >= self.claim:
            raise ValueError(f"good below claim ({self.claim:g}); the two rates are set against each other")
        return self

    @property
    def good_rate(self) -> float:
        """The rate a sequential plan should accept."""
        return 0.3 * self.claim if self.good is None else self.good

    @property
    def alpha(self) -> float:
        """The error this round may spend."""
        error = 1 - self.confidence
        return error / self.rounds if self.rounds else alpha_of_round(error, self.round)


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write report.json and sample.parquet; GateError after that when the gate says no."""
    import pyarrow.parquet as pq

    from penjing.data.document import open_corpus

    corpus = open_corpus(inputs["corpus"])
    words = [line for path in config.toxic_words for line in _lines(Path(path))]
    every, sizes = examine(corpus, out / "state" / "corpus", job, config=config, words=words, label="audit")
    if not len(every):
        raise InputError(fault("the corpus holds no documents", where=corpus.path))
    found = every.filter(every.column("core"))
    metrics, decision = judge(found, config, corpus.documents)
    report: dict[str, Any] = {
        "version": VERSION,
        "documents": corpus.documents,
        "sampled": len(found),
        "metrics": metrics,
        "decision": decision,
        "means": _means(found),
    }
    if config.strata:
        from penjing.data.audit.strata import by_stratum

        bad = np.asarray(every.column("unqualified").to_numpy(zero_copy_only=False), bool)
        strata, weighted = by_stratum(every.column("stratum").to_pylist(), bad, sizes, alpha=config.alpha)
        report["strata"] = {"read": len(every), "weighted": weighted, "strata": strata}
    if config.known_bad:
        from penjing.config import generator
        from penjing.data.audit.seeded import detector_recall

        hosts = found.column("text").slice(0, 500).to_pylist()
        report["detectors"] = detector_recall(
            hosts, generator(config.seed, "audit", "known-bad"), toxic=lexicon(words), words=words, confidence=config.confidence)
    if inputs.get("reference") is not None:
        reference = open_corpus(inputs["reference"])
        theirs, _ = examine(reference, out / "state" / "reference", job, config=config, words=words, label="reference")
        report["drift"] = compare(found, theirs.filter(theirs.column("core")))
    drifted = [name for name, item in report.get("drift", {}).items() if item["state"] == "fail"]
    decision["drift_failed"] = drifted
    if inputs.get("marks") is not None:
        report["readers"] = read_by_people(Path(inputs["marks"]), found, config)
    by_people = report.get("readers", {"accepted": True})["accepted"]
    decision["accepted"] = decision["defects_accepted"] and by_people and not (config.drift_gate and drifted)
    pq.write_table(every, out / "sample.parquet", compression="zstd")
    write_json(out / "report.json", report)
    shutil.rmtree(out / "state")
    if config.gate and not decision["accepted"]:
        raise GateError(_refusal(report, corpus, config))
    return report


def read_by_people(folder: Path, found: pa.Table, config: Config) -> dict[str, Any]:
    """The decision on what readers marked; InputError when they read another sample or nobody has read anything twice."""
    from penjing.data.audit.sheet import conclude, read_marks, read_sheet
    from penjing.data.audit.sheet import judge as judge_marks

    items = read_sheet(folder)
    strangers = {item["id"] for item in items if not item["planted"]} - set(found.column("id").to_pylist())
    if strangers:
        raise InputError(
            fault(
                "the marks belong to another sample",
                where=folder,
                found=sorted(strangers)[0],
                fix="use the corpus, seed and round the sheet was made with",
            )
        )
    verdict = conclude(items, read_marks(folder))
    if not verdict.read:
        raise InputError(
            fault("no document was marked by two readers", where=folder, found=", ".join(verdict.readers) or "nobody")
        )
    people = judge_marks(verdict, claim=config.claim, alpha=config.alpha)
    if config.plan == "sequential":
        people["sequential"] = _followed(
            verdict.sequence, config, claim=config.claim * people["sensitivity_low"], alpha=config.alpha / 2)
        people["accepted"] = people["sequential"]["answer"] == "accept"
    return people


def _followed(defects: list[bool], config: Config, *, claim: float, alpha: float) -> dict[str, Any]:
    """The sequential plan, its exact chances at four rates, and what it says about documents read in this order."""
    good = config.good_rate
    if good >= claim:
        return {"answer": "undecided", "n": 0, "defects": 0, "why": f"claim {claim:.2g} after reader error is not above good {good:.2g}"}
    made = sequential_plan(good=good, claim=claim, alpha=alpha, beta=config.beta, most=max(1, len(defects)))
    return {
        **follow(made, defects),
        "plan": {"good": good, "claim": claim, "alpha": alpha, "beta": config.beta, "first": made.accept_at(0), "step": made.step,
                 "most": made.most},
        "operating": {f"{rate:.6g}": operating(made, rate) for rate in (good, (good + claim) / 2, claim, 2 * claim)},
    }


def examine(
    corpus: Corpus, folder: Path, job: Job, *, config: Config, words: list[str], label: str
) -> tuple[pa.Table, dict[str, int]]:
    """(the sampled documents of a corpus with their defects and measures, in the random order; documents of each stratum)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from penjing.data.audit.strata import smallest

    wanted = max(config.least, int(np.ceil(config.fraction * corpus.documents)))
    common = {"salt": f"{config.seed}/audit/{config.round}", "strata": list(config.strata)}
    places: list[dict[str, Any]] = [
        {"name": shard.name, "shard": shard, "to": folder / "places" / f"{shard.stem}.npz", "wanted": wanted,
         "per_stratum": config.per_stratum, **common}
        for shard in corpus.shards
    ]
    sizes: dict[str, int] = {}
    for one in map_shards(place_shard, places, job=job, label=f"{label} places", state=folder):
        for name, number in one.items():
            sizes[name] = sizes.get(name, 0) + number
    held: dict[str, list[np.ndarray]] = {}
    for unit in places:
        with np.load(unit["to"], allow_pickle=False) as file:
            for name in file.files:
                held.setdefault(name, []).append(file[name])
    bounds = {name: smallest(np.concatenate(parts), wanted if name == "core" else config.per_stratum)[-1:]
              for name, parts in held.items()}
    units = [
        {
            "name": shard.name,
            "shard": shard,
            "to": folder / shard.name,
            "words": words,
            "classes": list(config.classes),
            "bounds": {name: float(bound[0]) for name, bound in bounds.items() if len(bound)},
            **common,
        }
        for shard in corpus.shards
    ]
    map_shards(examine_shard, units, job=job, label=label, state=folder)
    table = pa.concat_tables([pq.read_table(unit["to"]) for unit in units]) if units else pa.table({})
    return (table.sort_by("place") if len(table) else table), dict(sorted(sizes.items()))


def _place(name: str | None, salt: str) -> float:
    return position(f"{salt}/{name or ''}", 0)


def place_shard(unit: dict[str, Any]) -> dict[str, int]:
    """Keep the smallest places of one shard, of all its documents (`core`) and of each stratum; gives the strata's documents."""
    from penjing.data.audit.strata import smallest, strata_of
    from penjing.data.document import shard_batches

    columns = ["id", *({"source": "source", "lang": "lang", "length": "text"}[name] for name in unit["strata"])]
    held: dict[str, np.ndarray] = {"core": np.empty(0)}
    sizes: dict[str, int] = {}
    for batch in shard_batches(Path(unit["shard"]), columns=columns):
        places = np.array([_place(name, unit["salt"]) for name in batch.column("id").to_pylist()])
        held["core"] = smallest(np.concatenate([held["core"], places]), unit["wanted"])
        if not unit["strata"]:
            continue
        names, inverse = np.unique(np.asarray(strata_of(batch, unit["strata"]), dtype=object), return_inverse=True)
        for number, name in enumerate(names.tolist()):
            here = places[inverse == number]
            sizes[name] = sizes.get(name, 0) + len(here)
            kept = held.get(f"stratum {name}", np.empty(0))
            held[f"stratum {name}"] = smallest(np.concatenate([kept, here]), unit["per_stratum"])
    path = Path(unit["to"])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp.npz")
    np.savez(temporary, **held)  # type: ignore[arg-type]
    temporary.replace(path)
    return sizes


def examine_shard(unit: dict[str, Any]) -> dict[str, Any]:
    """Write the sampled documents of one shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from penjing.data.audit.strata import strata_of
    from penjing.data.document import shard_batches

    toxic, bounds = lexicon(unit["words"]), unit["bounds"]
    rows: list[dict[str, Any]] = []
    for batch in shard_batches(Path(unit["shard"]), columns=["id", "lang", "source", "url", "text"]):
        places = [_place(name, unit["salt"]) for name in batch.column("id").to_pylist()]
        strata = strata_of(batch, unit["strata"])
        chosen = [
            row for row, place in enumerate(places) if place <= max(bounds["core"], bounds.get(f"stratum {strata[row]}", 0.0))
        ]
        for row, document in zip(chosen, batch.take(pa.array(chosen, pa.int64())).to_pylist(), strict=True):
            text = document["text"] or ""
            bad = defects(text, toxic=toxic)
            counted = [name for name in unit["classes"] if bad[name]]
            rows.append(
                {
                    **document,
                    "place": places[row],
                    "core": places[row] <= bounds["core"],
                    "stratum": strata[row],
                    "characters": len(text),
                    **bad,
                    "unqualified": bool(counted),
                    **measures(text),
                }
            )
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("lang", pa.string()),
            ("source", pa.string()),
            ("url", pa.string()),
            ("text", pa.large_string()),
            ("place", pa.float64()),
            ("core", pa.bool_()),
            ("stratum", pa.string()),
            ("characters", pa.int64()),
            *((name, pa.bool_()) for name in (*DEFECTS, "unqualified")),
            *((name, pa.float64()) for name in LEVEL_2),
        ]
    )
    path = Path(unit["to"])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, compression="zstd")
    temporary.replace(path)
    return {"sampled": len(rows)}


def judge(found: pa.Table, config: Config, documents: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(figures per defect class, the decision on documents with any counted defect)."""
    n = len(found)
    alpha = config.alpha
    census = n >= documents
    metrics = {}
    for name in (*DEFECTS, "unqualified"):
        bad = int(np.asarray(found.column(name).to_numpy(zero_copy_only=False), bool).sum())
        bounds = (bad / n, bad / n) if census else (lower_bound(bad, n, alpha=alpha), upper_bound(bad, n, alpha=alpha))
        metrics[name] = {
            "n": n,
            "defects": bad,
            "rate": bad / n,
            "ci_low": bounds[0],
            "ci_high": bounds[1],
            "method": "every document read" if census else "Clopper-Pearson, one-sided",
            "examples": found.filter(found.column(name)).column("id").to_pylist()[:20],
        }
    bad = metrics["unqualified"]["defects"]
    allowed = int(np.ceil(config.claim * n)) - 1 if census else allowed_defects(n, p1=config.claim, alpha=alpha)
    decision = {
        "claim": config.claim,
        "confidence": config.confidence,
        "round": config.round,
        "alpha": alpha,
        "n": n,
        "defects": bad,
        "rate": bad / n,
        "ci_high": metrics["unqualified"]["ci_high"],
        "classes": list(config.classes),
        "census": census,
        "plan": {
            "n": n,
            "allowed": allowed,
            "least_n": needed_sample(0, p1=config.claim, alpha=alpha),
            "accepts_a_third_of_the_claim": power(allowed, n, rate=config.claim / 3) if allowed >= 0 else 0.0,
            "accepts_bad_data": 0.0 if census else binomial_cdf(allowed, n, config.claim),
        },
        "defects_accepted": bad <= allowed,
    }
    if config.plan == "sequential" and not census:
        order = np.asarray(found.column("unqualified").to_numpy(zero_copy_only=False), bool).tolist()
        decision["sequential"] = _followed(order, config, claim=config.claim, alpha=alpha)
        decision["defects_accepted"] = decision["sequential"]["answer"] == "accept"
    return metrics, decision


def compare(found: pa.Table, theirs: pa.Table) -> dict[str, Any]:
    """Drift of the sample against the reference's: make-up by stability index, level-2 means by relative shift, topic and perplexity
    by language."""
    from penjing.data.audit.language_drift import LEAST_DOCUMENTS, language_drift

    drift: dict[str, Any] = {}
    for name in ("lang", "source"):
        index = stability_index(_histogram(found, name), _histogram(theirs, name))
        drift[name] = {"stability_index": index, "state": state(index) if name != "source" else "steady"}
    lengths = [length_bins(table.column("characters").to_numpy()) for table in (found, theirs)]
    index = stability_index(*lengths)
    drift["length"] = {"stability_index": index, "state": state(index)}
    ours, reference = _means(found), _means(theirs)
    for name in LEVEL_2:
        moved = shift(ours[name], reference[name])
        drift[name] = {
            "mean": ours[name],
            "reference": reference[name],
            "shift": moved if np.isfinite(moved) else None,
            "state": "fail" if abs(moved) > MEAN_SHIFT else "steady",
        }
    sides = [_by_language(table) for table in (found, theirs)]
    for lang in sorted(set(sides[0]) & set(sides[1])):
        if min(len(side[lang]) for side in sides) >= LEAST_DOCUMENTS:
            for name, item in language_drift(sides[0][lang], sides[1][lang]).items():
                drift[f"{name} {lang}".strip()] = item
    return drift


def _by_language(table: pa.Table) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for lang, text in zip(table.column("lang").to_pylist(), table.column("text").to_pylist(), strict=True):
        texts = found.setdefault(lang or "", [])
        if len(texts) < COMPARED:
            texts.append(text or "")
    return found


def _histogram(table: pa.Table, name: str) -> dict[str, float]:
    values, counts = np.unique(np.asarray(table.column(name).fill_null("").to_pylist(), dtype=str), return_counts=True)
    return dict(zip(values.tolist(), counts.astype(float).tolist(), strict=True))


def _means(table: pa.Table) -> dict[str, float]:
    return {name: float(table.column(name).to_numpy().mean()) for name in LEVEL_2}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise InputError(fault("no readable word list", where=path, found=error)) from error


def _refusal(report: dict[str, Any], corpus: Corpus, config: Config) -> str:
    decision, people = report["decision"], report.get("readers", {"accepted": True})
    if decision["defects_accepted"] and not people["accepted"]:
        return fault(
            f"readers have not shown fewer than {config.claim:g} defects at {config.confidence:g}",
            where=corpus.path,
            found=f"{people['defects']} defects in {people['n']} documents and {people['planted_found']} of "
            f"{people['planted']} planted items noticed, so at most {people['ci_high_with_reader_error']:.5f} is shown",
            fix="read more documents, plant more items, or clean again and audit the next round",
        )
    if decision["defects_accepted"]:
        return fault(
            "the corpus has drifted from the reference",
            where=corpus.path,
            found=", ".join(decision["drift_failed"]),
            fix="look at report.json, or set drift_gate: false",
        )
    plan = decision["plan"]
    if "sequential" in decision:
        said = decision["sequential"]
        return fault(
            f"the sequential plan does not accept fewer than {config.claim:g} defects at {config.confidence:g}",
            where=corpus.path,
            found=f"{said['answer']} after {said['n']} documents with {said['defects']} unqualified",
            fix="clean again and audit the next round" if said["answer"] == "refuse" else "raise least, so that more can be read",
        )
    if plan["allowed"] < 0:
        return fault(
            f"a sample of {decision['n']} documents cannot show fewer than {config.claim:g} defects",
            where=corpus.path,
            expected=f"at least {plan['least_n']} documents",
            fix="raise least, or claim less",
        )
    return fault(
        f"not shown to have fewer than {config.claim:g} defects at {config.confidence:g}",
        where=corpus.path,
        found=f"{decision['defects']} unqualified of {decision['n']}, so at most {decision['ci_high']:.5f} is shown",
        expected=f"at most {plan['allowed']}",
        fix="make score and rules stricter and audit again with the next round",
    )


def price(config: Config, inputs: Inputs) -> Estimate:
    """A report and a sample."""
    before: Estimate = inputs["corpus"]
    if not before.documents or before.text_bytes is None:
        return Estimate(memory_bytes=400e6)
    share = min(1.0, max(config.fraction, config.least / before.documents))
    return Estimate(memory_bytes=400e6 + 2 * share * before.text_bytes, disk_bytes=share * before.text_bytes)
