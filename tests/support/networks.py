"""Small networks of every kind, as settings."""

NETWORKS = {
    "residual": {"depth": 30, "skip": "identity"},
    "normalized": {"depth": 30, "norm": "layer", "init": "torch_default"},
    "homogeneous": {"depth": 30, "init": "xavier", "upstream": "gaussian"},
    "biased": {"depth": 30, "init": "torch_default", "upstream": "gaussian"},
    "rezero": {"depth": 6, "skip": "rezero"},
    "images": {"network": "cnn", "depth": 4, "init": "torch_default"},
    "recurrent": {"network": "rnn", "depth": 4, "activation": "relu", "init": "torch_default"},
    "gated": {"network": "lstm", "depth": 3, "norm": "layer"},
    "tokens": {"network": "transformer", "depth": 5, "activation": "gelu"},
}
