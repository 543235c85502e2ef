"""How good samples are: distances on named features, and classifiers that provide these."""

from pyfastgan.metrics.classifier import ImageClassifier
from pyfastgan.metrics.digits import DigitsClassifier, digits_classifier
from pyfastgan.metrics.disentanglement import (
    DCI,
    beta_vae_score,
    dci,
    disentanglement,
    mutual_information_gap,
)
from pyfastgan.metrics.evaluate import (
    FEATURES,
    METRICS,
    Evaluation,
    check_shapes,
    evaluate,
    extractor_for,
    halves,
    seen_in_training,
)
from pyfastgan.metrics.features import Classifier, Extractor, Pixels, extract
from pyfastgan.metrics.frechet import FID, fid, frechet_distance
from pyfastgan.metrics.inception import Inception
from pyfastgan.metrics.inception_score import inception_score
from pyfastgan.metrics.kernel import kernel_distance
from pyfastgan.metrics.manifold import density_coverage, precision_recall
from pyfastgan.metrics.modes import ModeCount, count_modes, count_stacked_modes

__all__ = [
    "DCI",
    "FEATURES",
    "FID",
    "METRICS",
    "Classifier",
    "DigitsClassifier",
    "Evaluation",
    "Extractor",
    "ImageClassifier",
    "Inception",
    "ModeCount",
    "Pixels",
    "beta_vae_score",
    "check_shapes",
    "count_modes",
    "count_stacked_modes",
    "dci",
    "density_coverage",
    "digits_classifier",
    "disentanglement",
    "evaluate",
    "extract",
    "extractor_for",
    "fid",
    "frechet_distance",
    "halves",
    "inception_score",
    "kernel_distance",
    "mutual_information_gap",
    "precision_recall",
    "seen_in_training",
]
