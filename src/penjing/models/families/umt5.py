"""UMT5: mT5 with relative positions in every block, so that each layer may keep its own heads."""

from penjing.models.families.t5 import family, scaled

FAMILY = family("umt5", shared_bias=False, scaled=scaled)
