"""mT5: T5 with a gated FFN, mostly a head of its own, and no scale on it."""

from penjing.models.families.t5 import unscaled_family

FAMILY = unscaled_family("mt5")
