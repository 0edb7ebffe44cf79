"""Networks that turn images into the features that are compared."""
