"""`penjing generate MODEL "…"`: continue a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="A Hugging Face checkpoint directory.")],
    prompts: Annotated[list[str], typer.Argument(help="Texts to continue.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation, in tokens.")] = 96,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token each time.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus: smallest set of tokens with this probability.")] = 0.9,
    repetition_penalty: Annotated[float, typer.Option(min=0.1, help="Above 1 makes used tokens less likely.")] = 1.15,
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 0,
) -> None:
    """Continue each prompt with the model; prompt and continuation go to stdout."""
    from penjing.generate.sample import Sampling, continue_texts

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
                        repetition_penalty=repetition_penalty, seed=seed)
    for prompt, continuation in zip(prompts, continue_texts(model, prompts, sampling=sampling), strict=True):
        print(prompt + continuation)
