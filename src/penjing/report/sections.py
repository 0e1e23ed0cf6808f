"""One function per section of the report: from the run to what its part of the page shows. Empty sections give None."""

from __future__ import annotations

from typing import Any

from penjing.report.collect import Model, Run, Stage, curve, lineage
from penjing.report.figures import Interval, Series, histogram, interval_chart, line_chart, stacked_bars

LANGUAGE_NAMES = {"en": "English", "zh": "Chinese", "": "not identified"}
_CSS = {"en": "c-en", "zh": "c-zh"}


def headline(run: Run) -> dict[str, Any]:
    """State of the run and the few numbers a reader wants first."""
    done = sum(stage.state in ("done", "given") for stage in run.stages)
    by_name = {model.stage.name: model for model in run.models}
    result = by_name.get(run.plan.get("result") or "")
    ancestors = [by_name[stage.name] for stage in lineage(run, result.stage.name) if stage.name in by_name] if result else []
    first = ancestors[0] if ancestors else None
    return {
        "name": run.plan["name"], "about": run.plan["about"], "seed": run.plan["seed"], "done": done, "total": len(run.stages),
        "finished": done == len(run.stages), "seconds": sum(stage.seconds or 0 for stage in run.stages),
        "result": result, "first": first,
        "scores": [
            {"lang": LANGUAGE_NAMES.get(lang, lang), "after": run.scores[result.stage.name][lang]["bits_per_byte"],
             "before": run.scores.get(first.stage.name, {}).get(lang, {}).get("bits_per_byte") if first else None}
            for lang in sorted(run.scores.get(result.stage.name, {}))
        ] if result else [],
    }


def funnel(run: Run) -> dict[str, Any] | None:
    """Documents and bytes in and out of every data stage by language, and what was dropped for which reason."""
    stages = [stage for stage in run.stages if isinstance(stage.figures.get("funnel"), dict)]
    corpora = {entry["name"] for entry in run.plan["stages"] if entry["output"] == "corpus"}
    if not stages:
        return None
    rows, bars = [], []
    for stage in stages:
        found = stage.figures["funnel"]
        came, went = _total(found.get("in", {})), _total(found.get("out", {}))
        rows.append({
            "stage": stage, "in": came, "out": went,
            "languages": [{"lang": lang or "?", "name": LANGUAGE_NAMES.get(lang, lang), **_pair(found, lang),
                           "tokens": stage.figures.get("languages", {}).get(lang, {}).get("tokens")
                           if stage.name not in corpora else None}
                          for lang in sorted({*found.get("in", {}), *found.get("out", {})})],
            "dropped": sorted(({"reason": reason, **item} for reason, item in found.get("dropped", {}).items()),
                              key=lambda item: -item["documents"]),
            "edited": sorted(({"rule": rule, **item} for rule, item in found.get("edited", {}).items()),
                             key=lambda item: -item["documents"]),
            "samples": found.get("samples", [])[:60],
        })
        if stage.name in corpora:
            bars.append((stage.name, [(LANGUAGE_NAMES.get(lang, lang), float(found["out"][lang]["bytes"]), _css(lang))
                                  for lang in sorted(found.get("out", {}))]))
    return {"rows": rows, "chart": stacked_bars(bars, unit="bytes", x_label="bytes of text after each stage"),
            "languages": sorted({(LANGUAGE_NAMES.get(lang, lang), _css(lang)) for stage in stages
                                 for lang in stage.figures["funnel"].get("out", {})})}


def scorecard(run: Run) -> dict[str, Any] | None:
    """Precision and recall of the cleaning against the labels of the weather stage."""
    found = run.of_kind("cleaning-scorecard")
    if not found:
        return None
    rows: dict[str, dict[str, Any]] = {}
    for item in found[-1].figures["table"]:
        rows.setdefault(item["what"], {})[item["lang"]] = item
    languages = [lang for lang in ("all", "zh", "en", "other") if any(lang in row for row in rows.values())]
    return {"stage": found[-1], "languages": languages, "rows": list(rows.items())}


