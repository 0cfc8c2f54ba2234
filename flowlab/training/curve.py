"""The curve of a training: one row for each seed and logged step.

What is measured of step t belongs to the parameters that it starts from, but for what is held out:
that is evaluated after its update. So the first row's loss is that at initialization, and the last
row's held-out loss that of the trained network.
"""

from flowlab.schema import Column, register

OK, DIVERGED = "ok", "diverged"
CURVE = "curve"

register(
    Column("examples", "examples", "training examples seen, this step's included", "int64", CURVE),
    Column("learning_rate", "", "the learning rate of the step", part=CURVE),
    Column("loss", "", "loss of the step's batch before the update", part=CURVE),
    Column("held_out_loss", "", "loss of the held-out examples after the update", part=CURVE),
    Column(
        "held_out_accuracy",
        "share",
        "share of held-out examples whose class is named after the update; null of a regression",
        part=CURVE,
    ),
    Column(
        "gradient_log10_norm",
        "log10",
        "Frobenius norm of the whole gradient, unclipped",
        part=CURVE,
    ),
    Column("clipped", "share", "share of clipped steps since the step logged before", part=CURVE),
    Column("clip_angle", "radians", "angle between the raw and the clipped gradient", part=CURVE),
    Column(
        "noise_scale",
        "examples",
        "trΣ/|G|² from the norms of the batch's examples; null where they are coupled",
        part=CURVE,
    ),
    Column(
        "noise_scale_two_batches",
        "examples",
        "trΣ/|G|² estimated from the batch and its first quarter",
        part=CURVE,
    ),
    Column("sharpness", "", "largest eigenvalue of the loss's Hessian", part=CURVE),
    Column(
        "preconditioned_sharpness",
        "",
        "largest eigenvalue of the Hessian behind adam's preconditioner",
        part=CURVE,
    ),
    Column("diverged_step", "", "step of the first non-finite value", "Int64", CURVE),
    Column("diverged_layer", "", "layer of the first non-finite value", "Int64", CURVE),
    Column("training_status", "", "ok, or diverged at this step or before", "string", CURVE),
)
