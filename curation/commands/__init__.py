"""The commands beside build: dry run, remix, show, why, diff, index, signatures, clean."""