def rules(run: Run) -> list[dict[str, Any]]:
    """Per filter stage: what each rule did, and a histogram of every measure that has a bound and some spread."""
    found = []
    for stage in run.of_kind("filter"):
        fired = [rule for rule in stage.figures.get("rules", []) if rule["fired"]]
        charts = []
        for measure, languages in sorted(stage.figures.get("histograms", {}).items()):
            for lang, item in sorted(languages.items()):
                if sum(count > 0 for count in item["counts"]) > 3:
                    charts.append({"measure": measure, "lang": LANGUAGE_NAMES.get(lang, lang),
                                   "bounds": ", ".join(item["bounds"]),
                                   "chart": histogram(item["counts"], item["edges"], item["bounds"], css=_css(lang),
                                                      label=f"{measure}, {LANGUAGE_NAMES.get(lang, lang)}")})
        if fired or charts:
            found.append({"stage": stage, "rules": sorted(fired, key=lambda rule: -rule["fired"]), "charts": charts})
    return found


def audits(run: Run) -> list[dict[str, Any]]:
    """Every audit: the sample, each class of defects with its bounds, the decision."""
    return [{"stage": stage, "metrics": stage.figures["metrics"], "decision": stage.figures["decision"],
             "sampled": stage.figures["sampled"], "documents": stage.figures["documents"]}
            for stage in run.of_kind("audit") if "decision" in stage.figures]


def stage_table(run: Run) -> list[dict[str, Any]]:
    """The stage table of OpenBA-V2: sizes, data, objective, FLOPs, loss after the cut, loss after training."""
    rows = []
    by_name = {model.stage.name: model for model in run.models}
    for model in run.models:
        parents = [stage.name for stage in lineage(run, model.stage.name)][:-1]
        parent = by_name.get(parents[-1]) if parents else None
        cut = model.stage.kind in ("prune", "prune-vocab", "grow-vocab")
        rows.append({
            "model": model, "action": _action(model, parent), "layers": _layers(model), "data": _data(model.stage),
            "objective": _objective(model.stage),
            "share": model.parameters / parent.parameters if parent and parent.parameters and model.parameters else None,
            "bits": {lang: run.scores.get(model.stage.name, {}).get(lang, {}).get("bits_per_byte") for lang in ("en", "zh")},
            "cut": cut,
        })
    return rows


def loss_curves(run: Run) -> dict[str, Any] | None:
    """Training loss and held-out loss against the tokens of all training stages, one after the other."""
    offset, bands, train = 0.0, [], []
    held: dict[str, list[tuple[float, float]]] = {}
    for stage in run.stages:
        if stage.kind != "train":
            continue
        points = curve(stage, "loss")
        if not points:
            continue
        train.append(Series(stage.name, [(offset + x, y) for x, y in points], "c-train", label_end=False))
        for lang in ("en", "zh"):
            held.setdefault(lang, []).extend((offset + x, y) for x, y in curve(stage, f"bits_per_byte/{lang}"))
        end = max(x for x, _ in points)
        bands.append((offset, offset + end, stage.name))
        offset += end
    if not train:
        return None
    measured = [Series(LANGUAGE_NAMES[lang], points, _css(lang)) for lang, points in held.items() if points]
    return {
        "chart": line_chart(train, x_label="tokens trained on, all stages", y_label="training loss, nats per token", bands=bands),
        "held_out": line_chart(measured, x_label="tokens trained on, all stages", y_label="held-out bits per byte", bands=bands),
        "tokens": offset,
    }


