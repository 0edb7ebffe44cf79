"""Losses: pure functions of tensors, and of the process group where a batch spans ranks."""
