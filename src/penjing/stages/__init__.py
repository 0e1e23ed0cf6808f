"""One verb per file: thin doors from artefacts on disk into the rooms and back."""
