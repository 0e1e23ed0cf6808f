"""The report's section on encoder-decoders: which loss stands before, right after and after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penjing.report.collect import Model, Run, Stage
from penjing.report.denoising import denoisers

NAMES = ("R 3/0.15", "S")


def score(loss: float) -> dict[str, Any]:
    each = {"loss": loss, "low": loss - 0.1, "high": loss + 0.1}
    return {**each, "bits_per_byte": loss / 2, "by_denoiser": dict.fromkeys(NAMES, each)}


def stage(number: int, name: str, kind: str, source: str | None, figures: dict[str, Any] | None = None) -> Stage:
    return Stage(number, name, kind, "done", Path(name), {"checkpoint": source} if source else {}, {}, figures or {}, 1.0)


def run_of(scores: dict[str, Any]) -> Run:
    stages = (
        stage(1, "base", "train", None), stage(2, "cut", "prune", "base"), stage(3, "trained", "train", "cut"),
        stage(4, "small", "prune-vocab", "trained"), stage(5, "first", "denoising-losses", None, {"scores": {"base": score(1.0)}}),
        stage(6, "losses", "denoising-losses", None, {"scores": scores, "differences": []}),
    )
    models = tuple(Model(item, {}, 100 - number, {"encoder_layers": 2, "decoder_layers": 6, "hidden": 40}, tokens=500.0)
                   for number, item in enumerate(stages[:4]))
    return Run(Path("run"), {}, "", stages, models, {}, (), {}, ())


def test_each_cut_has_its_three_losses() -> None:
    found = denoisers(run_of({"small": score(4.1), "base": score(3.0), "cut": score(5.0), "trained": score(4.0)}))
    assert found is not None and [name for name, _ in found["rows"]] == ["base", "cut", "trained", "small"]
    cut, small = found["cuts"]
    assert (cut["before"], cut["after"], cut["trained"], cut["by"], cut["tokens"]) == (3.0, 5.0, 4.0, "trained", 500.0)
    assert (small["before"], small["after"], small["trained"], small["vocabulary"]) == (4.0, 4.1, None, True)
    assert found["names"] == list(NAMES) and found["chart"].count("<circle") == 4


def test_models_that_were_not_measured_are_left_out() -> None:
    found = denoisers(run_of({"cut": score(5.0), "small": score(4.1)}))
    assert found is not None and [row["name"] for row in found["cuts"]] == ["cut", "small"]
    assert found["cuts"][0]["before"] is None and found["cuts"][0]["trained"] is None and found["cuts"][1]["before"] == 5.0


def test_no_section_without_such_a_stage() -> None:
    whole = run_of({"base": score(1.0)})
    assert denoisers(Run(whole.path, {}, "", whole.stages[:4], whole.models, {}, (), {}, ())) is None
