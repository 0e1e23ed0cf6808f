"""OpenBA in Megatron-LM's form: one pickled file per tensor-parallel rank, read and written, for any number of ranks.

A directory `iter_0000001` holds `mp_rank_00/model_optim_rng.pt`, … with `model` = {language_model: {embedding, encoder,
decoder}, lm_head} and `args`, a Namespace. Files are opened with `weights_only` and a Namespace allowed, so that no
code runs. Sizes are taken from the weights: after pruning with the authors' tool `args` is stale and ranks may hold
unequal numbers of heads. Pipeline parallel checkpoints are not read (the authors' own converter has the same limit).
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from penjing.errors import ConfigError, InputError, fault
from penjing.models.checkpoint import Output, open_checkpoint, write_checkpoint
from penjing.models.family import of

TRACKER = "latest_checkpointed_iteration.txt"
FILE = "model_optim_rng.pt"
_LAYER_NAMES = {
    "input_layernorm": "input_layernorm",
    "self_attention.query_key_value": "self_attn.qkv",
    "self_attention.dense": "self_attn.o",
    "post_attention_layernorm": "post_attn_layernorm",
    "inter_attention.query": "inter_attn.q",
    "inter_attention.key_value": "inter_attn.kv",
    "inter_attention.dense": "inter_attn.o",
    "post_inter_attention_layernorm": "post_inter_attn_layernorm",
    "mlp.w2": "mlp.fc_out",
}
"""Megatron's name of a layer's part -> Hugging Face's. `mlp.w1` and `mlp.w3` are the halves of `mlp.fc_in`."""


