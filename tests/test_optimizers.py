"""Learning rates against torch's schedulers, budgets, logged steps and rules of the batch."""

import numpy as np
import pytest
import torch

from flowlab.errors import InputError
from flowlab.optimizers import EPOCHS, TrainingSettings

COUNT = 40


def rates(training, count=COUNT, batch_size=32):
    return np.array([training.rate(step, count, batch_size) for step in range(1, count + 1)])


def by_torch(scheduler, lr=0.1, count=COUNT):
    """The learning rates that a scheduler gives to the first steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler, found = scheduler(optimizer), []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(found)


def warm(optimizer, warmup):
    """Torch's count of iterations leaves out the first: it has 1/warmup of the rate at once."""
    scheduler = torch.optim.lr_scheduler.LinearLR
    return scheduler(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)


def followed(optimizer, warmup, second):
    return torch.optim.lr_scheduler.SequentialLR(
        optimizer, [warm(optimizer, warmup), second], milestones=[warmup - 1]
    )


def cosine(optimizer, steps):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)


def stairs(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.3)


STAIRS = {"schedule": "step", "decay_every": 7, "decay_factor": 0.3}
SCHEDULES = {
    "constant": ({}, lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)),
    "warm-up": ({"warmup": 8}, lambda o: warm(o, 8)),
    "cosine": ({"schedule": "cosine"}, lambda o: cosine(o, COUNT)),
    "step": (STAIRS, stairs),
    "warm-up, cosine": (
        {"schedule": "cosine", "warmup": 8},
        lambda o: followed(o, 8, cosine(o, COUNT - 7)),
    ),
    "warm-up, step": (STAIRS | {"warmup": 8}, lambda o: followed(o, 8, stairs(o))),
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
@pytest.mark.parametrize("given, scheduler", SCHEDULES.values(), ids=SCHEDULES)
def test_the_rate_of_every_step_is_that_of_torch(given, scheduler):
    """The last step of the warm-up has the full rate: with torch's usual milestone the next has."""
    training = TrainingSettings(name="sgd", lr=0.1, **given)
    training.validate()
    np.testing.assert_allclose(rates(training), by_torch(scheduler), rtol=1e-11)


def test_the_cosine_would_end_just_after_the_last_step():
    training = TrainingSettings(name="sgd", schedule="cosine", warmup=8)
    assert rates(training).min() > 0
    assert training.rate(COUNT + 1, COUNT, 32) == pytest.approx(0, abs=1e-16)


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_warm_up_of_one_step_is_none(warmup):
    training = TrainingSettings(name="sgd", schedule="cosine", warmup=warmup)
    np.testing.assert_array_equal(
        rates(training), rates(TrainingSettings(name="sgd", schedule="cosine"))
    )


def test_a_warm_up_over_all_steps_ends_at_the_full_rate():
    found = rates(TrainingSettings(name="sgd", lr=0.5, schedule="cosine", warmup=COUNT))
    np.testing.assert_allclose(found, 0.5 * np.arange(1, COUNT + 1) / COUNT, rtol=1e-15)


BUDGETS = {
    "default": ({}, EPOCHS * 1000 // 32),
    "epochs": ({"epochs": 2.5}, 78),  # 2500 examples
    "part of an epoch": ({"epochs": 0.001}, 1),
    "steps": ({"steps": 7}, 7),
    "examples": ({"examples": 330}, 10),
}


@pytest.mark.parametrize("given, count", BUDGETS.values(), ids=BUDGETS)
def test_a_budget_is_a_number_of_steps(given, count):
    assert TrainingSettings(name="sgd", **given).step_count(32, 1000) == count


def test_a_warm_up_beyond_the_budget_is_refused():
    training = TrainingSettings(name="sgd", steps=10, warmup=10)
    assert training.step_count(32, 1000) == 10
    training.warmup = 11
    with pytest.raises(InputError, match=r"warmup must be at most the 10 steps.*; got 11"):
        training.step_count(32, 1000)


LOGGED = {
    "one": (None, 1, [1]),
    "two": (None, 2, [1, 2]),
    "to a spaced step": (None, 13, [1, 2, 3, 5, 8, 13]),
    "between": (None, 20, [1, 2, 3, 5, 8, 13, 20]),
    "every": (1, 4, [1, 2, 3, 4]),
    "every third": (3, 10, [1, 3, 6, 9, 10]),
    "beyond the end": (50, 10, [1, 10]),
}


@pytest.mark.parametrize("every, count, steps", LOGGED.values(), ids=LOGGED)
def test_the_first_and_the_last_step_are_logged(every, count, steps):
    assert TrainingSettings(name="sgd", log=every).logged(count) == steps


FACTORS = {
    "constant": (1.0, 1.0),
    "linear": (4.0, 0.25),
    "sqrt": (2.0, 0.5),
    "sde": (2.0, 0.5),
    "noise": ((1 + 96 / 32) / (1 + 96 / 128), (1 + 96 / 32) / (1 + 96 / 8)),
}


@pytest.mark.parametrize("rule", FACTORS)
def test_a_rule_multiplies_every_rate(rule):
    more = {"noise_scale": 96.0} if rule == "noise" else {}
    training = TrainingSettings(name="adam", lr=0.01, rule=rule, rule_batch=32, **more)
    training.validate()
    for batch_size, factor in zip((128, 8), FACTORS[rule], strict=True):
        assert training.batch_factor(batch_size) == pytest.approx(factor, rel=1e-15)
        np.testing.assert_allclose(rates(training, 3, batch_size), 0.01 * factor, rtol=1e-15)
    assert training.batch_factor(32) == pytest.approx(1.0, rel=1e-15)


def test_noise_lies_between_the_linear_rule_and_none():
    """Far below the noise scale the rate grows with the batch, far above it stays."""
    small = TrainingSettings(name="sgd", rule="noise", rule_batch=1, noise_scale=1e6)
    large = TrainingSettings(name="sgd", rule="noise", rule_batch=10_000, noise_scale=1.0)
    assert small.batch_factor(2) == pytest.approx(2, rel=1e-5)
    assert large.batch_factor(20_000) == pytest.approx(1, rel=1e-3)


def test_adam_follows_the_sde_rule():
    """1 - β grows with k, ε falls with √k: moments forget alike over equally many examples."""
    training = TrainingSettings(name="adam", rule="sde", rule_batch=32, beta1=0.99)
    *betas, eps = training.adam_numbers(128)
    np.testing.assert_allclose([*betas, eps], [0.96, 0.996, 0.5e-8], rtol=1e-14)
    assert betas[1] ** 250 == pytest.approx(0.999**1000, rel=3e-3)


@pytest.mark.parametrize("rule", ["constant", "linear", "sqrt"])
def test_other_rules_leave_adam_as_it_is(rule):
    training = TrainingSettings(name="adam", rule=rule, rule_batch=32)
    np.testing.assert_allclose(training.adam_numbers(1024), (0.9, 0.999, 1e-8), rtol=1e-14)


def test_a_batch_that_leaves_no_beta_is_refused():
    training = TrainingSettings(name="adam", rule="sde", rule_batch=32)
    with pytest.raises(InputError, match=r"rule=sde must leave β1 .* got -0.6 for batch_size=512"):
        training.adam_numbers(512)
