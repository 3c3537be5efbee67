"""The training loop, its two trainers, and what a step costs."""