def padded_vocab(tokens: int, *, tensor_parallel: int, multiple: int = 128) -> int:
    """Rows of the embedding: the least multiple of `multiple` x ranks that holds all tokens."""
    step = multiple * tensor_parallel
    return -(-tokens // step) * step


def from_megatron(path: Path, out: Path, *, tokenizer_from: Path | None = None, max_shard_bytes: int = 4 << 30) -> dict[str, Any]:
    """Join all ranks of a Megatron checkpoint and write a Hugging Face directory; gives its configuration.

    The head is stored as a second copy of the embedding, untied, as the published checkpoints have it; dtypes are kept.
    """
    import torch

    ranks = [_load(file) for file in _rank_files(path)]
    joined = {name: _join(name, [_flat(rank["model"]).get(name) for rank in ranks], path) for name in _flat(ranks[0]["model"])}
    state: dict[str, Any] = {}
    for name, value in joined.items():
        target = _hugging_face_name(name)
        if target is None:
            raise InputError(fault(f"no place in OpenBA for '{name}'", where=path))
        if target:
            state[target] = value
    for prefix in sorted({name.rsplit(".mlp.", 1)[0] for name in state if ".mlp.w1." in name}):
        for part in ("weight", "bias"):
            if f"{prefix}.mlp.w1.{part}" in state:
                halves = [state.pop(f"{prefix}.mlp.{half}.{part}") for half in ("w1", "w3")]
                state[f"{prefix}.mlp.fc_in.{part}"] = torch.cat(halves)
    state["lm_head.weight"] = state["shared_embedding.weight"]
    config = _config(state, ranks[0].get("args"))
    family = of(config)
    table = family.tensors(config)
    family.match(config, state, where=path)
    for name, tensor in table.items():
        if tuple(state[name].shape) != tensor.shape:
            raise InputError(
                fault(f"'{name}' does not fit the others", where=path, found=list(state[name].shape), expected=list(tensor.shape))
            )
    write_checkpoint(
        out,
        config=config,
        tensors=[Output.of(name, state[name]) for name in table],
        source=tokenizer_from,
        max_shard_bytes=max_shard_bytes,
    )
    return config


def to_megatron(path: Path, out: Path, *, tensor_parallel: int = 1, iteration: int = 1) -> None:
    """Write a Hugging Face OpenBA as a Megatron checkpoint of `tensor_parallel` ranks.

    The vocabulary is padded to a multiple of 128 x ranks with copies of the last row. InputError when the head is not a
    copy of the embedding, which Megatron's OpenBA cannot say; ConfigError when heads or FFN neurons do not divide.
    """
    import torch

    with open_checkpoint(path) as source:
        config = source.config
        family = of(config)
        sizes = family.sizes(config)
        for name in ("heads", "ffn"):
            if sizes[name] % tensor_parallel:
                raise ConfigError(fault(f"{name} {sizes[name]} does not divide among {tensor_parallel} ranks"))
        files = family.match(config, source.names, where=path)
        embedding = source.read(files["shared_embedding.weight"])
        if "lm_head.weight" in files and not torch.equal(source.read(files["lm_head.weight"]), embedding):
            raise InputError(
                fault(
                    "the head is not a copy of the embedding",
                    where=path,
                    expected="equal weights: OpenBA in Megatron has one for both",
                )
            )
        rows = padded_vocab(sizes["vocab"], tensor_parallel=tensor_parallel)
        folder = out / f"iter_{iteration:07d}"
        for rank in range(tensor_parallel):
            model: dict[str, Any] = {
                "language_model": {"embedding": {"word_embeddings": {}}, "encoder": {}, "decoder": {}},
                "lm_head": {},
            }
            for name, tensor in family.tensors(config).items():
                if name != "lm_head.weight":
                    _place(model, name, source.read(files[name]), tensor.axes, rank, tensor_parallel, rows)
            target = folder / f"mp_rank_{rank:02d}"
            target.mkdir(parents=True, exist_ok=True)
            torch.save(
                {
                    "args": _arguments(config, sizes, rows, tensor_parallel),
                    "checkpoint_version": 3.0,
                    "iteration": iteration,
                    "model": model,
                },
                target / FILE,
            )
    (out / TRACKER).write_text(f"{iteration}\n", encoding="ascii")


def _place(model: dict[str, Any], name: str, value: Any, axes: tuple[str, ...], rank: int, ranks: int, rows: int) -> None:
    """Put one rank's part of a weight under Megatron's name."""
    if "vocab" in axes:
        missing = rows - value.shape[0]
        if missing:
            import torch

            value = torch.cat([value, value[-1:].expand(missing, *value.shape[1:])])
    dim = _split_dim(axes)
    if name in ("shared_embedding.weight", "lm_head.bias"):
        part = value.chunk(ranks, 0)[rank].clone()
        if name == "lm_head.bias":
            model["lm_head"]["bias"] = part
        else:
            model["language_model"]["embedding"]["word_embeddings"]["weight"] = part
        return
    stack, _, rest = name.partition(".")
    flat = model["language_model"][stack]
    if ".mlp.fc_in." in name:
        layer, _, kind = rest.removeprefix("block.").partition(".mlp.fc_in.")
        for half, values in zip(("w1", "w3"), value.chunk(2), strict=True):
            flat[f"layers.{layer}.mlp.{half}.{kind}"] = values.chunk(ranks, 0)[rank].clone()
        return
    part = value.clone() if dim is None else value.chunk(ranks, dim)[rank].clone()
    if not rest.startswith("block."):
        flat[rest] = part
        return
    _, layer, own = rest.split(".", 2)
    body, _, kind = own.rpartition(".")
    flat[f"layers.{layer}.{ {value: key for key, value in _LAYER_NAMES.items()}[body] }.{kind}"] = part


def _split_dim(axes: tuple[str, ...]) -> int | None:
    return next((dim for dim, label in enumerate(axes) if label != "hidden"), None)


def _rank_files(path: Path) -> list[Path]:
    folder = path
    if (path / TRACKER).is_file():
        text = (path / TRACKER).read_text(encoding="ascii").strip()
        folder = path / (text if text == "release" else f"iter_{int(text):07d}")
    files = sorted(folder.glob(f"mp_rank_*/{FILE}"))
    if not files:
        raise InputError(fault("no Megatron checkpoint", where=path, expected=f"{TRACKER}, or mp_rank_00/{FILE}"))
    if any(re.fullmatch(r"mp_rank_\d+_\d+", file.parent.name) for file in files):
        raise InputError(
            fault("pipeline-parallel checkpoints cannot be read", where=folder, fix="merge the pipeline ranks first")
        )
    return files


def _load(file: Path) -> dict[str, Any]:
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            fault(
                "this pickle holds more than tensors and settings and is not opened, because opening it could run code",
                where=file,
                found=str(error).splitlines()[0][:120],
            )
        ) from error
    if not isinstance(loaded, dict) or "model" not in loaded:
        raise InputError(fault("not a Megatron checkpoint: no 'model'", where=file))
    return loaded


