"""Files of weights: our own and those of other implementations."""
