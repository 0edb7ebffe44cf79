"""What every package may import: errors, files, seeds, collectives. It imports nothing of ours."""
