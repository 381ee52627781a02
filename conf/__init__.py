"""Hydra configuration, shipped inside the wheel."""
