"""A trained run as a source of images: for sample grids, scores and a user's captions."""
