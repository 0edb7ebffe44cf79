"""From images and captions to batches: sources, shards, plan, stream.

The order of samples is computed, not stored: every sample of the endless stream is found from
(seed, position) alone, so any number of ranks, workers and restarts sees the same batches.
"""
