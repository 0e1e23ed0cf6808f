"""penjing (盆景): grow a small, fast, Chinese-English language model out of an open base model and raw text."""

__version__ = "0.1.0"
