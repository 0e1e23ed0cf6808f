"""`penjing doctor`: what is installed, what is missing, what this machine can do."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from penjing.cli.tables import amount, print_table

app = typer.Typer(add_completion=False)

_OPTIONAL = {
    "resiliparse": ("penjing[web]", "main text out of HTML and WARC"),
    "trafilatura": ("penjing[web]", "main text out of HTML, slower and stricter"),
    "fsspec": ("penjing[web]", "s3:// and hf:// paths"),
    "ray": ("penjing[ray]", "data work on several machines"),
    "kenlm": ("penjing[kenlm]", "reading KenLM .bin models such as CCNet's"),
    "tensorboard": ("penjing[tensorboard]", "TensorBoard files"),
    "wandb": ("penjing[wandb]", "Weights & Biases, offline"),
}
_REQUIRED = ("torch", "transformers", "tokenizers", "sentencepiece", "safetensors", "tiktoken", "pyarrow", "polars", "numpy",
             "numba", "pycld2", "opencc", "zstandard", "xxhash", "pydantic", "typer", "rich", "jinja2", "ruamel.yaml")


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """Say what works here, what does not, and how to get it."""
    import psutil

    disk = shutil.disk_usage(Path.cwd())
    machine: dict[str, Any] = {
        "cores": os.cpu_count(), "memory_bytes": psutil.virtual_memory().total, "free_disk_bytes": disk.free,
        "accelerator": _accelerator(),
    }
    required: list[dict[str, Any]] = [{"name": name, "version": _version(name), "ok": _installed(name)} for name in _REQUIRED]
    optional: list[dict[str, Any]] = [{"name": name, "version": _version(name), "ok": _installed(name), "extra": extra, "for": use}
                                      for name, (extra, use) in _OPTIONAL.items()]
    if as_json:
        print(json.dumps({"version": 1, "machine": machine, "required": required, "optional": optional}, indent=2))
    else:
        print(f"{machine['cores']} cores, {amount(machine['memory_bytes'], 'B')} memory, {amount(disk.free, 'B')} free disk, "
              f"accelerator: {machine['accelerator'] or 'none (CPU)'}")
        print_table(["library", "version", "state"],
                    [[item["name"], item["version"] or "", "ok" if item["ok"] else "MISSING"] for item in required])
        print()
        print_table(["optional", "version", "state", "for"],
                    [[item["name"], item["version"] or "",
                      "ok" if item["ok"] else f"pip install '{item['extra']}'", item["for"]] for item in optional])
    if not all(item["ok"] for item in required):
        raise typer.Exit(3)


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name.split(".")[0]) is not None


def _version(name: str) -> str | None:
    for candidate in (name, name.replace(".", "-"), "opencc-python-reimplemented" if name == "opencc" else name):
        try:
            return metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return None


def _accelerator() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return "Apple MPS" if torch.backends.mps.is_available() else None
