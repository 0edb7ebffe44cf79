"""What a split is on disk: manifest, index, and tars."""
