"""A refit changes nothing where nothing was cut, and brings a cut model nearer to the uncut one, on unseen text too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from penjing.contract import Job
from penjing.errors import ConfigError, InputError, Interrupted
from penjing.files import hash_tree
from penjing.models import tiny
from penjing.models.checkpoint import load_model, open_checkpoint
from penjing.prune import importance, rotation, width
from penjing.prune.arrays import StoredArray
from penjing.prune.cut import CutView, apply
from penjing.prune.plan import PruningPlan, build, load
from penjing.prune.refit import _factor, _substitute, refit
from penjing.prune.width import Context
from tests.prune.test_calibrate import samples
from tests.prune.test_rotation import logits


def divergence(path: Path, plan: PruningPlan, model: torch.nn.Module, text: list[dict[str, np.ndarray]], out: Path) -> float:
    """Mean KL in nats per token from the uncut model to the cut one."""
    with open_checkpoint(path) as source:
        apply(plan, source, out)
    cut, whole = (logits(item, text).log_softmax(-1) for item in (load_model(out), model))
    return float(torch.nn.functional.kl_div(cut, whole, log_target=True, reduction="none").sum(-1).mean())


@pytest.mark.parametrize("case", ("llama", "gpt2", "codegen", "bloom", "t5-gated", "openba"))
def test_refit_of_a_whole_model_changes_nothing(case: str, tmp_path: Path) -> None:
    model = tiny.save(case, tmp_path / "model")
    text = samples(seq2seq=model.config.is_encoder_decoder)
    with open_checkpoint(tmp_path / "model") as source:
        plan = refit(build(source.config), Context(source, samples=text))
        assert plan.operations
        apply(plan, source, tmp_path / "out")
    before = logits(model, text)
    assert (logits(load_model(tmp_path / "out"), text) - before).abs().max() < 1e-4 * float(before.abs().max())


@pytest.mark.parametrize("case", ("llama", "openba"))
@pytest.mark.parametrize("rotate", (False, True))
def test_refit_brings_the_cut_model_nearer(case: str, rotate: bool, tmp_path: Path) -> None:
    model = tiny.save(case, tmp_path / "model")
    seq2seq = model.config.is_encoder_decoder
    text, unseen = samples(seq2seq=seq2seq, count=80), samples(seq2seq=seq2seq, seed=9)
    sizes = {"hidden": 24, "ffn": 20}
    with open_checkpoint(tmp_path / "model") as source:
        context = Context(source, samples=text)
        units = width.shrinking_units(source.config, sizes)
        plan = build(source.config, keep=width.select(source.config, sizes, importance.output_energy(context, units)))
        plan = rotation.pca(plan, context) if rotate else plan
        fitted = refit(plan, context)
        in_layers = refit(plan, context, streamed=True)
    cut = divergence(tmp_path / "model", plan, model, unseen, tmp_path / "cut")
    better = divergence(tmp_path / "model", fitted, model, unseen, tmp_path / "fitted")
    assert better < 0.6 * cut
    for name, operations in fitted.operations.items():
        for one, two in zip(operations, in_layers.operations[name], strict=True):
            if one.kind == "replace":
                # float32 sums in another order, and directions with little energy in them
                np.testing.assert_allclose(one.array, two.array, atol=5e-4 * float(np.abs(one.array).max()))


def test_what_is_before_a_dropped_layer_makes_up_for_it(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "model")
    with open_checkpoint(tmp_path / "model") as source:
        plan = build(source.config, layers={"layers": [0, 2]})
        fitted = refit(plan, Context(source, samples=samples(count=80)))
    unseen = samples(seed=9)
    cut = divergence(tmp_path / "model", plan, model, unseen, tmp_path / "cut")
    assert divergence(tmp_path / "model", fitted, model, unseen, tmp_path / "fitted") < 0.8 * cut


def test_a_stream_that_is_not_a_plain_sum_is_refused(tmp_path: Path) -> None:
    tiny.save("glm4", tmp_path)
    with open_checkpoint(tmp_path) as source, pytest.raises(InputError, match=r"not the plain sum.*cut without refit"):
        refit(build(source.config), Context(source, samples=samples()))


def test_refit_without_text_says_what_it_needs(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path)
    with open_checkpoint(tmp_path) as source, pytest.raises(ConfigError, match="a refit needs calibration text"):
        refit(build(source.config), Context(source))


def test_the_stage_cuts_with_metric_rotation_and_refit_by_name(tmp_path: Path) -> None:
    from penjing.stages import prune as stage

    model = tiny.save("llama", tmp_path / "model")
    text, unseen = samples(count=80), samples(seed=9)
    found = {}
    with open_checkpoint(tmp_path / "model") as source:
        for rotate, fit in (("none", False), ("selection", False), ("pca", True)):
            settings = stage.Config(hidden=16, ffn=20, importance="output-energy", rotation=rotate, refit=fit)
            plan, _ = stage.make_plan(settings, source, text)
            found[rotate] = divergence(tmp_path / "model", plan, model, unseen, tmp_path / rotate)
            assert load_model(tmp_path / rotate).config.hidden_size == 16
    assert found["pca"] < 0.6 * found["none"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factor_in_place_solves_the_ridge(dtype: torch.dtype) -> None:
    x_TF = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 23))).to(dtype)
    gram, right = x_TF.T @ x_TF, torch.from_numpy(np.random.default_rng(1).normal(size=(5, 23))).to(dtype)
    expected, weight = torch.linalg.solve(gram + 0.01 * gram.trace() * torch.eye(23, dtype=dtype), right.T).T, 0.01 * gram.trace()
    for block in (4, 8, 64):
        factor, found = _factor(gram.clone(), 0.01, block=block)
        assert found == pytest.approx(float(weight))
        torch.testing.assert_close(_substitute(factor, right), expected, rtol=1e-4, atol=1e-5)


def test_an_indefinite_sum_gets_a_stronger_ridge() -> None:
    gram = torch.eye(12)
    gram[0, 7] = gram[7, 0] = 1.05  # as rounding may leave it
    factor, weight = _factor(gram.clone(), 1e-3, block=4)
    assert weight == pytest.approx(10 * 1e-3 * 12)
    torch.testing.assert_close(factor.tril() @ factor.tril().T, gram + weight * torch.eye(12))
    with pytest.raises(InputError, match="cannot be fitted"):
        _factor(torch.full((4, 4), torch.nan), 1e-3)


def test_a_refitted_plan_is_saved_and_carried_out_as_it_is(tmp_path: Path) -> None:
    tiny.make("llama").to(torch.bfloat16).save_pretrained(tmp_path / "model")
    with open_checkpoint(tmp_path / "model") as source:
        fitted = refit(build(source.config, keep={"hidden": np.arange(24)}), Context(source, samples=samples()))
        assert all(isinstance(item.array, StoredArray) for items in fitted.operations.values() for item in items)
        apply(fitted, source, tmp_path / "direct")
        fitted.save(tmp_path / "plan")
        again = load(tmp_path / "plan")
        again.save(tmp_path / "plan")  # over the file it still reads from
        apply(load(tmp_path / "plan"), source, tmp_path / "again")
    assert hash_tree(tmp_path / "direct") == hash_tree(tmp_path / "again")


def test_a_refit_stops_when_it_is_asked_to(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path)
    asked = iter([False, False, True])
    with open_checkpoint(tmp_path) as source, pytest.raises(Interrupted, match="stopped while refitting"):
        refit(build(source.config), Context(source, samples=samples()), job=Job(stop=lambda: next(asked)))


def test_a_cut_is_read_as_it_would_be_written(tmp_path: Path) -> None:
    tiny.make("t5-own-head").to(torch.bfloat16).save_pretrained(tmp_path / "model")
    with open_checkpoint(tmp_path / "model") as source:
        context = Context(source, samples=samples(seq2seq=True))
        plan = rotation.pca(build(source.config, keep={"hidden": np.arange(20), "encoder.1.ffn": np.arange(3, 24),
                                                       "encoder.0.ffn": np.arange(21), **{f"decoder.{layer}.ffn": np.arange(21)
                                                                                          for layer in range(3)}}), context)
        apply(plan, source, tmp_path / "cut")
        view, cut = CutView(plan, source), open_checkpoint(tmp_path / "cut")
        assert view.config == cut.config and sorted(view.names) == sorted(cut.names)
        for name in view.names:
            np.testing.assert_array_equal(view.read_float(name), cut.read_float(name))
            np.testing.assert_array_equal(view.read_float(name, np.array([3, 0, 2])[: cut.shape(name)[0]]),
                                          cut.read_float(name, np.array([3, 0, 2])[: cut.shape(name)[0]]))
