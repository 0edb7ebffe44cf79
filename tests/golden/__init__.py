"""Outputs of the public reference implementations, number by number.

`NAME.json` holds sizes, the seed, and the names and shapes of the reference's state dicts;
`NAME.npz` holds what the reference made of weights and inputs filled by :mod:`.fill`, on a CPU
in float32. `keys/` holds names and shapes of the published networks. No trained weights and no
images are here.
"""
