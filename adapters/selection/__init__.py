"""How hyperparameters, mixing weights and temperatures are chosen, on support and validation rows alone."""
