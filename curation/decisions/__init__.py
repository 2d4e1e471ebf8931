"""Which documents are kept and why: hold-out, steps, duplicates, ranking; and components."""
