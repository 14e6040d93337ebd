"""Whole studies for the eye: reports, explorers, the atlas."""
