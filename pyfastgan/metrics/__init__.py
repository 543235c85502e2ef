"""How good samples are: Fréchet distances on named features, and a classifier of digits."""

from pyfastgan.metrics.digits import DigitsClassifier, digits_classifier
from pyfastgan.metrics.frechet import FID, fid, frechet_distance

__all__ = ["FID", "DigitsClassifier", "digits_classifier", "fid", "frechet_distance"]
