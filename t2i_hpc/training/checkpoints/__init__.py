"""What is kept of a run: written whole, found again, compared, thinned out."""
