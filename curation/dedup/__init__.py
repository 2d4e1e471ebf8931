"""Duplicates: exact by content hash, near ones by MinHash candidates that are all verified by exact Jaccard. Keeps `A document removed` explainable."""
