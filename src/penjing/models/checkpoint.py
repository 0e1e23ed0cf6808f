"""A checkpoint is a Hugging Face directory. Writing is a stream; memory does not grow with the model.

Safetensors shards are written with headers that are known before the first weight is read, and config.json last: a
directory without it is not a checkpoint. Reading is in `models/reader.py`; its names are here too.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import InputError, fault
from penjing.files import disk_faults, hash_text, read_json, write_json
from penjing.models import family as families
from penjing.models import shards
from penjing.models.reader import Checkpoint, from_float, open_checkpoint, to_float
from penjing.models.shards import DTYPES, STORAGE

__all__ = [
    "Checkpoint",
    "Output",
    "build_model",
    "copy_companions",
    "from_float",
    "load_model",
    "open_checkpoint",
    "save_model",
    "stamp_of",
    "to_float",
    "write_checkpoint",
]

MAX_SHARD_BYTES = 4 << 30
COMPANIONS = (
    "tokenizer*",
    "*token*.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "generation_config.json",
    "chat_template*",
    "*.py",
    "preprocessor_config.json",
    "added_tokens.json",
    "plan.json",
)
"""Files that belong to a checkpoint and are not weights or config.json; they are copied as they are."""


@dataclass(frozen=True)
class Output:
    """A tensor to be written: its header now, its storage bits when they are asked for, in row order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[np.ndarray]] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * STORAGE[self.dtype].itemsize

    @staticmethod
    def of(name: str, value: Any) -> Output:
        """From a torch tensor or a NumPy array that is held in memory."""
        if isinstance(value, np.ndarray):
            kinds = {
                kind: dtype for dtype, kind in STORAGE.items() if dtype not in ("BF16", "F8_E4M3", "F8_E5M2", "BOOL")
            }
            dtype = "BOOL" if value.dtype == np.bool_ else kinds[value.dtype]
            return Output(name, dtype, value.shape, lambda: [value])
        dtype = DTYPES[str(value.dtype).removeprefix("torch.")]

        def bits() -> list[np.ndarray]:
            import torch

            flat = value.detach().cpu().contiguous().reshape(-1)
            return [flat.view(torch.uint8).numpy()] if flat.numel() else []

        return Output(name, dtype, tuple(value.shape), bits)

    @staticmethod
    def copy(source: Checkpoint, name: str, *, rows: np.ndarray | None = None, to: str | None = None) -> Output:
        """A tensor of another checkpoint, or some of its rows, streamed."""
        shape = source.shape(name)
        shape = shape if rows is None else (len(rows), *shape[1:])
        return Output(to or name, source.dtype(name), shape, lambda: source.row_chunks(name, rows))


