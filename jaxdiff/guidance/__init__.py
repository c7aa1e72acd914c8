"""Guidance and thresholding: functions from denoiser to denoiser."""

from jaxdiff.guidance.classifier_free import classifier_free
from jaxdiff.guidance.threshold import threshold

__all__ = ["classifier_free", "threshold"]
