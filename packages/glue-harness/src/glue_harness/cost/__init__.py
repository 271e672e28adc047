"""Time and memory of a training step, measured or predicted, and the largest step that fits."""
