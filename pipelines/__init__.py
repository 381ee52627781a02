"""The commands: `python -m pipelines.NAME`."""
