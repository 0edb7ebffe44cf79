"""What a training does beside its steps: sample grids, retrieval, background evaluations."""
