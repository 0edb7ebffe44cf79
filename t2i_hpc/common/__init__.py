"""What every room may import: errors, files, seeds, collectives and the shape of a training step.

This room imports nothing of the project, so that no circle can arise.
"""
