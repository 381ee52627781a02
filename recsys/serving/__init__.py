"""Trained models at work: top-K lists for anybody, in memory or streamed to a file."""
