"""How well a trained classifier does on the tenth of its samples that it was not trained on: ranking and calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BINS = 10


def measure(trained: dict[str, int], found: dict[str, Floats]) -> dict[str, Any]:
    """The figures of a classifier: `trained` texts by label, and of the held-out texts of each label f64[texts, labels], columns in the order of `trained`.

    Two labels are ranked and calibrated by the probability of the first. With more, the AUC is the mean of each label's against the rest, and the greatest probability
    is calibrated against whether it names the right label, whose share is the `accuracy`.
    """
    names = list(trained)
    everything = np.nan_to_num(np.concatenate([found[name] for name in names]), nan=1 / len(names))
    truth = np.repeat(np.arange(len(names)), [len(found[name]) for name in names])
    chosen = everything.argmax(axis=1)
    ranked = range(1) if len(names) == 2 else range(len(names))
    areas = [area_under_curve(everything[truth == column, column], everything[truth != column, column]) for column in ranked]
    reliability = calibration(everything[:, 0], truth == 0) if len(names) == 2 else calibration(everything.max(axis=1), chosen == truth)
    return {
        "labels": {name: {"trained": trained[name], "held_out": len(found[name])} for name in names},
        "auc": round(float(np.mean(areas)), 6),
        "accuracy": round(float((chosen == truth).mean()), 6),
        **reliability,
    }


def area_under_curve(positive: Floats, negative: Floats) -> float:
    """The share of (positive, negative) pairs that the scores put in the right order, ties counting half (Mann-Whitney)."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left").astype(np.float64)
    up_to = np.searchsorted(ordered, positive, side="right").astype(np.float64)
    return float((below + up_to).sum() / (2 * positive.size * negative.size))


def calibration(predicted: Floats, is_right: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """The reliability of probabilities in BINS bins of equal width, and their expected calibration error: the mean over texts of |predicted - share right| of a text's bin
    (arXiv 1706.04599). Rounded to 1e-6: they stand in a file that has a digest."""
    which = np.minimum((predicted * BINS).astype(np.int64), BINS - 1)
    bins, error = [], 0.0
    for number in range(BINS):
        inside = which == number
        if count := int(inside.sum()):
            mean, share = float(predicted[inside].mean()), float(is_right[inside].mean())
            error += count * abs(mean - share) / len(predicted)
            bins.append({"from": number / BINS, "texts": count, "predicted": round(mean, 6), "right": round(share, 6)})
    return {"calibration_error": round(error, 6), "bins": bins}
