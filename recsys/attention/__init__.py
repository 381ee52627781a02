"""Attention as a grammar: score, normalise, aggregate."""
