"""Whoever judges parts: embedders, distances, names, the truth. Arrays in, numbers out."""
