"""De-duplication: the same address, the same text, nearly the same text, the same paragraph.

Everything works on four small things computed once per document by compiled kernels (`signature`): a 128-bit key of
the text without punctuation and emoji, a 64-bit SimHash, MinHash bands, and a sketch of its shingles. Candidates come
from the SimHash tables (`near`) or from the MinHash bands (`bands`); a pair counts only when the sketches confirm its
Jaccard similarity (`verify`); clusters are stars around the document that is kept (`cluster`), so a chain of similar
pairs never deletes a document that has no similar document left.
"""
