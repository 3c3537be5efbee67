"""A run's folder: opening it, its checkpoints, its lock, its time, its mirror."""
