"""Inside a run of PyTorch-StudioGAN: the only code that swaps names in the host's modules."""
