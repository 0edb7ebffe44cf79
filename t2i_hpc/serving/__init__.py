"""A page to play with a trained run: captions in, images with their masks or attention out."""
