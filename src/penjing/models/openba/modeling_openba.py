"""OpenBA: an encoder-decoder with pre-LayerNorm, rotary positions in self-attention, SwiGLU, and more decoder than
encoder layers.

Weight names and layouts are those of the published checkpoints: each head of the fused projection holds its own query,
key and value; `fc_in` holds gate, then up; the head has a bias for each token and is never scaled. Legend: B rows, S
query places, T key places, D hidden, H heads, C channels per head.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from .configuration_openba import OpenBAConfig

_CACHE_FIELD = "cache" if any(field.name == "cache" for field in fields(Seq2SeqLMOutput)) else "past_key_values"


def rotate(states_BHSC: Tensor, positions_BS: Tensor, base: float) -> Tensor:
    """Rotary positions, halves paired (i, i + C/2), angles in float32."""
    half = states_BHSC.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, dtype=torch.float32, device=states_BHSC.device) / half)
    angles = positions_BS[:, None, :, None].float() * frequencies
    cosine, sine = angles.cos(), angles.sin()
    first, second = states_BHSC.float().split(half, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(states_BHSC.dtype)


def additive_mask(
    mask: Tensor | None, dtype: torch.dtype, *, queries: int, keys: int, causal: bool, device: torch.device
) -> Tensor | None:
    """A mask to add to scores: 0 where a query may look, the smallest finite number elsewhere; None when it may look
    everywhere.

    `mask` is [B, T] (1 = a token), [B, 1, S, T] of bool (True = may look), or [B, 1, S, T] of floats, which is taken as
    it is.
    """
    if mask is not None and mask.dim() == 4 and mask.dtype.is_floating_point:
        return mask.to(dtype)
    seen = None
    if mask is not None:
        seen = mask.bool() if mask.dim() == 4 else mask[:, None, None, :].bool()
    if causal and queries > 1 and not (mask is not None and mask.dim() == 4):
        below = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        seen = below if seen is None else seen & below
    if seen is None:
        return None
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)


class OpenBAAttention(nn.Module):
    """Self-attention with rotary positions (`qkv`), or cross-attention without (`q`, `kv`); `o` joins the heads."""

    def __init__(self, config: OpenBAConfig, *, layer: int, cross: bool) -> None:
        super().__init__()
        self.config, self.layer, self.cross = config, layer, cross
        self.heads, self.channels = config.num_heads, config.kv_channels
        inner, hidden, bias = self.heads * self.channels, config.hidden_size, config.add_qkv_bias
        if cross:
            self.q = nn.Linear(hidden, inner, bias=bias)
            self.kv = nn.Linear(hidden, 2 * inner, bias=bias)
        else:
            self.qkv = nn.Linear(hidden, 3 * inner, bias=bias)
        self.o = nn.Linear(inner, hidden, bias=bias)

    def forward(
        self,
        states_BSD: Tensor,
        *,
        mask: Tensor | None,
        positions_BS: Tensor | None = None,
        encoded_BTD: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        if encoded_BTD is None:
            query, key, value = self._heads(self.qkv(states_BSD), 3)
            assert positions_BS is not None
            query = rotate(query, positions_BS, self.config.rotary_base)
            key = rotate(key, positions_BS, self.config.rotary_base)
            if cache is not None:
                key, value = _part(cache, "self_attention_cache").update(key, value, self.layer)
        else:
            (query,) = self._heads(self.q(states_BSD), 1)
            if cache is not None and cache.is_updated.get(self.layer):
                stored = cache.cross_attention_cache.layers[self.layer]
                key, value = stored.keys, stored.values
            else:
                key, value = self._heads(self.kv(encoded_BTD), 2)
                if cache is not None:
                    key, value = cache.cross_attention_cache.update(key, value, self.layer)
                    cache.is_updated[self.layer] = True
        dropout = self.config.attention_dropout if self.training else 0.0
        joined = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        output: Tensor = self.o(joined.transpose(1, 2).flatten(2))
        return output

    def _heads(self, fused: Tensor, parts: int) -> tuple[Tensor, ...]:
        split = fused.view(*fused.shape[:2], self.heads, parts, self.channels)
        return tuple(part.transpose(1, 2) for part in split.unbind(3))


class OpenBAMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one matrix."""

    def __init__(self, config: OpenBAConfig) -> None:
        super().__init__()
        self.fc_in = nn.Linear(config.hidden_size, 2 * config.ffn_width, bias=config.add_ffn_bias)
        self.fc_out = nn.Linear(config.ffn_width, config.hidden_size, bias=config.add_ffn_bias)

    def forward(self, states_BSD: Tensor) -> Tensor:
        gate, up = self.fc_in(states_BSD).chunk(2, dim=-1)
        output: Tensor = self.fc_out(functional.silu(gate) * up)
        return output


class OpenBABlock(nn.Module):
    """One layer; a decoder layer looks at the encoder between self-attention and FFN."""

    def __init__(self, config: OpenBAConfig, *, layer: int, decoder: bool) -> None:
        super().__init__()
        self.dropout = config.hidden_dropout
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.self_attn = OpenBAAttention(config, layer=layer, cross=False)
        self.post_attn_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        if decoder:
            self.inter_attn = OpenBAAttention(config, layer=layer, cross=True)
            self.post_inter_attn_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.decoder = decoder
        self.mlp = OpenBAMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        mask: Tensor | None,
        positions_BS: Tensor,
        encoded_BTD: Tensor | None = None,
        cross_mask: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        states = hidden_states
        states = states + self._drop(
            self.self_attn(self.input_layernorm(states), mask=mask, positions_BS=positions_BS, cache=cache)
        )
        normed = self.post_attn_layernorm(states)
        if self.decoder:
            states = states + self._drop(self.inter_attn(normed, mask=cross_mask, encoded_BTD=encoded_BTD, cache=cache))
            normed = self.post_inter_attn_layernorm(states)
        return states + self._drop(self.mlp(normed))

    def _drop(self, states: Tensor) -> Tensor:
        return functional.dropout(states, self.dropout, self.training)


