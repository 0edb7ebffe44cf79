"""A trained run as a source of pictures: for samples, scores and captions of one's own."""
