"""Exact, honest offline evaluation."""
