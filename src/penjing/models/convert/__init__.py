"""Other formats of the same weights, one file per format; each gives back exactly what it was given."""
