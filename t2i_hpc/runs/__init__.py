"""What a run is on disk: directory and identity, checkpoints, sessions."""
