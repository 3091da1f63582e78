"""Real models, block by block: resolve, load, run. torch starts here."""
