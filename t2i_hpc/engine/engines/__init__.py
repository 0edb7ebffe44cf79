"""How one training step is run: torch's DistributedDataParallel, or DeepSpeed's ZeRO."""
