"""A price is told beforehand, when the history that gives layers their original numbers is not there yet."""

from __future__ import annotations

import pytest

from penjing.contract import Estimate
from penjing.errors import ConfigError
from penjing.stages import prune


def config_of(layers: int) -> dict[str, object]:
    return {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers,
            "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False}


def test_layers_named_by_their_original_numbers_are_counted() -> None:
    given = Estimate(model=config_of(6), parameters=1.0)
    # Layer 9 of a model that once had more layers: which of the six it is now is known only when the stage runs.
    estimate = prune.price(prune.Config(drop_layers=[3, 9], layer_numbers="original"), {"checkpoint": given})
    assert estimate.model is not None and estimate.model["num_hidden_layers"] == 4
    kept = prune.price(prune.Config(layers=[0, 9], layer_numbers="original"), {"checkpoint": given})
    assert kept.model is not None and kept.model["num_hidden_layers"] == 2


def test_present_numbers_are_still_checked() -> None:
    given = Estimate(model=config_of(6), parameters=1.0)
    with pytest.raises(ConfigError, match="there is no such layer to drop; found 9; expected 0 to 5"):
        prune.price(prune.Config(drop_layers=[9]), {"checkpoint": given})
