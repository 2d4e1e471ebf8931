"""From a recipe's sources to shards of text and sidecars of what is computed about it."""
