"""Scores of generated images: detectors, mergeable moments, distances, the protocol record.

It knows nothing of training: functions give it images by number.
"""
