"""The verdict on a run: its slope against its interval and against theory."""

import pandas as pd

from flowlab.statistics import (
    COTANGENT,
    DELTA,
    FLOAT32_RESOLUTION,
    Verdict,
    backward_slope,
    predicted_slope,
    slope_of,
    slope_sd,
    verdict,
)


def judge(table: pd.DataFrame, prediction: pd.DataFrame) -> Verdict:
    """The verdict on one run from its table and its prediction.

    A recurrent net is judged by ‖∂L/∂h_t‖ against time in its last recurrent layer. Where theory
    covers some layers or steps alone, such as late ones, the slope is taken over those.

    A critical net of this width drifts by the finite-width correction, predicted slope minus
    infinite-width slope; theory is granted 0.6 times that drift, 0.3 κL/N in end-to-end ln‖δ‖²,
    and what the prediction's ``slope_error`` states. Its spread may be unknown (NaN): the standard
    error is then the seeds' own.
    """
    if "time" in table and table["time"].notna().any():
        return _through_time(table, prediction)
    curve = prediction.dropna(subset=[DELTA])
    layers = curve["layer"].to_numpy()
    if len(layers) < 2:
        return verdict(backward_slope(table), resolution=_resolution(table))
    predicted = predicted_slope(curve)
    drift = predicted - slope_of(curve[f"{DELTA}_infinite"], layers)
    return verdict(
        backward_slope(table, first=layers.min(), last=layers.max()),
        predicted_slope=predicted,
        predicted_sd_one_seed=slope_sd(layers, curve[f"{DELTA}_sd"].to_numpy()),
        critical_slope=drift,
        allowance=0.6 * abs(drift) + _error(curve),
        resolution=_resolution(table),
    )


def _through_time(table: pd.DataFrame, prediction: pd.DataFrame) -> Verdict:
    states = table[table["time"].notna()]
    states = states[states["layer"] == states["layer"].max()]
    told = {"quantity": "log10‖∂L/∂h_t‖", "along": "step", "resolution": _resolution(table)}
    if COTANGENT not in prediction or prediction[COTANGENT].notna().sum() < 2:
        return verdict(backward_slope(states, COTANGENT, along="time"), **told)
    curve = prediction.dropna(subset=[COTANGENT])
    steps = curve["time"].astype(int)
    return verdict(
        backward_slope(states, COTANGENT, first=steps.min(), last=steps.max(), along="time"),
        predicted_slope=slope_of(curve[COTANGENT], steps),
        allowance=_error(curve),
        **told,
    )


def _error(curve: pd.DataFrame) -> float:
    """Theory's own error of the slope, 0 where a prediction does not tell."""
    error = curve["slope_error"].max() if "slope_error" in curve else 0.0
    return float(error) if error == error else 0.0


def _resolution(table: pd.DataFrame) -> float:
    single = table["dtype"].iat[0] == "float32"
    return FLOAT32_RESOLUTION if single else FLOAT32_RESOLUTION * 2.0**-29
