"""Slurm: its clients, jobs that survive, and what is said when something is wrong."""
