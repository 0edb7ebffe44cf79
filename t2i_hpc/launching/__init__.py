"""What each task is when it is put somewhere: one job or an array, and what is checked before."""
