"""How tasks run: local processes or Ray, memory, the work directory, the log."""
