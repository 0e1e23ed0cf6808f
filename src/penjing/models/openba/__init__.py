"""OpenBA for transformers: configuration, model and tokenizer, registered with the Auto classes when this package is imported.

The three files beside this one do not import penjing, so that `save_pretrained` puts them next to the weights and others load the
checkpoint with `trust_remote_code=True`.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from penjing.models.openba.configuration_openba import OpenBAConfig
from penjing.models.openba.modeling_openba import OpenBAForConditionalGeneration
from penjing.models.openba.tokenization_openba import OpenBATokenizer

__all__ = ["OpenBAConfig", "OpenBAForConditionalGeneration", "OpenBATokenizer"]

AutoConfig.register("openba", OpenBAConfig, exist_ok=True)
AutoModelForSeq2SeqLM.register(OpenBAConfig, OpenBAForConditionalGeneration, exist_ok=True)
AutoTokenizer.register(OpenBAConfig, OpenBATokenizer, exist_ok=True)
OpenBAConfig.register_for_auto_class()
OpenBAForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
OpenBATokenizer.register_for_auto_class("AutoTokenizer")
