"""Which network: its layers, what they compute, and where it comes from."""
