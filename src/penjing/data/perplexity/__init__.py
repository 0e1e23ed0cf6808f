"""Perplexity: modified Kneser-Ney n-gram models trained on any text, and a compiled scorer that agrees with kenlm.

`units` turns text into numbers, `counts` counts n-grams, `kneser_ney` makes probabilities of them, `model` keeps them as tables
and as ARPA text, `score` scores documents, `tiers` turns scores into head, middle and tail per language.
"""