def _flat(model: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Tensors of the nested dictionaries by dotted name; buffers of rotary positions are left out."""
    found: dict[str, Any] = {}
    for key, value in model.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{key}."))
        elif "rotary_embed" not in key:
            found[prefix + key] = value
    return found


def _join(name: str, parts: list[Any], path: Path) -> Any:
    import torch

    if any(part is None for part in parts):
        raise InputError(fault(f"'{name}' is not in every rank", where=path))
    if len(parts) == 1:
        return parts[0]
    if name.endswith((".dense.weight", ".w2.weight")):
        return torch.cat(parts, dim=1)
    if re.search(r"(query_key_value|\.query|key_value|\.w1|\.w3|word_embeddings|lm_head)\.(weight|bias)$", "." + name):
        return torch.cat(parts, dim=0)
    if any(not torch.equal(part, parts[0]) for part in parts[1:]):
        raise InputError(fault(f"'{name}' should be the same in every rank and is not", where=path))
    return parts[0]


def _hugging_face_name(name: str) -> str | None:
    """The name in a Hugging Face file, with `mlp.w1` and `mlp.w3` still apart; None when there is none."""
    if name == "lm_head.bias":
        return "lm_head.bias"
    rest = name.removeprefix("language_model.")
    if rest == "embedding.word_embeddings.weight":
        return "shared_embedding.weight"
    found = re.fullmatch(r"(encoder|decoder)\.(?:layers\.(\d+)\.)?(.+)\.(weight|bias)", rest)
    if found is None:
        return None
    stack, layer, body, kind = found.groups()
    if layer is None:
        return f"{stack}.final_layernorm.{kind}" if body == "final_layernorm" else None
    if body in ("mlp.w1", "mlp.w3"):
        return f"{stack}.block.{layer}.{body}.{kind}"
    return f"{stack}.block.{layer}.{_LAYER_NAMES[body]}.{kind}" if body in _LAYER_NAMES else None


def _config(state: Mapping[str, Any], args: Any) -> dict[str, Any]:
    """A configuration from the shapes of the weights; what shapes do not say comes from `args`."""
    channels = int(getattr(args, "kv_channels", None) or 128)
    vocab, hidden = state["shared_embedding.weight"].shape
    inner = state["encoder.block.0.self_attn.o.weight"].shape[1]

    def count(stack: str) -> int:
        return 1 + max(int(match[1]) for match in _matches(rf"{stack}\.block\.(\d+)\.", state))

    return {
        "model_type": "openba",
        "architectures": ["OpenBAForConditionalGeneration"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "kv_channels": channels,
        "num_heads": inner // channels,
        "ffn_hidden_size": state["encoder.block.0.mlp.fc_out.weight"].shape[1],
        "ffn_is_nominal": False,
        "num_layers": count("encoder"),
        "num_decoder_layers": count("decoder"),
        "hidden_dropout": float(getattr(args, "hidden_dropout", 0.0)),
        "attention_dropout": float(getattr(args, "attention_dropout", 0.0)),
        "add_qkv_bias": "encoder.block.0.self_attn.qkv.bias" in state,
        "add_ffn_bias": "encoder.block.0.mlp.fc_out.bias" in state,
        "add_lm_head_bias": "lm_head.bias" in state,
        "tie_word_embeddings": False,
        "is_encoder_decoder": True,
        "max_seq_length": int(getattr(args, "encoder_seq_length", None) or getattr(args, "seq_length", None) or 1024),
        "decoder_max_seq_length": int(getattr(args, "decoder_seq_length", None) or 1024),
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "tokenizer_class": "OpenBATokenizer",
        "dtype": str(state["shared_embedding.weight"].dtype).removeprefix("torch."),
    }


def _matches(pattern: str, names: Mapping[str, Any]) -> Iterator[re.Match[str]]:
    for name in names:
        match = re.match(pattern, name)
        if match:
            yield match


def _arguments(config: Mapping[str, Any], sizes: Mapping[str, int], rows: int, ranks: int) -> argparse.Namespace:
    """Megatron's settings that describe the model, all true of the weights beside them."""
    return argparse.Namespace(
        hidden_size=sizes["hidden"],
        ffn_hidden_size=sizes["ffn"],
        kv_channels=sizes["head_dim"],
        num_attention_heads=sizes["heads"],
        num_layers=sizes["encoder_layers"],
        encoder_num_layers=sizes["encoder_layers"],
        decoder_num_layers=sizes["decoder_layers"],
        padded_vocab_size=rows,
        tensor_model_parallel_size=ranks,
        pipeline_model_parallel_size=1,
        pos_emb_type="rotary",
        mlp_type="SwiGLU",
        encoder_seq_length=config.get("max_seq_length", 1024),
        seq_length=config.get("max_seq_length", 1024),
        decoder_seq_length=config.get("decoder_max_seq_length", 1024),
        max_position_embeddings=config.get("max_seq_length", 1024),
        hidden_dropout=config.get("hidden_dropout", 0.0),
        attention_dropout=config.get("attention_dropout", 0.0),
        add_bias_linear=True,
    )
