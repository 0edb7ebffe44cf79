"""Putting tasks somewhere: processes of this machine, and clusters."""
