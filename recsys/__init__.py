"""recsys: attention over user histories, from interaction logs to judged models."""

__version__ = "0.1.0"
