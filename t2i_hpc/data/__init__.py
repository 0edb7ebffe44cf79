"""From images and captions to batches.

``build`` makes shards of many sources; ``format`` is what a split is on disk; ``storage`` reads its
bytes, here or from a server. ``split`` gives single samples, ``sampler`` says which one is at which
position of the endless stream, ``batches`` makes batches of them and ``loader`` makes these ahead.
``training_data`` opens what a run trains on.

The order of samples is computed, not stored: every sample of the endless stream is found from
(seed, position) alone, so any number of ranks, workers and restarts sees the same batches.
"""
