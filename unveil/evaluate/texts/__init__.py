"""Statistics of sets of texts, with intervals, and what they say of the difference between two.

Shapes, in all files here: T texts, D resampled sets, N n-grams, G different ones, E dimensions of an embedding.
"""
