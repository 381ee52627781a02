"""Models without gradients that every table carries."""
