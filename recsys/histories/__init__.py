"""The ragged store of user histories, and everything that points into it."""
