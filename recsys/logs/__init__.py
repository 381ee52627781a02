"""From raw interaction logs to clean, encoded events."""
