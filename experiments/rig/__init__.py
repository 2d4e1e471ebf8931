"""What the claims share: corpora, recipes, runs, results. It drives the commands of the product and imports nothing of it but its chart."""
