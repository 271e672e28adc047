"""What a training step costs: time and memory, measured or predicted, and the largest that fits."""
