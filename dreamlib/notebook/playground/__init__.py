"""The widgets that let one play with a trained run."""
