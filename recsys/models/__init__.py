"""Recommenders: one model, one file."""
