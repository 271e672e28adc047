"""The layer that every method package shares; import its modules by name."""
