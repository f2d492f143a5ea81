"""How good a model is: probabilities, metrics, and the success of a backdoor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torchmetrics.functional.classification as classification
from numpy.typing import NDArray
from torch import Tensor, nn

Probabilities = NDArray[np.float32]
Labels = NDArray[np.int64]

MINIMUM_PATCHES = 10
"""Test patches below which a hospital's accuracy says too little to be called the worst."""


def predict(
    module: nn.Module,
    images: NDArray[np.uint8],
    to_tensor: Callable[[NDArray[np.uint8]], Tensor],
    batch: int = 256,
) -> Probabilities:
    """The model's probabilities (n, classes) float32 for images (n, H, W, 3).

    Image i is in batch i // `batch`, so shares of the images that are cut between batches give the bits of the whole.
    Rows that are not finite become uniform (see `decided`). The module is left in the mode it was in.

    Args:
        module: gives logits.
        images: uint8, or whatever `to_tensor` takes; sliced along the first axis.
        to_tensor: makes a batch of them what the model was trained on, (B, 3, H, W) float32.
        batch: images at a time, at most.
    """
    if len(images) == 0:
        return predict(module, np.zeros_like(images, shape=(1, *images.shape[1:])), to_tensor)[:0]
    device = next(module.parameters()).device
    training = module.training
    module.eval()
    with torch.inference_mode():
        rows = [
            torch.softmax(module(to_tensor(images[start : start + batch]).to(device)).float(), dim=1).cpu()
            for start in range(0, len(images), batch)
        ]
    module.train(training)
    return decided(torch.cat(rows).numpy())


def decided(probabilities: Probabilities) -> Probabilities:
    """Probabilities in which a row that is not finite is uniform: a ruined model knows nothing.

    Its predicted label is then the first one, so its balanced accuracy is chance where that label occurs, as is its
    AUROC.
    """
    finite = np.isfinite(probabilities).all(axis=1, keepdims=True)
    return np.where(finite, probabilities, np.float32(1 / probabilities.shape[1]))


def confusion_matrix(probabilities: Probabilities, labels: Labels) -> NDArray[np.int64]:
    """(classes, classes) counts: row = true label, column = predicted label."""
    scores, truth = torch.from_numpy(decided(probabilities)), torch.from_numpy(np.ascontiguousarray(labels))
    # Without its checks, it takes models of one class, too.
    matrix = classification.multiclass_confusion_matrix(scores, truth, scores.shape[1], validate_args=False)
    counts: NDArray[np.int64] = matrix.numpy()
    return counts


def hospital_accuracy(probabilities: Probabilities, labels: Labels, hospitals: Labels) -> dict[int, float]:
    """The accuracy at each hospital that has test patches, by its number; `hospitals` (n,) tells whose a patch is."""
    right = decided(probabilities).argmax(axis=1) == labels
    return {int(hospital): float(right[hospitals == hospital].mean()) for hospital in np.unique(hospitals)}


def metrics(
    probabilities: Probabilities, labels: Labels, hospitals: Labels, minimum: int = MINIMUM_PATCHES
) -> dict[str, float]:
    """Metrics of n ≥ 1 patches, every one finite whatever the model and the labels are.

    - `accuracy`; `macro_f1` over the labels that occur or are predicted; `ece` in 15 bins (Guo et al., ICML 2017).
    - `balanced_accuracy`: mean recall of the labels that occur.
    - `auroc`: one against the rest, mean over the labels that occur; 0.5 where only one label does.
    - `loss`: mean negative log probability of the true label, a probability counting as at least 1e-12.
    - `worst_hospital_accuracy`: over hospitals with at least `minimum` patches; over all where none has as many.

    Args:
        probabilities: (n, classes) float32; rows that are not finite count as uniform.
        labels: (n,) int64.
        hospitals: (n,) int64, whose patch each is.
        minimum: patches that a hospital needs to be called the worst.

    Raises:
        ValueError: there are no patches.
    """
    if len(labels) == 0:
        raise ValueError("metrics need at least one patch")
    probabilities = decided(probabilities)
    scores, truth = torch.from_numpy(probabilities), torch.from_numpy(np.ascontiguousarray(labels))
    matrix = confusion_matrix(probabilities, labels)
    occurring = np.flatnonzero(matrix.sum(axis=1))
    recall = matrix.diagonal()[occurring] / matrix.sum(axis=1)[occurring]
    of_label = np.maximum(probabilities[np.arange(len(labels)), labels].astype(np.float64), 1e-12)
    return {
        "accuracy": float(matrix.trace() / matrix.sum()),
        "balanced_accuracy": float(recall.mean()),
        "auroc": _auroc(scores, truth, occurring),
        "macro_f1": float(classification.multiclass_f1_score(scores, truth, scores.shape[1], average="macro")),
        "ece": float(classification.multiclass_calibration_error(scores, truth, scores.shape[1], n_bins=15)),
        "loss": float(-np.log(of_label).mean()),
        "worst_hospital_accuracy": _worst(hospital_accuracy(probabilities, labels, hospitals), hospitals, minimum),
    }


def attack_success(clean: Labels, triggered: Labels, labels: Labels, target: int) -> dict[str, float]:
    """How often a trigger turns an image into the `target` label.

    Args:
        clean: (n,) predicted labels of the images as they are.
        triggered: (n,) predicted labels of the same images with the trigger.
        labels: (n,) true labels.
        target: the label that the attacker wants.

    Returns:
        `success_rate`: of the images of other labels that are classified correctly without the trigger, the share
        that the trigger turns into the target. `raw_rate`: of all images of other labels, the share read as the
        target with the trigger, which counts what the model misreads anyway. Both 0 where there are no such images.
    """
    other = labels != target
    sound = other & (clean == labels)
    hit = triggered == target
    return {
        "success_rate": float(hit[sound].mean()) if sound.any() else 0.0,
        "raw_rate": float(hit[other].mean()) if other.any() else 0.0,
    }


def _auroc(scores: Tensor, truth: Tensor, occurring: NDArray[np.intp]) -> float:
    if len(occurring) < 2:
        return 0.5
    areas = [float(classification.binary_auroc(scores[:, label], truth == label)) for label in occurring]
    return float(np.mean(areas))


def _worst(accuracies: dict[int, float], hospitals: Labels, minimum: int) -> float:
    large = [accuracy for hospital, accuracy in accuracies.items() if (hospitals == hospital).sum() >= minimum]
    return min(large or accuracies.values())
