"""Sample quality, each number with its real-against-real floor."""

from jaxdiff.metrics.classifier import Classifier, feature_classifier, train_classifier
from jaxdiff.metrics.distances import frechet_distance, kernel_distance, mmd, sliced_wasserstein
from jaxdiff.metrics.neighbours import density_coverage, memorisation_share, precision_recall
from jaxdiff.metrics.report import Floors, Score, evaluate, floors_for, table
from jaxdiff.metrics.two_sample import classifier_two_sample

__all__ = [
    "Classifier",
    "Floors",
    "Score",
    "classifier_two_sample",
    "density_coverage",
    "evaluate",
    "feature_classifier",
    "floors_for",
    "frechet_distance",
    "kernel_distance",
    "memorisation_share",
    "mmd",
    "precision_recall",
    "sliced_wasserstein",
    "table",
    "train_classifier",
]