def write_checkpoint(
    out: str | Path,
    *,
    config: Mapping[str, Any],
    tensors: Iterable[Output] | Mapping[str, Any],
    source: str | Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    stamp: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a model directory as a stream, config.json last.

    `tensors` are outputs, or a mapping of names to tensors in memory. Tokenizer, generation and code files come from
    `source`; `extra` are further JSON files by name. With a `stamp` (a hash of what is being made) shards finished by
    an interrupted call with the same stamp are kept. On an error nothing is left behind that was not there before.
    """
    out = Path(out)
    if source is not None and out.resolve() == Path(source).resolve():
        raise InputError(fault("a checkpoint cannot be written over its own source", where=out))
    outputs = (
        [Output.of(name, value) for name, value in tensors.items()] if isinstance(tensors, Mapping) else list(tensors)
    )
    existed = out.exists()
    made: list[Path] = []
    with disk_faults(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").unlink(missing_ok=True)
        try:
            _write_files(out, config, outputs, source, max_shard_bytes, stamp, extra or {}, made)
        except BaseException:
            if not existed:
                shutil.rmtree(out, ignore_errors=True)
            elif stamp is None:
                for file in made:
                    file.unlink(missing_ok=True)
            raise


def _write_files(
    out: Path,
    config: Mapping[str, Any],
    outputs: list[Output],
    source: str | Path | None,
    max_shard_bytes: int,
    stamp: str | None,
    extra: Mapping[str, Any],
    made: list[Path],
) -> None:
    groups = _split(outputs, max_shard_bytes)
    names = (
        ["model.safetensors"]
        if len(groups) == 1
        else [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    )
    for stale in out.glob(".*.tmp"):  # what a killed process was writing
        stale.unlink()
    for old in out.glob("model*.safetensors*"):
        if old.name not in names:
            old.unlink()
    metadata = {"format": "pt", **({"penjing": stamp} if stamp else {})}
    for name, group in zip(names, groups, strict=True):
        header = shards.header_bytes([(item.name, item.dtype, item.shape) for item in group], metadata)
        size = len(header) + sum(item.num_bytes for item in group)
        if stamp is None or not _is_finished(out / name, header, size):
            made.append(out / name)
            shards.write_shard(out / name, header, ((item.name, item.num_bytes, item.chunks) for item in group))
    if len(groups) > 1:
        total = sum(item.num_bytes for item in outputs)
        weight_map = {item.name: name for name, group in zip(names, groups, strict=True) for item in group}
        made.append(out / "model.safetensors.index.json")
        write_json(made[-1], {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    if source is not None:
        made += copy_companions(source, out)
    for name, value in extra.items():
        made.append(out / name)
        write_json(out / name, value)
    own = families.of(config).auto_map if config.get("model_type") in families.names() else {}
    for code in {name.split(".")[0] for name in own.values()}:  # the source's own code may read our config.json in another way
        made.append(out / f"{code}.py")
        shutil.copyfile(Path(__file__).parent / config["model_type"] / f"{code}.py", out / f"{code}.py")
    made.append(out / "config.json")
    write_json(out / "config.json", {**config, "auto_map": dict(own)} if own else dict(config))


def copy_companions(source: str | Path, out: str | Path) -> list[Path]:
    """Copy tokenizer, generation and code files of a model directory; gives the paths written."""
    written = []
    for file in sorted(Path(source).iterdir()):
        if file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in COMPANIONS):
            shutil.copyfile(file, Path(out) / file.name)
            written.append(Path(out) / file.name)
    return written


def load_model(path: str | Path, *, dtype: str = "float32", trust_remote_code: bool = False) -> Any:
    """The transformers model of a directory in evaluation mode: sequence-to-sequence or causal, as its config says.

    Code that comes with the weights runs only with `trust_remote_code`. InputError when weights are missing or damaged.
    """
    import torch
    import transformers

    path = Path(path)
    config = read_json(path / "config.json")
    kind, known = _class_of(config, path, trust_remote_code=trust_remote_code)
    transformers.utils.logging.disable_progress_bar()  # stderr belongs to our own progress
    open_checkpoint(path).close()  # names damage in one sentence before transformers meets it
    model, report = kind.from_pretrained(path, dtype=getattr(torch, dtype), output_loading_info=True,
                                         trust_remote_code=trust_remote_code and not known)
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(fault(f"{len(missing)} weights are missing, first '{missing[0]}'", where=path))
    if _cache_is_too_small(model.config):
        model.generation_config.use_cache = False
    return model.eval()


def build_model(path: str | Path) -> Any:
    """What `load_model` gives in fp32, with none of its weights read."""
    import torch
    import transformers

    path = Path(path)
    kind, _ = _class_of(read_json(path / "config.json"), path, trust_remote_code=False)
    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    model = kind.from_config(config, dtype=torch.float32, trust_remote_code=False)
    own = {} if (path / "generation_config.json").is_file() else {"config_file_name": "config.json", "_from_model_config": True}
    model.generation_config = transformers.GenerationConfig.from_pretrained(path, **own)
    if _cache_is_too_small(model.config):
        model.generation_config.use_cache = False
    return model.eval()


def _class_of(config: Mapping[str, Any], path: Path, *, trust_remote_code: bool) -> tuple[Any, bool]:
    """transformers' class for a config, and whether the model is one of its own; InputError where foreign code would have to run."""
    import transformers

    if config.get("model_type") == "openba":
        importlib.import_module("penjing.models.openba")  # registers the Auto classes
    known = config.get("model_type") in transformers.CONFIG_MAPPING
    if not known and not trust_remote_code:
        raise InputError(fault(f"transformers has no '{config.get('model_type')}'", where=path,
                               fix="its own code would have to run: pass trust_remote_code if you have read it"))
    return transformers.AutoModelForSeq2SeqLM if config.get("is_encoder_decoder") else transformers.AutoModelForCausalLM, known


def _cache_is_too_small(config: Any) -> bool:
    """T5 in transformers 5.24 sizes its cache by the encoder's layers, so that a deeper decoder cannot generate with it."""
    return config.model_type in ("t5", "mt5", "umt5") and config.num_decoder_layers > config.num_layers


def save_model(model: Any, out: str | Path, *, tokenizer_from: str | Path | None = None) -> None:
    """Write a transformers model as a checkpoint directory, config.json last, with another one's tokenizer files."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with disk_faults(out):
        for stale in out.glob(".saving.*"):
            shutil.rmtree(stale, ignore_errors=True)
        staging = out / f".saving.{os.getpid()}"
        try:
            model.save_pretrained(staging)
            if tokenizer_from is not None:
                for file in copy_companions(tokenizer_from, staging):
                    assert file.exists()
            (out / "config.json").unlink(missing_ok=True)
            for old in out.glob("model*.safetensors*"):
                old.unlink()
            for file in sorted(staging.iterdir(), key=lambda file: file.name == "config.json"):
                file.replace(out / file.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _split(outputs: list[Output], max_shard_bytes: int) -> list[list[Output]]:
    groups: list[list[Output]] = [[]]
    size = 0
    for item in outputs:
        if groups[-1] and size + item.num_bytes > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += item.num_bytes
    return groups


def _is_finished(path: Path, header: bytes, size: int) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return file.read(len(header)) == header


def stamp_of(*parts: object) -> str:
    """A stamp for `write_checkpoint`: one hash of JSON values."""
    return hash_text(json.dumps(parts, sort_keys=True, default=str))
