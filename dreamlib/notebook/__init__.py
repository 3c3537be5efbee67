"""What notebooks show, and what runs them."""