def bits_per_byte(run: Run) -> dict[str, Any] | None:
    """Every evaluated model, each language with its interval."""
    if not run.scores:
        return None
    order = [stage.name for stage in run.stages if stage.name in run.scores] or list(run.scores)
    rows, table = [], []
    for name in order:
        marks = [Interval(score["bits_per_byte"], score["low"], score["high"], _css(lang),
                          f"{name}, {LANGUAGE_NAMES.get(lang, lang)}: {score['bits_per_byte']:.3f} "
                          f"({score['low']:.3f} to {score['high']:.3f})")
                 for lang, score in sorted(run.scores[name].items())]
        rows.append((name, marks))
        table.append({"name": name, "scores": sorted(run.scores[name].items())})
    languages = sorted({lang for scores in run.scores.values() for lang in scores})
    return {"chart": interval_chart(rows, x_label="bits per byte of held-out text (lower is better), 95% interval"),
            "table": table, "languages": [(lang, LANGUAGE_NAMES.get(lang, lang), _css(lang)) for lang in languages]}


def vocabulary(run: Run) -> dict[str, Any] | None:
    """Vocabulary stages with their before and after."""
    rows = []
    for stage in run.of_kind("grow-vocab", "prune-vocab"):
        rows.append({"stage": stage, "figures": {key: value for key, value in stage.figures.items() if key != "samples"}})
    fertility = [
        {"name": name, "scores": {lang: score["tokens_per_character"] for lang, score in scores.items()}}
        for name, scores in run.scores.items() if all("tokens_per_character" in score for score in scores.values())
    ]
    vocab = {model.stage.name: model.sizes.get("vocab") for model in run.models}
    return {"rows": rows, "fertility": fertility, "vocab": vocab} if rows else None


def samples(run: Run) -> list[dict[str, Any]]:
    """Continuations grouped by prompt, in the order of the models."""
    prompts: dict[str, list[dict[str, Any]]] = {}
    for sample in run.samples:
        prompts.setdefault(str(sample["prompt"]), []).append(dict(sample))
    return [{"prompt": prompt, "texts": texts} for prompt, texts in prompts.items()]


def durations(run: Run) -> list[dict[str, Any]]:
    """Every stage with its state and time."""
    longest = max((stage.seconds or 0 for stage in run.stages), default=0) or 1
    return [{"stage": stage, "share": (stage.seconds or 0) / longest} for stage in run.stages]


def _total(languages: dict[str, dict[str, int]]) -> dict[str, int]:
    return {key: sum(item[key] for item in languages.values()) for key in ("documents", "bytes")}


def _pair(found: dict[str, Any], lang: str) -> dict[str, Any]:
    empty = {"documents": 0, "bytes": 0}
    return {"in": found.get("in", {}).get(lang, empty), "out": found.get("out", {}).get(lang, empty)}


def _css(lang: str) -> str:
    return _CSS.get(lang, "c-other")


def _layers(model: Model) -> str:
    sizes = model.sizes
    if "encoder_layers" in sizes:
        return f"{sizes['encoder_layers']}/{sizes['decoder_layers']}"
    return str(sizes.get("layers", "–"))


def _action(model: Model, parent: Model | None) -> str:
    kind = model.stage.kind
    if parent is None:
        return {"given": "given", "initialise": "random weights"}.get(kind, kind)
    if kind == "train":
        return "training"
    changes = [f"{name.replace('_', ' ')} {before}→{model.sizes[name]}" for name, before in parent.sizes.items()
               if name in model.sizes and model.sizes[name] != before]
    return ", ".join(changes) or kind


def _data(stage: Stage) -> str:
    value = stage.inputs.get("tokens") or stage.inputs.get("corpus")
    items = value if isinstance(value, list) else [value]
    return ", ".join(str(item) for item in items if item) or "–"


def _objective(stage: Stage) -> str:
    if stage.kind != "train":
        return "–"
    config = stage.config
    name = config.get("objective") or (config.get("stream") or {}).get("objective") or "causal"
    return f"{name} + distillation" if stage.inputs.get("teacher") else str(name)
