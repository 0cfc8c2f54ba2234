"""PyTorch from one seed and on one thread: small models gain nothing from more."""

import importlib.util

import pytest


@pytest.fixture(autouse=True)
def seeded():
    if importlib.util.find_spec("torch") is None:  # tests that need none run without it
        yield
        return
    import torch

    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
