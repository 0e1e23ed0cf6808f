"""Matrices with a 16-bit copy give what autocast gives, and their gradients are rounded less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from penjing.objectives.stream import StreamConfig, build_stream
from penjing.train import distributed, light, optim
from penjing.train.config import TrainConfig
from penjing.train.feed import Part, split
from penjing.train.loss import compiled_chunk
from penjing.train.matrices import Copies
from penjing.train.model import Objective, load

STREAM = StreamConfig(sequence_length=64, batch_rows=4, packing="best-fit")


@pytest.fixture(scope="module")
def parts(tiny_tokens: Path) -> list[Part]:
    stream = build_stream(STREAM, tiny_tokens)
    return [split(stream.batch(index), slice(None)) for index in range(6)]


def made(checkpoint: Path, *, kept: bool, product: torch.dtype | None = torch.bfloat16, compiled: bool = False,
         **settings: object) -> tuple[Objective, dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
    config = TrainConfig(**{"tokens": 1, "lr": 1e-2, **settings})
    model = load(checkpoint)
    parameters = optim.choose_trainable(model, config)
    objective = Objective(model, config, product=product)
    if kept:
        light.lighten_on_gpu(model, None, whole=True)  # tables' rows, but hidden states as autocast has them
        objective.keep_sums()
    distributed.speed_up(model, config)
    if compiled:
        for layer in distributed.layers_of(model):
            layer.compile(backend="aot_eager")
    optimizer = optim.build_optimizer(parameters, config)
    if objective.copies is not None:
        objective.copies.follow(optimizer)
    return objective, parameters, optimizer


def gradients(objective: Objective, parameters: dict[str, torch.nn.Parameter], parts: list[Part]) -> dict[str, torch.Tensor]:
    for part in parts:
        (objective(part, share=0.01).total * 0.01).backward()
    return {name: parameter.grad.clone() for name, parameter in parameters.items() if parameter.grad is not None}


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert set(ours) == set(theirs)
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_gradients_over_several_parts_and_updates(recompute: str, compiled: bool, tiny_checkpoint: Path, parts: list[Part]) -> None:
    ours = made(tiny_checkpoint, kept=True, recompute=recompute, compiled=compiled)
    rough = made(tiny_checkpoint, kept=False)
    exact = made(tiny_checkpoint, kept=False, product=None)
    for step in range(3):
        batch = parts[2 * step : 2 * step + 2]
        found = [gradients(objective, parameters, batch) for objective, parameters, _ in (ours, rough, exact)]
        assert distance(found[0], found[1]) < 0.03
        assert distance(found[0], found[2]) < 0.03
        for objective, parameters, optimizer in (ours, rough, exact):
            with torch.no_grad():  # the same weights for all, so that the next step compares gradients again
                for name, parameter in parameters.items():
                    parameter.grad = found[2][name] if objective is not ours[0] else parameter.grad.copy_(found[2][name])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert ours[0].copies is not None and len(ours[0].copies.matrices) == 14


def test_sums_are_exact_where_the_products_are(tiny_checkpoint: Path, parts: list[Part]) -> None:
    """With copies in fp32 the way of summing is all that differs from autograd's, over three parts."""
    ours = made(tiny_checkpoint, kept=True, product=torch.bfloat16)
    for matrix in ours[0].copies.matrices:  # type: ignore[union-attr]
        matrix.short_weight = matrix.short_weight.float()
    ours[0].product = None
    exact = made(tiny_checkpoint, kept=False, product=None)
    assert distance(gradients(*ours[:2], parts[:3]), gradients(*exact[:2], parts[:3])) < 1e-5


@pytest.mark.parametrize("trainable", ["layers:1-1", "re:mlp", "new-rows"])
def test_what_is_not_trained_has_no_sums(trainable: str, tiny_checkpoint: Path, parts: list[Part]) -> None:
    more = {"trainable": trainable, **({"new_rows_from": 50} if trainable == "new-rows" else {})}
    ours, theirs = made(tiny_checkpoint, kept=True, **more), made(tiny_checkpoint, kept=False, **more)
    assert distance(gradients(*ours[:2], parts[:2]), gradients(*theirs[:2], parts[:2])) < 0.03
    trained = sum(matrix.weight.requires_grad for matrix in ours[0].copies.matrices)  # type: ignore[union-attr]
    assert sum(hasattr(matrix, "grad_sum") for matrix in ours[0].copies.matrices) == trained  # type: ignore[union-attr]


def test_evaluation_sees_the_newest_weights(tiny_checkpoint: Path, parts: list[Part]) -> None:
    objective, parameters, optimizer = made(tiny_checkpoint, kept=True)
    gradients(objective, parameters, parts[:1])
    for change in (optimizer.step, lambda: [parameter.copy_(parameter * 0.9) for parameter in parameters.values()]):
        with torch.no_grad():
            before = float(objective(parts[0]).total)
            change()
            assert float(objective(parts[0]).total) != before
            for matrix in objective.copies.matrices:  # type: ignore[union-attr]
                assert torch.equal(matrix.short_weight, matrix.weight.bfloat16())


def test_a_weight_that_two_layers_use_has_no_copy() -> None:
    a, b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    b.weight = a.weight
    layer = torch.nn.Sequential(a, b, torch.nn.Linear(8, 4))
    assert [matrix.out_features for matrix in Copies([layer], torch.bfloat16).matrices] == [4]


def test_large_chunks_where_logits_exist_once() -> None:
    assert compiled_chunk(32_000) == 16_384 and compiled_chunk(250_880) == 2048 and compiled_chunk(2_000_000) == 512
