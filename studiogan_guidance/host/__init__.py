"""The only folder that touches PyTorch-StudioGAN (the host): find a checkout, enter it, load from it, leave it."""
