"""Methods: a point in the space of adapters, objectives and optimizers; one file adds a member."""
