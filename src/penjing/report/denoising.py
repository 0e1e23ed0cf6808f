"""The section on encoder-decoders: held-out loss by denoiser, and OpenBA-V2's table of before, right after and after training."""

from __future__ import annotations

from typing import Any

from penjing.report.collect import Run, lineage
from penjing.report.figures import Interval, interval_chart

CUTS = ("prune", "prune-vocab")


def denoisers(run: Run) -> dict[str, Any] | None:
    """Scores of the last denoising-losses stage that measured most models; None when there is none."""
    found = run.of_kind("denoising-losses")
    if not found:
        return None
    stage = max(found, key=lambda item: len(item.figures["scores"]))
    scores = stage.figures["scores"]
    order = [item.name for item in run.stages if item.name in scores] or list(scores)
    names = list(scores[order[0]]["by_denoiser"])
    chart = interval_chart(
        [(name, [Interval(scores[name]["loss"], scores[name]["low"], scores[name]["high"], "c-held",
                          f"{name}: {scores[name]['loss']:.3f} ({scores[name]['low']:.3f} to {scores[name]['high']:.3f})")])
         for name in order], x_label="held-out loss, nats per target token, mean of the denoisers (lower is better), 95% interval")
    return {"stage": stage, "names": names, "rows": [(name, scores[name]) for name in order], "chart": chart,
            "cuts": cuts(run, scores), "differences": stage.figures.get("differences", [])}


def cuts(run: Run, scores: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a cut: the loss of the model before it, right after it, and after the training that follows it."""
    by_name = {model.stage.name: model for model in run.models}
    rows = []
    for stage in run.stages:
        if stage.kind not in CUTS or stage.name not in scores:
            continue
        parents = [item.name for item in lineage(run, stage.name)[:-1] if item.name in scores]
        trained = next((item for item in run.stages if item.kind == "train" and item.inputs.get("checkpoint") == stage.name
                        and item.name in scores), None)
        model = by_name.get(stage.name)
        after = by_name.get(trained.name) if trained else None
        rows.append({
            "name": stage.name, "parameters": model.parameters if model else None, "sizes": model.sizes if model else {},
            "before": scores[parents[-1]]["loss"] if parents else None, "after": scores[stage.name]["loss"],
            "trained": scores[trained.name]["loss"] if trained else None, "by": trained.name if trained else None,
            "tokens": after.tokens if after else None, "vocabulary": stage.kind == "prune-vocab",
        })
    return rows
