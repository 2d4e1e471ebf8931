"""Manifest in, checkpoints and measurements out. Everything the trainer needs stands in the manifest; it guesses nothing and imports only `mixing`."""
