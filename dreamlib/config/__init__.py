"""Settings: their schema, reading them, and building what they describe."""
