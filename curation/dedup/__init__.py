"""Duplicates: exact ones by content hash; near ones by MinHash candidates, every one verified by exact Jaccard. Every removal names its survivor."""
