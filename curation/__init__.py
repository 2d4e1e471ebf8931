"""Text in, decided documents out."""
