"""Metrics: sums kept on the device, added up over ranks, from which the figures follow exactly."""

from launcher.metrics.classification import ClassificationSums
from launcher.metrics.language import LanguageSums
from launcher.metrics.multilabel import LabelSums
from launcher.metrics.regression import RegressionSums

Sums = ClassificationSums | LabelSums | RegressionSums | LanguageSums
