"""The recipe of OpenBA-V2's stages runs whole at a fraction of its tokens, with the shapes the paper's stages have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from penjing.files import read_json
from penjing.models.cost import count_parameters
from penjing.models.family import of

pytestmark = pytest.mark.slow

TINY = ["base_tokens=4000", "stage_1_tokens=1500", "stage_2_tokens=1500", "stage_3_tokens=1500", "direct_tokens=1500",
        "stage_4_tokens=3500", "stage_5_tokens=1500", "topics_bytes=80000", "docstring_bytes=80000", "pieces.size=1500",
        "losses.pieces_per_language=2", "base-losses.pieces_per_language=2", "stage-4.reweigh_every=2",
        "stage-4.reweigh_batches=1"]
MODELS = ["base", "stage-1-cut", "stage-1", "stage-2-cut", "stage-2", "stage-3-cut", "stage-3", "direct-cut", "direct", "uncut",
          "stage-4-cut", "stage-4", "stage-5", "small"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("openba") / "run"
    sets = [part for item in TINY for part in ("--set", item)]
    done = subprocess.run([sys.executable, "-m", "penjing", "--quiet", "run", "openba-v2-tiny", "--run-dir", str(run_dir), *sets],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return run_dir


def stage(run_dir: Path, name: str) -> Path:
    [found] = [path for path in run_dir.glob("[0-9][0-9]-*") if path.name[3:] == name]
    return found


def sizes(run_dir: Path, name: str) -> tuple[int, ...]:
    config = read_json(stage(run_dir, name) / "config.json")
    found = of(config).sizes(config)
    return tuple(found[key] for key in ("encoder_layers", "decoder_layers", "hidden", "ffn", "heads"))


def test_shapes_are_the_papers_by_four_and_by_sixty_four(tiny: Path) -> None:
    assert sizes(tiny, "base") == (3, 9, 64, 172, 10)
    assert [sizes(tiny, name)[:2] for name in ("stage-1", "stage-2", "stage-3", "direct")] == [(2, 8), (2, 7), (2, 6), (2, 6)]
    assert sizes(tiny, "stage-5") == sizes(tiny, "small") == (2, 6, 40, 108, 5)


def test_staged_and_direct_keep_the_same_layers(tiny: Path) -> None:
    import numpy as np

    from penjing.models.checkpoint import open_checkpoint

    # Right after the cut nothing has been trained, so the direct cut's layers are the base's, bit for bit.
    kept = {"encoder": [0, 2], "decoder": [0, 1, 3, 5, 7, 8]}
    base, direct = open_checkpoint(stage(tiny, "base")), open_checkpoint(stage(tiny, "direct-cut"))
    for stack, layers in kept.items():
        for place, layer in enumerate(layers):
            name = "block.{}.mlp.fc_in.weight"
            assert np.array_equal(direct.read(f"{stack}.{name.format(place)}"), base.read(f"{stack}.{name.format(layer)}"))
    origin = {"encoder": list(range(3)), "decoder": list(range(9))}
    for name in ("stage-1-cut", "stage-2-cut", "stage-3-cut"):
        gone = read_json(stage(tiny, name) / "stage.json")["figures"]["layers_dropped"]
        origin = {stack: [layer for place, layer in enumerate(layers) if place not in gone.get(stack, [])]
                  for stack, layers in origin.items()}
    assert origin == kept


def test_self_and_cross_attention_keep_the_same_heads(tiny: Path) -> None:
    plan = read_json(stage(tiny, "stage-4-cut") / "plan.json")
    keep = plan["keep"]
    assert all(keep[f"decoder.{layer}.head"] == keep[f"decoder.{layer}.cross_head"] for layer in range(6))
    assert len({keep[f"decoder.{layer}.head"] for layer in range(6)}) > 1  # drawn anew for each layer


def test_every_model_is_scored_on_the_same_targets(tiny: Path) -> None:
    scores = read_json(stage(tiny, "losses") / "scores.json")
    assert list(scores["models"]) == MODELS
    assert len({item["targets"] for name, item in scores["models"].items() if name != "small"}) == 1
    assert scores["models"]["base"]["loss"] == read_json(stage(tiny, "base-losses") / "scores.json")["models"]["base"]["loss"]
    assert scores["models"]["base"]["loss"] < 7.5  # ln of the vocabulary: it has learned something
    assert [(item["model"], item["less"]) for item in scores["differences"]][:2] == [("stage-1-cut", "base"),
                                                                                   ("stage-2-cut", "stage-1")]


def test_dynamic_shares_moved_and_sum_to_one(tiny: Path) -> None:
    shares = read_json(stage(tiny, "stage-4") / "train.json")["denoiser_shares"]
    assert abs(sum(shares) - 1) < 1e-9 and max(shares) - min(shares) > 1e-3


def test_vocabulary_shrinks_and_special_tokens_stay_behind_the_pieces(tiny: Path) -> None:
    from penjing.tokenizer.encode import load_encoder

    before, after = load_encoder(stage(tiny, "stage-5")), load_encoder(stage(tiny, "small"))
    assert after.vocab_size < before.vocab_size
    count = after.vocab_size - 104
    assert [after.special[name] for name in ("<extra_id_99>", "<extra_id_0>", "<R>", "<S>", "<X>", "\n")] == [
        count, count + 99, count + 100, count + 101, count + 102, count + 103]
    config = read_json(stage(tiny, "small") / "config.json")
    assert config["vocab_size"] >= after.vocab_size and config["decoder_start_token_id"] == 0
    assert count_parameters(config) < count_parameters(read_json(stage(tiny, "stage-5") / "config.json"))


def test_report_shows_the_losses_around_each_cut(tiny: Path) -> None:
    page = (tiny / "report.html").read_text(encoding="utf-8")
    assert 'id="denoisers"' in page and "loss right after cut" in page and "X 64/0.5" in page


def test_result_answers(tiny: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "penjing", "generate", str(stage(tiny, "small")), "<S> 春天 <extra_id_0>",
                           "--max-new-tokens", "4"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert "春天" in done.stdout and "custom code" not in done.stdout
