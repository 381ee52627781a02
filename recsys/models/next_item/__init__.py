"""Models that predict the next item of a history."""
