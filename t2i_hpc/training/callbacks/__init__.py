"""What a training does between its steps: sample grids, retrieval, background evaluations."""
