"""What every room needs, and nothing of this field."""
