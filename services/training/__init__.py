"""Training runs, and the registry of the models they make."""
