"""`penjing inspect MODEL…`: what a checkpoint or tokenizer is, measured on your text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from penjing.cli.tables import amount, print_table
from penjing.errors import InputError, fault
from penjing.files import open_text_bytes, read_json

app = typer.Typer(add_completion=False)


@app.command()
def inspect(
    models: Annotated[list[Path], typer.Argument(help="Checkpoint or tokenizer directories.")],
    text: Annotated[list[Path] | None, typer.Option("--text", help="UTF-8 text files (plain, .gz or .zst) to measure "
                                                    "the tokenizers on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Print sizes, parameters, FLOPs and vocabulary of each model, and its fertility on your text."""
    texts = {path.name: open_text_bytes(path).read().decode("utf-8", errors="strict") for path in text or []}
    found = [_facts(path, texts) for path in models]
    if as_json:
        print(json.dumps({"version": 1, "models": found}, ensure_ascii=False, indent=2))
        return
    columns = [key for key in found[0] if key != "text"] if found else []
    print_table(["", *[item["model"] for item in found]],
                [[key.replace("_", " "), *[_show(item.get(key)) for item in found]] for key in columns if key != "model"])
    for name in texts:
        print()
        print_table([name, "tokens", "tokens per character", "bytes per token"],
                    [[item["model"], *[_show(item["text"][name][key]) for key in
                                       ("tokens", "tokens_per_character", "bytes_per_token")]] for item in found])


def _facts(path: Path, texts: dict[str, str]) -> dict[str, Any]:
    if not path.is_dir():
        raise InputError(fault("not a directory", where=path, expected="a checkpoint or tokenizer directory"))
    facts: dict[str, Any] = {"model": path.name, "model_type": None}
    if (path / "config.json").is_file():
        from penjing.models import cost, family

        config = read_json(path / "config.json")
        facts |= {"model_type": config.get("model_type"), "parameters": cost.count_parameters(config),
                  "flops_per_token_at_2048": cost.flops_per_token(config, sequence_length=2048),
                  **family.of(config).sizes(config), "tied_embeddings": family.of(config).tied(config)}
    facts["text"] = {}
    if texts:
        from penjing.tokenizer.encode import load_encoder

        encoder = load_encoder(path)
        facts["tokenizer_size"] = encoder.vocab_size
        for name, whole in texts.items():
            count = sum(len(ids) for ids in encoder.encode_batch(whole.splitlines()))
            facts["text"][name] = {"tokens": count, "tokens_per_character": count / max(len(whole), 1),
                                   "bytes_per_token": len(whole.encode()) / max(count, 1)}
    return facts


def _show(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}" if value < 1e6 else amount(value)
    return amount(value) if isinstance(value, float) else str(value)
