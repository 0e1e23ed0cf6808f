"""Encoder-decoder models on packed rows: three attentions, each with its own layout.

OpenBA's attention is replaced by the isolated operator. T5's needs its position bias inside the scores, so T5 and its kin get
dense masks, one for each attention; the two halves are called separately, because T5's own forward hands the encoder's mask to
the cross-attention.

Shape suffixes: B rows, S queries, T keys, D hidden, H heads, C channels.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn

from penjing.train.attention import Isolation, attend
from penjing.train.feed import Part


class Layouts:
    """The layouts of the forward pass that is running, shared by the attentions of one stack."""

    own: Isolation | None = None
    cross: Isolation | None = None


def prepare_openba(model: nn.Module) -> None:
    """Let every attention of an OpenBA model keep the documents apart."""
    for stack in (model.get_encoder(), model.get_decoder()):  # type: ignore[operator]
        stack._layouts = Layouts()
        for block in stack.block:
            if not hasattr(block, "self_attn"):
                continue  # another stage of a pipeline holds it
            block.self_attn.forward = _openba_forward(block.self_attn, stack._layouts)
            if stack.is_decoder_stack:
                block.inter_attn.forward = _openba_forward(block.inter_attn, stack._layouts)


def drop_no_inputs(model: Any) -> None:
    """Let the stacks of a later stage of a pipeline not drop out what they are given: the first stage has."""
    for stack in (model.get_encoder(), model.get_decoder()):
        stack.config = copy.copy(stack.config)
        stack.config.hidden_dropout = 0.0


def openba_hidden(model: Any, part: Part, states: tuple[Tensor, ...] | None = None) -> tuple[Tensor, Tensor]:
    """The encoder's and the decoder's last hidden states, B E H and B D H; from hidden states of either instead of ids."""
    encoder, decoder = model.get_encoder(), model.get_decoder()
    encoder._layouts.own = part.encoder_isolation
    decoder._layouts.own, decoder._layouts.cross = part.isolation, part.cross_isolation
    # Masks of one element keep the model from making its own; our attention does not look at them.
    none = torch.zeros(1, 1, 1, 1, device=part.tokens.device)
    starts: list[dict[str, Any]] = [{"input_ids": part.encoder_tokens}, {"input_ids": part.tokens}]
    if states is not None:
        starts = [{"inputs_embeds": one} for one in states]
    encoded: Tensor = encoder(**starts[0], attention_mask=none, position_ids=part.encoder_positions)[0]
    hidden: Tensor = decoder(**starts[1], attention_mask=none, position_ids=part.positions, encoder_hidden_states=encoded,
                             encoder_attention_mask=none)[0]
    return encoded, hidden


def masked_hidden(model: Any, part: Part) -> Tensor:
    """The same for T5 and its kin, with dense masks; memory grows with the squared row."""
    assert part.encoder_segments is not None and part.segments is not None
    kind = model.get_input_embeddings().weight.dtype
    own, other = part.segments, part.encoder_segments
    below = torch.ones(own.shape[1], own.shape[1], dtype=torch.bool, device=own.device).tril()
    with _repeatable(own.device):
        encoded = model.get_encoder()(input_ids=part.encoder_tokens, attention_mask=_additive(other, other, kind))[0]
        hidden: Tensor = model.get_decoder()(
            input_ids=part.tokens, attention_mask=_additive(own, own, kind, order=below), encoder_hidden_states=encoded,
            encoder_attention_mask=_additive(own, other, kind), use_cache=False)[0]
    if getattr(model.config, "tie_word_embeddings", False) and getattr(model.config, "scale_decoder_outputs", True):
        hidden = hidden * model.config.d_model**-0.5
    return hidden


def _repeatable(device: torch.device) -> Any:
    """On a GPU from which the same bits are wanted every time: attention by plain products, the only way that gives them."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    wanted = device.type == "cuda" and torch.are_deterministic_algorithms_enabled()
    return sdpa_kernel(SDPBackend.MATH) if wanted else contextlib.nullcontext()


def _additive(queries_BS: Tensor, keys_BT: Tensor, kind: torch.dtype, *, order: Tensor | None = None) -> Tensor:
    seen = (queries_BS[:, :, None] == keys_BT[:, None, :]) & (keys_BT > 0)[:, None, :]
    if order is not None:
        seen &= order
    return torch.zeros(seen.shape, dtype=kind, device=seen.device).masked_fill_(~seen, torch.finfo(kind).min)[:, None]


def _openba_forward(module: Any, layouts: Layouts) -> Any:
    from penjing.models.openba.modeling_openba import rotate

    def forward(states_BSD: Tensor, *, mask: Tensor | None, positions_BS: Tensor | None = None,
                encoded_BTD: Tensor | None = None, cache: Any = None) -> Tensor:
        if encoded_BTD is None:
            assert positions_BS is not None
            query, key, value = module._heads(module.qkv(states_BSD), 3)
            query, key = (rotate(x, positions_BS, module.config.rotary_base) for x in (query, key))
            layout = layouts.own
        else:
            (query,) = module._heads(module.q(states_BSD), 1)
            key, value = module._heads(module.kv(encoded_BTD), 2)
            layout = layouts.cross
        assert layout is not None and cache is None and not (module.training and module.config.attention_dropout)
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        joined = attend(q, k, v, layout, scale=module.channels**-0.5)
        out: Tensor = module.o(joined.flatten(1).view(*states_BSD.shape[:2], -1))
        return out

    return forward

