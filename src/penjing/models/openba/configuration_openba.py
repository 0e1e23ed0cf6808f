"""The configuration of OpenBA, with the keys of the published checkpoints."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class OpenBAConfig(PretrainedConfig):
    """An encoder-decoder with `num_layers` encoder and `num_decoder_layers` decoder layers.

    `ffn_hidden_size` is the width of the FFN when `ffn_is_nominal` is False. In the first OpenBA's files it is nominal:
    the width is two thirds of it, rounded up to a multiple of 256 (16384 -> 11008). Those files do not say so; a
    nominal size is taken to be one of exactly 4 x hidden, and whoever reads the weights may look at
    `mlp.fc_out.weight`. `max_seq_length` and `decoder_max_seq_length` are what training used; rotary positions are
    computed as needed.
    """

    model_type = "openba"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {
        "num_attention_heads": "num_heads", "num_hidden_layers": "num_decoder_layers", "head_dim": "kv_channels",
    }

    def __init__(
        self,
        vocab_size: int = 32128,
        hidden_size: int = 512,
        kv_channels: int = 64,
        ffn_hidden_size: int = 2048,
        num_layers: int = 12,
        num_decoder_layers: int | None = None,
        num_heads: int = 8,
        hidden_dropout: float = 0.1,
        attention_dropout: float = 0.1,
        initializer_factor: float = 1.0,
        is_encoder_decoder: bool = True,
        use_cache: bool = True,
        add_qkv_bias: bool = True,
        add_ffn_bias: bool = False,
        add_lm_head_bias: bool = True,
        max_seq_length: int = 1024,
        decoder_max_seq_length: int = 256,
        layernorm_epsilon: float = 1e-5,
        rotary_base: float = 10000.0,
        ffn_is_nominal: bool | None = None,
        pad_token_id: int = 0,
        eos_token_id: int = 1,
        decoder_start_token_id: int = 0,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.kv_channels = kv_channels
        self.ffn_hidden_size = ffn_hidden_size
        self.num_layers = num_layers
        self.num_decoder_layers = num_layers if num_decoder_layers is None else num_decoder_layers
        self.num_heads = num_heads
        self.hidden_dropout = hidden_dropout
        self.attention_dropout = attention_dropout
        self.initializer_factor = initializer_factor
        self.use_cache = use_cache
        self.add_qkv_bias = add_qkv_bias
        self.add_ffn_bias = add_ffn_bias
        self.add_lm_head_bias = add_lm_head_bias
        self.max_seq_length = max_seq_length
        self.decoder_max_seq_length = decoder_max_seq_length
        self.layernorm_epsilon = layernorm_epsilon
        self.rotary_base = rotary_base
        self.ffn_is_nominal = ffn_hidden_size == 4 * hidden_size if ffn_is_nominal is None else ffn_is_nominal
        super().__init__(
            pad_token_id=pad_token_id, eos_token_id=eos_token_id, decoder_start_token_id=decoder_start_token_id,
            is_encoder_decoder=is_encoder_decoder, tie_word_embeddings=tie_word_embeddings, **kwargs,
        )

    @property
    def ffn_width(self) -> int:
        """Neurons of the FFN."""
        if not self.ffn_is_nominal:
            return self.ffn_hidden_size
        return 256 * -(-int(2 * self.ffn_hidden_size / 3) // 256)
