"""Is this corpus good enough? Exact acceptance sampling, automatic indicators, drift against a reference, and human marks."""