class OpenBAPreTrainedModel(PreTrainedModel):
    config_class = OpenBAConfig
    config: OpenBAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["OpenBABlock"]
    _supports_sdpa = True
    _supports_cache_class = True
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb(ed)?\.inv_freq$"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal with std 0.02; what writes into the stream is divided by sqrt(2 x encoder layers), as in training."""
        deviation = 0.02 * self.config.initializer_factor
        if isinstance(module, nn.Linear):
            writes = getattr(module, "out_features", 0) == self.config.hidden_size
            module.weight.normal_(0.0, deviation / (2 * self.config.num_layers) ** 0.5 if writes else deviation)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0.0, deviation)
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()


class OpenBAStack(OpenBAPreTrainedModel):
    """Encoder or decoder: layers and a last LayerNorm; the embedding is the model's."""

    def __init__(self, config: OpenBAConfig, *, decoder: bool) -> None:
        super().__init__(config)
        self.is_decoder_stack = decoder
        count = config.num_decoder_layers if decoder else config.num_layers
        self.block = nn.ModuleList([OpenBABlock(config, layer=layer, decoder=decoder) for layer in range(count)])
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        **unused: Any,
    ) -> BaseModelOutput:
        states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        rows, length = states.shape[:2]
        past = _part(cache, "self_attention_cache").get_seq_length() if cache is not None else 0
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=states.device)[None].expand(rows, -1)
        mask = additive_mask(
            attention_mask, states.dtype, queries=length, keys=past + length, causal=self.is_decoder_stack, device=states.device
        )
        cross_mask = None
        if encoder_hidden_states is not None:
            cross_mask = additive_mask(
                encoder_attention_mask,
                states.dtype,
                queries=length,
                keys=encoder_hidden_states.shape[1],
                causal=False,
                device=states.device,
            )
        states = functional.dropout(states, self.config.hidden_dropout, self.training)
        all_states = [states] if output_hidden_states else []
        for block in self.block:
            arguments = {
                "mask": mask,
                "positions_BS": position_ids,
                "encoded_BTD": encoder_hidden_states,
                "cross_mask": cross_mask,
                "cache": cache,
            }
            if self.gradient_checkpointing and self.training:
                from torch.utils.checkpoint import checkpoint

                states = checkpoint(block, states, use_reentrant=False, **{**arguments, "cache": None})
            else:
                states = block(states, **arguments)
            if output_hidden_states:
                all_states.append(states)
        states = self.final_layernorm(states)
        if output_hidden_states:
            all_states[-1] = states
        return BaseModelOutput(last_hidden_state=states, hidden_states=tuple(all_states) if output_hidden_states else None)


class OpenBAForConditionalGeneration(OpenBAPreTrainedModel, GenerationMixin):
    """OpenBA with its language-model head.

    Beyond the usual arguments, packed rows are said by `attention_mask`, `decoder_attention_mask` and
    `cross_attention_mask` of shape [B, 1, S, T] (bool, True = may look) and by `position_ids` and
    `decoder_position_ids` [B, S] that restart in each sample.
    """

    _tied_weights_keys = {
        "encoder.embed_tokens.weight": "shared_embedding.weight",
        "decoder.embed_tokens.weight": "shared_embedding.weight",
        "lm_head.weight": "shared_embedding.weight",
    }

    def __init__(self, config: OpenBAConfig) -> None:
        super().__init__(config)
        self.shared_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder = OpenBAStack(config, decoder=False)
        self.decoder = OpenBAStack(config, decoder=True)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.add_lm_head_bias)
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """The stacks read the shared embedding in any case; the head is the same weight only when the configuration
        ties it.
        """
        tied = {name: source for name, source in self._tied_weights_keys.items() if name != "lm_head.weight"}
        if self.config.tie_word_embeddings:
            tied["lm_head.weight"] = self._tied_weights_keys["lm_head.weight"]
        return tied

    def get_input_embeddings(self) -> nn.Module:
        return self.shared_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.shared_embedding = value
        self.encoder.embed_tokens = value
        self.decoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def get_encoder(self, *_: Any, **__: Any) -> nn.Module:
        return self.encoder

    def get_decoder(self, *_: Any, **__: Any) -> nn.Module:
        return self.decoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        cache: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        cross_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        **unused: Any,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        cache = past_key_values if cache is None else cache
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                position_ids=position_ids,
                output_hidden_states=output_hidden_states,
            )
        encoded = encoder_outputs[0]
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if cache is None and use_cache and not self.training and labels is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        if cross_attention_mask is None and attention_mask is not None and attention_mask.dim() == 2:
            cross_attention_mask = attention_mask
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            inputs_embeds=decoder_inputs_embeds,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded,
            encoder_attention_mask=cross_attention_mask,
            position_ids=decoder_position_ids,
            cache=cache,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(decoded.last_hidden_state)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(logits.device), ignore_index=-100)
        output = Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            decoder_hidden_states=decoded.hidden_states,
            encoder_last_hidden_state=encoded,
            encoder_hidden_states=getattr(encoder_outputs, "hidden_states", None),
            **{_CACHE_FIELD: cache},
        )
        return output.to_tuple() if return_dict is False else output

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels moved one place to the right behind the start token; -100 becomes padding."""
        shifted = labels.new_full(labels.shape, self.config.decoder_start_token_id)
        shifted[:, 1:] = labels[:, :-1]
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)


def _part(cache: Any, name: str) -> Any:
    return getattr(cache, name, cache)
