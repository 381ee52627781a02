"""What a model looked at, and whether that is what moved its scores."""
