# Licensed under the Apache License, Version 2.0.
"""Two ways in which maps become worthless while the AUROC stays; training, report and model card judge alike."""

# A smaller spread of the peaks over the images: every sentence points at one fixed place.
MIN_PEAK_SPREAD = 0.15
# Beyond both, the patch term has turned all patches against all tokens. Many negative cosines alone do no harm: the
# token term pushes them down around a peak.
MAX_NEGATIVE_FRACTION = 0.95
MIN_PEAK = 0.2


def has_fixed_peaks(peak_spread: float) -> bool:
    """Whether every sentence points at one fixed place, whatever the image."""
    return peak_spread < MIN_PEAK_SPREAD


def has_collapsed(negative_fraction: float, peak: float) -> bool:
    """
    Whether the patches are turned against the tokens.

    Args:
        negative_fraction: of the cosines of tokens and patches, those below 0.
        peak: a token's largest cosine with a patch, on average.
    """
    return negative_fraction > MAX_NEGATIVE_FRACTION and peak < MIN_PEAK
