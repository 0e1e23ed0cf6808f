"""A plain Hugging Face checkpoint at any step: at chosen ones while training, and out of a saved state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penjing.contract import Job
from penjing.errors import InputError, Interrupted
from penjing.stages import export
from tests.train.test_train_robust import run


def loss_of(path: Path) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 60)[None]
    return float(AutoModelForCausalLM.from_pretrained(path)(input_ids=ids, labels=ids).loss.detach())


def test_checkpoints_at_chosen_steps_and_tokens(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    run(tmp_path / "plain", tiny_checkpoint, tiny_tokens)
    run(tmp_path / "out", tiny_checkpoint, tiny_tokens, exports=(2,), export_every=4, export_every_tokens=1000)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "plain" / "model.safetensors").read_bytes()
    made = sorted(path.name for path in (tmp_path / "out" / "exports").iterdir())
    steps = json.loads((tmp_path / "out" / "train.json").read_text())["steps"]
    assert {"step-00000002", "step-00000004", "step-00000008"} <= set(made) and len(made) >= 4
    assert f"step-{steps:08d}" in made  # the step that reaches the second thousand tokens is the last one
    losses = [loss_of(tmp_path / "out" / "exports" / name) for name in made]
    assert losses[0] > losses[-1] and loss_of(tmp_path / "out") == losses[-1]


def test_stopped_and_resumed_run_exports_the_same_bytes(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    run(tmp_path / "whole", tiny_checkpoint, tiny_tokens, export_every=3)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", tiny_checkpoint, tiny_tokens, export_every=3, stop=5)
    run(tmp_path / "parts", tiny_checkpoint, tiny_tokens, export_every=3)
    files = [sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name / "exports").rglob("*") if path.is_file())
             for name in ("whole", "parts")]
    assert files[0] == files[1] and len(files[0]) > 6
    for file in files[0]:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


def test_saved_state_becomes_a_checkpoint(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path / "out", tiny_checkpoint, tiny_tokens, exports=(3,), stop=5)
    inputs = {"checkpoint": tiny_checkpoint, "state": tmp_path / "out" / "state"}
    for name, step, expected in (("newest", None, 5), ("third", 3, 3)):
        (tmp_path / name).mkdir()
        assert export.run(export.Config(step=step), inputs, tmp_path / name, Job())["step"] == expected
    exported = tmp_path / "out" / "exports" / "step-00000003"
    assert (tmp_path / "third" / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    assert loss_of(tmp_path / "newest") < loss_of(tmp_path / "third")
    with pytest.raises(InputError, match="the state of step 4 cannot be exported; found it does not exist; expected one of the saved "
                       "steps: 3, 5"):
        export.run(export.Config(step=4), inputs, tmp_path / "third", Job())


def test_state_of_another_model_is_not_exported(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    from tests.train.conftest import make_checkpoint

    with pytest.raises(Interrupted):
        run(tmp_path / "out", tiny_checkpoint, tiny_tokens, stop=2)
    smaller = make_checkpoint(tmp_path / "smaller", layers=1)
    with pytest.raises(InputError, match="the state is of another model"):
        export.run(export.Config(), {"checkpoint": smaller, "state": tmp_path / "out" / "state"}, tmp_path / "made", Job())
