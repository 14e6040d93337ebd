"""Which images: what they are read from, and what is known of them."""
