"""The prune stage on a trained model: cut in depth and width, loads with plain transformers, says what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from penjing.config import parse
from penjing.contract import Estimate, Job
from penjing.data.document import CorpusWriter, documents
from penjing.errors import ConfigError, InputError, Interrupted
from penjing.files import hash_tree, read_json
from penjing.models import tiny
from penjing.models.checkpoint import load_model, open_checkpoint, save_model
from penjing.models.cost import count_parameters
from penjing.objectives.tokens import write_tokens
from penjing.prune import depth
from penjing.stages import prune


@pytest.fixture
def stories(shared: Path) -> Path:
    return shared / "models" / "stories260K"


def cut(stories: Path, out: Path, **settings: Any) -> dict[str, Any]:
    out.mkdir()
    inputs = settings.pop("inputs", {})
    config = parse(prune.Config, settings, where="test")
    return prune.run(config, {"checkpoint": stories, **inputs}, out, Job())


def test_depth_and_width_reload_with_plain_transformers(stories: Path, tmp_path: Path) -> None:
    figures = cut(stories, tmp_path / "out", layers=3, hidden=48, ffn=96, heads=4, importance="magnitude")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert sum(parameter.numel() for parameter in model.parameters()) == figures["parameters_after"]
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.intermediate_size) == (3, 48, 96)
    assert (model.config.num_attention_heads, model.config.num_key_value_heads, model.config.head_dim) == (4, 2, 8)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] == ids.shape[1] + 3
    assert figures["layers_dropped"] == {"layers": [1, 3]}
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


def test_keeping_everything_is_bit_identical(stories: Path, tmp_path: Path) -> None:
    cut(stories, tmp_path / "out", layers=5, hidden=64, heads=8)
    source, result = open_checkpoint(stories), open_checkpoint(tmp_path / "out")
    assert sorted(source.names) == sorted(result.names)
    assert all((source.read_bits(name) == result.read_bits(name)).all() for name in source.names)
    assert result.config == source.config


def test_same_settings_give_the_same_bytes_and_another_seed_does_not(stories: Path, tmp_path: Path) -> None:
    hashes = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        cut(stories, tmp_path / name, hidden=32, seed=seed)
        hashes.append(hash_tree(tmp_path / name))
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_interrupted_cut_goes_on_to_the_same_bytes(stories: Path, tmp_path: Path) -> None:
    cut(stories, tmp_path / "whole", hidden=32)
    cut(stories, tmp_path / "again", hidden=32)
    (tmp_path / "again" / "config.json").unlink()
    (tmp_path / "again" / "plan.json").unlink()
    prune.run(prune.Config(hidden=32), {"checkpoint": stories}, tmp_path / "again", Job())
    assert hash_tree(tmp_path / "whole") == hash_tree(tmp_path / "again")


def test_a_stopped_cut_keeps_whole_shards_and_goes_on(stories: Path, tmp_path: Path) -> None:
    calls = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) > 20

    cut(stories, tmp_path / "whole", hidden=32)
    (tmp_path / "out").mkdir()
    with pytest.raises(Interrupted, match=r"stopped while cutting"):
        prune.run(prune.Config(hidden=32), {"checkpoint": stories}, tmp_path / "out", Job(stop=stop))
    assert not (tmp_path / "out" / "config.json").exists()
    (tmp_path / "out" / ".model.safetensors.1.tmp").write_text("left by a killed process")
    prune.run(prune.Config(hidden=32), {"checkpoint": stories}, tmp_path / "out", Job())
    assert hash_tree(tmp_path / "whole") == hash_tree(tmp_path / "out")


def test_the_three_depth_stages_of_openba_by_their_published_numbers(tmp_path: Path) -> None:
    settings = {**tiny.CASES["openba"][1], "num_layers": 12, "num_decoder_layers": 36}
    tiny.build("openba", settings).save_pretrained(tmp_path / "0")
    for number, drops in enumerate(depth.OPENBA_V2, start=1):
        cut(tmp_path / str(number - 1), tmp_path / str(number), drop_layers=drops, layer_numbers="original")
    value = read_json(tmp_path / "3" / "plan.json")
    assert [item["layers"]["encoder"] for item in value["history"]] == ["0-3,5-7,9-11", "0-4,6-7,9"]
    model = load_model(tmp_path / "3")
    assert (model.config.num_layers, model.config.num_decoder_layers) == (8, 24)
    first = open_checkpoint(tmp_path / "0")
    last = open_checkpoint(tmp_path / "3")
    for new, old in ((4, 5), (22, 34), (11, 15)):
        assert torch.equal(
            last.read(f"decoder.block.{new}.mlp.fc_in.weight"), first.read(f"decoder.block.{old}.mlp.fc_in.weight")
        )


def test_data_drives_depth_and_reports_the_loss(stories: Path, tmp_path: Path) -> None:
    text = (stories / "tinystories_sample.txt").read_text(encoding="utf-8")
    with CorpusWriter(tmp_path / "corpus", provenance={}) as corpus:
        corpus.write(documents([{"id": "a", "text": text, "source": "stories"}]))
    inputs = {"corpus": tmp_path / "corpus"}
    losses = {}
    for rule in ("spaced", "best"):
        figures = cut(
            stories, tmp_path / rule, layers=3, depth_rule=rule, refit=False, calibration_samples=4, calibration_length=64, inputs=inputs
        )
        losses[rule] = figures["loss_after"]
        assert figures["measured_on"] == "other text"
        assert figures["loss_before"] + 0.2 < figures["loss_after"] < 6.0
    assert losses["best"] <= losses["spaced"]


def test_with_text_every_choice_is_measured_and_the_cut_refitted(stories: Path, tmp_path: Path) -> None:
    text = (stories / "tinystories_sample.txt").read_text(encoding="utf-8")
    with CorpusWriter(tmp_path / "corpus", provenance={}) as corpus:
        corpus.write(documents([{"id": "a", "text": text, "source": "stories"}]))
    settings = {"layers": 4, "ffn": 96, "inputs": {"corpus": tmp_path / "corpus"}, "calibration_length": 64}
    figures = {name: cut(stories, tmp_path / name, **more, **{**settings, "inputs": dict(settings["inputs"])}) for name, more in (
        ("auto", {}), ("authors", {"importance": "random", "depth_rule": "spaced"}), ("unfitted", {"refit": False}))}
    how = {name: read_json(tmp_path / name / "plan.json")["how"] for name in figures}
    assert (how["auto"]["depth_rule"], how["auto"]["importance"], how["auto"]["refit"]) == ("best", "output-energy", True)
    assert (how["authors"]["importance"], how["authors"]["rotation"], how["authors"]["refit"]) == ("random", "none", False)
    losses = {name: item["loss_after"] for name, item in figures.items()}
    assert losses["auto"] < losses["unfitted"] < losses["authors"]
    assert not any((tmp_path / name / "state").exists() for name in figures)


def test_auto_leaves_out_a_refit_that_the_architecture_does_not_allow(tmp_path: Path) -> None:
    tiny.save("glm4", tmp_path / "model")
    rng = np.random.default_rng(0)
    write_tokens(tmp_path / "tokens", {"a": [[rng.integers(3, 48, 90)] for _ in range(20)]}, vocab_size=48, eos_id=2)
    settings = {"ffn": 20, "calibration_samples": 3, "calibration_length": 32, "inputs": {"tokens": tmp_path / "tokens"}}
    cut(tmp_path / "model", tmp_path / "out", **settings)
    assert read_json(tmp_path / "out" / "plan.json")["how"]["refit"] is False
    with pytest.raises(InputError, match="cut without refit"):
        cut(tmp_path / "model", tmp_path / "no", refit=True, **{**settings, "inputs": {"tokens": tmp_path / "tokens"}})


def test_tokens_calibrate_too_and_foreign_ones_are_refused(stories: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, vocab in (("own", 512), ("foreign", 900)):
        documents = [[rng.integers(3, vocab, 90)] for _ in range(20)]
        write_tokens(tmp_path / name, {"a": documents}, vocab_size=vocab, eos_id=2)
    settings = {"layers": 4, "depth_rule": "block-influence", "calibration_samples": 3, "calibration_length": 32}
    figures = cut(stories, tmp_path / "out", **settings, inputs={"tokens": tmp_path / "own"})
    assert figures["loss_after"] > 0 and len(figures["layers_dropped"]["layers"]) == 1
    with pytest.raises(
        InputError, match=r"calibration tokens are of another tokenizer; found id \d+; expected ids below the model's 512"
    ):
        cut(stories, tmp_path / "bad", **settings, inputs={"tokens": tmp_path / "foreign"})


def test_a_written_plan_may_be_edited_and_applied(stories: Path, tmp_path: Path) -> None:
    cut(stories, tmp_path / "plan", layers=4, plan_only=True)
    text = (tmp_path / "plan" / "plan.json").read_text()
    assert '"layers": "0-1,3-4"' in text
    (tmp_path / "plan" / "plan.json").write_text(text.replace('"layers": "0-1,3-4"', '"layers": "0-2,4"'))
    (tmp_path / "out").mkdir()
    figures = prune.run(prune.Config(), {"checkpoint": stories, "plan": tmp_path / "plan"}, tmp_path / "out", Job())
    assert figures["layers_dropped"] == {"layers": [3]}
    assert load_model(tmp_path / "out").config.num_hidden_layers == 4


def test_original_layer_numbers_follow_the_history(stories: Path, tmp_path: Path) -> None:
    cut(stories, tmp_path / "one", drop_layers=[1])
    figures = cut(tmp_path / "one", tmp_path / "two", drop_layers=[3], layer_numbers="original")
    assert figures["layers_dropped"] == {"layers": [2]}
    assert [item["layers"]["layers"] for item in read_json(tmp_path / "two" / "plan.json")["history"]] == ["0,2-4"]
    with pytest.raises(ConfigError, match=r"layer 1 of the original model is not in this one"):
        cut(tmp_path / "two", tmp_path / "three", drop_layers=[1], layer_numbers="original")


def test_the_history_survives_training_between_two_cuts(stories: Path, tmp_path: Path) -> None:
    cut(stories, tmp_path / "one", drop_layers=[1])
    save_model(load_model(tmp_path / "one"), tmp_path / "trained", tokenizer_from=tmp_path / "one")
    figures = cut(tmp_path / "trained", tmp_path / "two", drop_layers=[3], layer_numbers="original")
    assert figures["layers_dropped"] == {"layers": [2]}
    assert len(read_json(tmp_path / "two" / "plan.json")["history"]) == 1


def test_keep_finds_sizes_near_the_share(stories: Path, tmp_path: Path) -> None:
    figures = cut(stories, tmp_path / "out", keep=0.5)
    assert figures["kept_share"] == pytest.approx(0.5, abs=0.05)
    assert figures["parameters_after"] == count_parameters(open_checkpoint(tmp_path / "out").config)


def test_a_plan_for_a_share_comes_with_a_schedule(stories: Path, tmp_path: Path) -> None:
    figures = cut(stories, tmp_path / "plan", keep=0.4, plan_only=True)
    stages = read_json(tmp_path / "plan" / "schedule.json")["stages"]
    assert stages == figures["schedule"] and stages[0]["parameters"] == figures["parameters_before"]
    here = stories
    for number, stage in enumerate(stages[1:]):
        reached = cut(here, tmp_path / str(number), **stage["settings"])
        here = tmp_path / str(number)
        assert reached["parameters_after"] == stage["parameters"]
    assert stages[-1]["parameters"] / stages[0]["parameters"] == pytest.approx(0.4, rel=0.1)


def test_price_is_what_the_cut_gives(stories: Path, tmp_path: Path) -> None:
    source = open_checkpoint(stories)
    parameters = count_parameters(source.config)
    given = Estimate(parameters=parameters, disk_bytes=4.0 * parameters, model=source.config)
    estimate = prune.price(prune.Config(hidden=48, layers=0.6), {"checkpoint": given})
    figures = cut(stories, tmp_path / "out", hidden=48, layers=0.6)
    assert estimate.parameters == figures["parameters_after"]
    assert estimate.model == open_checkpoint(tmp_path / "out").config
    assert estimate.disk_bytes == pytest.approx((tmp_path / "out" / "model.safetensors").stat().st_size, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"heads": 5},
            "5 heads on 1 key/value heads is 5 per group, more than the 2 there are; hidden 64 is not a multiple of 5 heads.*"
            "nearest legal: heads 4, kv_heads 2 . heads 8",
        ),
        ({"hidden": 96}, "hidden cannot grow from 64 to 96"),
        ({"layers": 0.99, "drop_layers": [1]}, "'layers' and 'drop_layers' both say which layers stay"),
        ({"drop_layers": [0, 1, 2, 3, 4]}, "cannot drop 5 of 5 layers"),
        ({"drop_layers": [7]}, "there is no such layer to drop; found 7; expected 0 to 4"),
        ({"drop_layers": [1, 1]}, r"a layer is dropped twice; found \[1, 1\]"),
        ({"layers": [0, 5]}, "index out of range among the layers of layers; found 5; expected 0 to 4"),
        ({"hidden": 0}, "wrong hidden; found 0; expected a whole number above 0 or a share below 1"),
        (
            {"ffn": 90, "tensor_parallel": 4},
            "ffn 90 does not divide among 4 tensor-parallel ranks; nearest legal: ffn 88 . ffn 92",
        ),
        ({"importance": "magnitud"}, "unknown importance metric 'magnitud'.*did you mean 'magnitude'"),
        ({"depth_rule": "greedy", "layers": 3}, "this depth rule measures the model and was given nothing to measure it on"),
        ({"keep": 0.5, "ffn": 10}, "'keep' finds the sizes itself"),
        ({"layers": {"decoder": 3}}, "llama has no stack 'decoder'; expected one of layers"),
    ],
)
def test_impossible_cuts_are_refused_before_anything_is_written(
    stories: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cut(stories, tmp_path / "out", **{"hidden": 64, **settings} if "keep" not in settings else settings)
    assert not list((tmp_path / "out").iterdir())


def test_a_plan_for_another_model_is_refused(stories: Path, tmp_path: Path) -> None:
    cut(stories, tmp_path / "small", layers=3)
    cut(stories, tmp_path / "plan", layers=4, importance="magnitude", ffn=80, plan_only=True)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"the plan is for another model"):
        prune.run(prune.Config(), {"checkpoint": tmp_path / "small", "plan": tmp_path / "plan"}, tmp_path / "out", Job())
    model = load_model(stories)
    with torch.no_grad():
        model.model.norm.weight += 1
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"the plan was made from other weights of the same shape"):
        prune.run(prune.Config(), {"checkpoint": tmp_path / "other", "plan": tmp_path / "plan"}, tmp_path / "out", Job())
    assert not list((tmp_path / "out").iterdir())
