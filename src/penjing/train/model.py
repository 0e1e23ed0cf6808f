"""A checkpoint made ready for the loop: one module from a part of a batch to its losses.

Decoder-only models are any transformers model that takes attention from transformers' interface; encoder-decoder models are
called half by half, so that each of the three attentions gets its own layout.

Shape suffixes: B rows, S positions, E and D encoder's and decoder's positions, T = B*S, H hidden, V vocabulary.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import ConfigError, InputError, fault
from penjing.train import attention, seq2seq
from penjing.train.config import PLAIN_CHUNK, DistilConfig, TrainConfig
from penjing.train.feed import Part
from penjing.train.loss import Losses, Teacher, chunked_loss, compiled_chunk
from penjing.train.matrices import Copies
from penjing.train.outline import Outline, outline

PRODUCTS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def load(path: Path) -> nn.Module:
    """The model in `path` with fp32 weights, dropout as the config says, attention isolated, cache off."""
    from transformers.utils import logging

    from penjing.models.checkpoint import load_model

    logging.disable_progress_bar()  # ours is shown instead
    model = load_model(path, dtype="float32")
    return prepare(model, where=path)


def load_outline(path: Path) -> tuple[nn.Module, Outline | None]:
    """The same without its matrices, which `Outline.fill` reads; whole where its files do not allow that."""
    found = outline(path)
    return (load(path), None) if found is None else (prepare(found[0], where=path), found[1])


def prepare(model: nn.Module, *, where: Path | None = None) -> nn.Module:
    """Make `model` keep documents apart; ConfigError when its attention cannot be replaced."""
    attention.register()
    model.config.use_cache = False  # type: ignore[union-attr]
    if getattr(model.config, "model_type", None) == "openba":
        seq2seq.prepare_openba(model)
        return model
    if getattr(model.config, "is_encoder_decoder", False):
        return model  # dense masks, in seq2seq.masked_hidden
    if not getattr(type(model), "_supports_attention_backend", False):
        raise ConfigError(fault("this architecture does not take attention from outside, so rows of several documents would "
                                "leak into each other", where=where, found=type(model).__name__,
                                expected="a model with _supports_attention_backend"))
    model.set_attn_implementation(attention.IMPLEMENTATION)  # type: ignore[operator]
    return model


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` is bf16 where matrix products in bf16 are native."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


class Objective(nn.Module):
    """The model and, when there is one, its teacher, as one module that gives losses."""

    def __init__(self, model: nn.Module, config: TrainConfig, *, teacher: nn.Module | None = None,
                 product: torch.dtype | None = None, autocast: bool = True) -> None:
        super().__init__()
        self.autocast = autocast
        """False where the parameters themselves come in `product`'s type (FSDP's mixed precision)."""
        self.direct = False
        """Whether the output table's gradient is summed in its `.grad` while the loss is computed (`chunked_loss`)."""
        self.copies: Copies | None = None
        """The layers' matrices in 16 bits, where there are any."""
        self.model = model
        self.config = config
        self.product = product
        self._teacher = (teacher,)  # in a tuple: its parameters are not ours
        self._distil = config.distil or DistilConfig()  # type: ignore[call-arg]
        self.is_encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
        if teacher is not None:
            check_teacher(model, teacher)
            teacher.requires_grad_(False).eval()

    def keep_sums(self) -> None:
        """Where this process holds whole weights: let products add to the weights' gradients where these are kept."""
        from penjing.train.distributed import layers_of

        self.direct = True
        if self.product == torch.bfloat16 and not self.config.fp8:
            self.copies = Copies(layers_of(self.model), self.product)

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen model learned from, if any."""
        return self._teacher[0]

    def states(self, part: Part, before: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """Hidden states after the model's layers, the decoder's last; `before` come from the stage of a pipeline before this one."""
        with self._autocast(part):
            return last_states(self.model, part, before)

    def forward(self, part: Part, before: tuple[Tensor, ...] | None = None, share: float | None = None) -> Losses:
        """Sums of the losses of one part of a batch. `share`: the caller goes on with `(losses.total * share).backward()`."""
        if self.copies is not None:
            self.copies.ready(learning=torch.is_grad_enabled())
        if self.config.compile is True:
            _let_lengths_vary(part)
        hidden = self.states(part, before)[-1].flatten(0, 1)
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        scale = _logit_scale(self.model)
        teacher = self._ask_teacher(part)
        compiled = self.config.compile is True and hidden.is_cuda and teacher is None
        chunk = self.config.loss_chunk_tokens or (compiled_chunk(head.weight.shape[0]) if compiled else PLAIN_CHUNK)
        return chunked_loss(hidden if scale == 1.0 else hidden * scale, head.weight, getattr(head, "bias", None),
                            part.targets.flatten(), part.weights.flatten(), chunk=chunk, z_loss=self.config.z_loss, teacher=teacher,
                            product=self.product, kept=part.labelled, compiled=compiled,
                            into_table=share if self.direct else None)

    def _ask_teacher(self, part: Part) -> Teacher | None:
        model = self.teacher
        if model is None:
            return None
        with torch.no_grad(), self._autocast(part):
            hidden = last_states(model, part)[-1].flatten(0, 1) * _logit_scale(model)
        head = model.get_output_embeddings()  # type: ignore[operator]
        rule = self._distil
        return Teacher(hidden, head.weight, getattr(head, "bias", None), rule.weight, rule.temperature,
                       rule.direction == "reverse")

    def _autocast(self, part: Part) -> Any:
        if self.product is None or not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(part.targets.device.type, self.product)


def last_states(model: nn.Module, part: Part, before: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
    """Hidden states that the output table is applied to, B S H, after the encoder's, B E H, if there is one; from the states
    `before` instead of ids."""
    if getattr(model.config, "model_type", None) == "openba":
        return seq2seq.openba_hidden(model, part, before)
    if getattr(model.config, "is_encoder_decoder", False):
        return (seq2seq.masked_hidden(model, part),)
    start = {"input_ids": part.tokens} if before is None else {"inputs_embeds": before[0]}
    out = model.base_model(**start, position_ids=part.positions, use_cache=False, isolation=part.isolation)  # type: ignore[operator]
    return (out[0],)


def _let_lengths_vary(part: Part) -> None:
    """Tell the compiler that batches have other numbers of documents, which it would find out by compiling again."""
    def mark(tensor: Tensor) -> Tensor:
        if tensor.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return tensor

    for layout in (part.isolation, part.encoder_isolation, part.cross_isolation):
        if layout is not None:
            layout.each(mark)


def check_teacher(model: Any, teacher: Any) -> None:
    """InputError unless teacher and student score the same vocabulary."""
    ours, theirs = model.get_output_embeddings().weight.shape[0], teacher.get_output_embeddings().weight.shape[0]
    if ours != theirs:
        raise InputError(fault("the teacher's vocabulary is not the student's", found=f"{theirs} rows",
                               expected=f"{ours} rows", fix="distil before the vocabulary is changed, or use a teacher with "
                               "the same tokenizer"))
    if bool(model.config.is_encoder_decoder) != bool(teacher.config.is_encoder_decoder):
        raise InputError(fault("teacher and student must both be decoder-only or both encoder-decoder"))


def _logit_scale(model: Any) -> float:
    """Factors some families put between the hidden states and the logits."""
    config = model.config
    if getattr(config, "final_logit_softcapping", None):
        raise ConfigError(fault("soft-capped logits are not supported in training", found=config.model_type))
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    return scale / float(getattr(config, "logits_scaling", None) or 1.0)
