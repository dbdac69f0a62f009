"""Which way a figure gets better, told by its name."""

LESS = ("loss", "error", "mae", "mse", "perplexity", "distance", "divergence")
MORE = (
    "accuracy", "f1", "top5", "r2", "auc", "auroc", "precision", "recall", "specificity", "jaccard", "kappa", "corrcoef"
)  # fmt: skip


def direction(metric: str) -> str | None:
    """Min or max; None where the name says neither.

    Args:
        metric: Such as eval/accuracy, or the name of a torchmetric: eval/BinaryAUROC.
    """
    name = metric.rpartition("/")[2].lower()
    for mode, words in (("min", LESS), ("max", MORE)):
        if any(word in name for word in words):
            return mode
    return None
