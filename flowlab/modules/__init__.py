"""A user's own models, of PyTorch modules or gradients of any framework, as rows of tables."""
