"""Scores of generated images: detectors, mergeable moments, distances, the protocol record.

The room knows nothing of training: it is given functions that draw images by their numbers.
"""
