"""One small method for every slot."""
