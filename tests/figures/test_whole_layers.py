"""Rows of single steps stand beside those of layers."""

import numpy as np
import pandas as pd

from flowlab import schema
from flowlab.figures import heat_map, layer_profiles, underflow
from flowlab.studies import Reading
from flowlab.studies.skip import skip_caption
from tests.support.tables import net, together


def test_rows_of_steps_do_not_count_as_layers():
    """Figures of layers are the same with and without rows of single steps."""
    made = [net("a", -0.1, depth=5), net("b", -0.2, depth=9)]
    table, prediction = together(*made)
    steps = table[table["layer"] < 4].assign(**dict.fromkeys(schema.NORMS, -99.0), fan_out=1)
    more = prediction.assign(**{name: -50.0 for name in schema.NORMS})
    mixed = (
        pd.concat([table, steps.assign(time=1)], ignore_index=True),
        pd.concat([prediction, more.assign(time=1)], ignore_index=True),
    )
    captions = [layer_profiles.caption, heat_map.heat_map_caption]
    for caption in captions:
        assert caption(*mixed) == caption(table, prediction)
    assert skip_caption(Reading(*mixed)) == skip_caption(Reading(table, prediction))
    one, other = (layer_profiles.profiles(*pair).axes[0] for pair in ((table, prediction), mixed))
    for before, after in zip(one.lines, other.lines, strict=True):
        assert after.get_label() == before.get_label()
        np.testing.assert_array_equal(after.get_ydata(), before.get_ydata())
    alone = [frame[frame["run"] == "b"] for frame in mixed]
    assert underflow.underflow_caption(*alone) == underflow.underflow_caption(*made[1])
