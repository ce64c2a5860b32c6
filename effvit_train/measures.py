"""The one table of what a card can hold: unit, which way is better, definition, reference.

Reports and documentation are generated from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Measure:
    """One row of the table of measures."""

    unit: str
    better: Better
    label: str
    definition: str
    reference: str = ""


MEASURES: dict[str, Measure] = {
    "quality/accuracy": Measure(
        "fraction", "higher", "Accuracy", "Share of test images whose most likely class is right."
    ),
    "quality/balanced_accuracy": Measure(
        "fraction", "higher", "Balanced accuracy",
        "Mean of the accuracy within each class that has test images.",
    ),
    "quality/top5": Measure(
        "fraction", "higher", "Top-5 accuracy",
        "Share of test images whose class is among the five most likely; null with five classes or fewer.",
    ),
    "quality/nll": Measure(
        "nats", "lower", "Negative log-likelihood", "Mean over test images of -log p(true class)."
    ),
    "cost/params": Measure("parameters", "lower", "Parameters", "Parameters of the shipped model."),
    "cost/macs": Measure(
        "MACs/image", "lower", "MACs",
        "Multiply-accumulates for one image, attention products included: what vision papers print as FLOPs.",
        "Dosovitskiy et al. 2021; Touvron et al. 2021",
    ),
    "cost/flops": Measure(
        "FLOPs/image", "lower", "FLOPs",
        "2 x MACs plus the elementwise work of one image: one per addition, multiplication, comparison, root "
        "or transcendental function of an element (softmax 5, LayerNorm 7, GELU 5 per element); moving data "
        "is free.",
    ),
    "cost/latency_ms": Measure(
        "ms", "lower", "Latency",
        "Median time of one image, batch 1, after warm-up, in a fresh process; threads, precision and runs "
        "are in the provenance.",
    ),
    "cost/latency_p95_ms": Measure("ms", "lower", "Latency p95", "95th percentile of the same times."),
    "cost/throughput": Measure(
        "images/s", "higher", "Throughput", "Images per second at the batch size in the provenance."
    ),
    "cost/memory_mb": Measure(
        "MB", "lower", "Inference memory",
        "Peak memory that the loaded model and the inference of one image add to a fresh process whose "
        "libraries are loaded (resident set on a CPU, allocated memory on CUDA).",
    ),
    "cost/size_mb": Measure("MB", "lower", "File size", "Size of model.safetensors (1 MB = 10^6 bytes)."),
    "cost/energy_j": Measure(
        "J/image", "lower", "Energy",
        "Energy of the device per image, in batches, from its hardware counter (NVML of a GPU, RAPL of processor packages); "
        "null without one.",
    ),
    "cost/train_seconds": Measure(
        "s", "lower", "Training time",
        "Wall-clock seconds spent in fit, over all resumes; a teacher's own not counted.",
    ),
    "cost/eer": Measure(
        "ratio", "lower", "Efficient error rate",
        "Mean of four ratios to ViT-B/16 at 224 in 32 bits: parameters, bits per parameter, MACs (printed as "
        "FLOPs there) and file size. Despite its name it holds no error: read it beside the accuracy.",
        "Papa et al. 2023, arXiv 2309.02031",
    ),
    "robustness/corruption_accuracy": Measure(
        "fraction", "higher", "Under corruption",
        "Mean accuracy over the 15 kinds of corruption of ImageNet-C in 5 severities, with the parameters published for "
        "the nearest image size (32, 64 or 224 px); frost is procedural. Counts are in the provenance.",
        "Hendrycks & Dietterich 2019",
    ),
    "robustness/corruption_drop": Measure(
        "fraction", "lower", "Lost to corruption",
        "Accuracy on the same images unchanged, minus the mean under corruption.",
        "Hendrycks & Dietterich 2019",
    ),
    "robustness/pgd_accuracy": Measure(
        "fraction", "higher", "Under PGD",
        "Share of images that are right and stay so under 20 steps of projected gradient ascent from a random start, "
        "each value changed by at most epsilon (8/255 up to 84 px, 4/255 above, 0.1 for Fashion-MNIST, unless the "
        "provenance says otherwise).",
        "Madry et al. 2018",
    ),
    "robustness/autoattack_accuracy": Measure(
        "fraction", "higher", "Under AutoAttack",
        "Share of images that are right and stay so under the standard AutoAttack (APGD on cross-entropy and on the "
        "targeted logit ratio, targeted FAB, Square) with the same budget: an upper bound of the worst case.",
        "Croce & Hein 2020, arXiv 2003.01690",
    ),
    "calibration/ece": Measure(
        "fraction", "lower", "Calibration error (ECE)",
        "By how much confidence and accuracy differ: in each of 15 equally wide bins of the largest probability, "
        "weighted by the images in them. Chance alone makes it positive; the provenance says how much.",
        "Guo et al. 2017, arXiv 1706.04599",
    ),
    "calibration/ece_equal_mass": Measure(
        "fraction", "lower", "ECE, equal mass",
        "The same with 15 bins of equally many images; equally sure images share one.",
        "Nguyen & O'Connor 2015",
    ),
    "calibration/ece_scaled": Measure(
        "fraction", "lower", "ECE, scaled",
        "The first one after dividing the logits by the temperature that is best on validation images: what remains when "
        "confidence has been corrected for free. The temperature is in the provenance.",
        "Guo et al. 2017",
    ),
    "calibration/brier": Measure(
        "prob. squared", "lower", "Brier score",
        "Mean over test images of the squared errors of the probabilities, summed over the classes: 0 to 2, twice the usual "
        "score of two classes.",
        "Brier 1950",
    ),
    "calibration/aurc": Measure(
        "fraction", "lower", "Risk-coverage area",
        "Share of wrong answers among the k surest test images, averaged over all k.",
        "Geifman & El-Yaniv 2017",
    ),
    "calibration/accuracy_at_80pct_coverage": Measure(
        "fraction", "higher", "Accuracy, surest 80 %",
        "Accuracy on the 80 % of the test images of which the model is surest.",
        "El-Yaniv & Wiener 2010",
    ),
    "calibration/accuracy_at_90pct_coverage": Measure(
        "fraction", "higher", "Accuracy, surest 90 %", "The same on 90 %."
    ),
    "calibration/ood_auroc": Measure(
        "AUC", "higher", "Foreign images told",
        "Area under the ROC curve with which the model's doubt (the score in the provenance) tells images of none of its "
        "classes from test images; 0.5 is chance.",
        "Hendrycks & Gimpel 2017; Liu et al. 2020",
    ),
    "fairness/worst_group_accuracy": Measure(
        "fraction", "higher", "Worst group",
        "Accuracy on the group of test images where it is lowest. Here and below groups with fewer images than the "
        "provenance's min_cell are told there and not compared; null with fewer than two others.",
        "Sagawa et al. 2020",
    ),
    "fairness/accuracy_gap": Measure(
        "fraction", "lower", "Accuracy gap",
        "Accuracy of the best group minus that of the worst. Chance alone makes it positive; the provenance says how much.",
    ),
    "fairness/reweighted_gap": Measure(
        "fraction", "lower", "Gap, same classes",
        "The same gap with every group's classes weighted as in all compared groups together, so that easy classes make "
        "no group look better; over the classes that all of them have, null if these are less than half of the images.",
    ),
    "fairness/demographic_parity_difference": Measure(
        "fraction", "lower", "Demographic parity",
        "Largest difference between groups in how often a class is predicted; the largest over the classes, each against "
        "the rest.",
        "Agarwal et al. 2018; Fairlearn",
    ),
    "fairness/equalized_odds_difference": Measure(
        "fraction", "lower", "Equalized odds",
        "Largest difference between groups in the true or false positive rate of a class; the largest over the classes, "
        "each against the rest. A rate needs min_cell images, and a class both rates.",
        "Hardt et al. 2016; Agarwal et al. 2018; Fairlearn",
    ),
    "transparency/insertion_auc": Measure(
        "AUC", "higher", "Insertion",
        "Area under the probability of the predicted class while the image is uncovered from the mean colour, the cells "
        "first that an explanation calls most relevant. The explanation is gradient-weighted relevance of the attention, "
        "or integrated gradients where attention cannot be followed; a random map's is in the provenance.",
        "Petsiuk et al. 2018; Chefer et al. 2021; Sundararajan et al. 2017",
    ),
    "transparency/deletion_auc": Measure(
        "AUC", "lower", "Deletion",
        "Area under the same probability while the most relevant cells are covered with the mean colour first.",
        "Petsiuk et al. 2018",
    ),
    "transparency/perturbation_auc": Measure(
        "AUC difference", "higher", "Token perturbation",
        "Share of predictions that stay while patch tokens are taken away, averaged from none to 90 %: least relevant "
        "first minus most relevant first. A random order gives 0. Null where no tokens can be taken away.",
        "Chefer et al. 2021",
    ),
    "transparency/randomised_similarity": Measure(
        "correlation", "lower", "Unlearnt similarity",
        "Mean Spearman correlation of an image's explanation with that of a copy of the model whose weights are "
        "shuffled; an explanation that stays the same (1) does not show what the model has learnt.",
        "Adebayo et al. 2018",
    ),
    "privacy/epsilon": Measure(
        "nats", "lower", "Privacy loss epsilon",
        "Upper bound of the privacy loss at delta: of one image of the training split, zero-out adjacency, over this "
        "training and those of its teachers and starting weights.",
        "Abadi et al. 2016; Gopi et al. 2021; Mironov et al. 2019",
    ),
    "privacy/delta": Measure(
        "probability", "lower", "Privacy delta", "Probability that epsilon does not bound: summed likewise."
    ),
    "privacy/epsilon_lower_bound": Measure(
        "nats", "lower", "Epsilon at least",
        "What canaries (mislabelled images, planted by coins) prove about this training with 95 % confidence: it is not "
        "private for any smaller epsilon.",
        "Steinke et al. 2023, arXiv 2305.08846",
    ),
    "privacy/mia_auc": Measure(
        "AUC", "lower", "Membership attack",
        "Area under the ROC curve of a threshold on the log-odds of the label, training images against test images; 0.5 "
        "is chance.",
        "Yeom et al. 2018; Carlini et al. 2022",
    ),
    "privacy/mia_tpr_at_1pct_fpr": Measure(
        "fraction", "lower", "Members found at 1 %",
        "Share of training images that the same attack recognises when 1 % of the test images are taken for them.",
        "Carlini et al. 2022",
    ),
    "privacy/mia_tpr_at_0.1pct_fpr": Measure(
        "fraction", "lower", "Members found at 0.1 %", "The same at 0.1 %.", "Carlini et al. 2022"
    ),
    "complexity/attention_share": Measure(
        "fraction", "lower", "Attention products",
        "Share of the MACs in products of queries, keys and values: what grows with the square of the tokens where "
        "every token attends to every other.",
        "Vaswani et al. 2017",
    ),
    "complexity/flops_exponent": Measure(
        "exponent", "lower", "Growth of FLOPs",
        "Slope of log FLOPs (as in cost/flops, Fourier transforms included) against log tokens, by least squares over "
        "images with one to four times the model's sides: 1 = linear, 2 = quadratic. Counted, not timed.",
    ),
    "complexity/mixing_exponent": Measure(
        "exponent", "lower", "Growth of token mixing",
        "The same slope for the FLOPs of what lets tokens see one another alone: attention products with their softmax, "
        "Fourier and wavelet mixers. About 2 for attention to all, 1 for windows, 1.1 to 1.2 for a Fourier transform "
        "(N log N); null without any of them.",
    ),
    "complexity/latency_exponent": Measure(
        "exponent", "lower", "Growth of latency",
        "The same slope for the measured time of one image, in a fresh process in which the image sizes take turns, the "
        "fastest round of each; sizes too slow to time are left out. Below the growth of FLOPs where fixed costs of each "
        "layer prevail.",
    ),
    "complexity/intensity": Measure(
        "FLOPs/byte", "higher", "Arithmetic intensity",
        "FLOPs of one image over the bytes of weights and activations that its operators read and write, without caches; "
        "fused attention keeps its scores to itself.",
        "Williams et al. 2009",
    ),
    "complexity/memory_bound_share": Measure(
        "fraction", "lower", "Bound by memory",
        "Share of the least time of one image on this machine's roofline (measured peaks of a matrix product and of a copy, "
        "32 bits) in layers that memory bandwidth bounds.",
        "Williams et al. 2009",
    ),
    "approximation/attention_error": Measure(
        "relative error", "lower", "Attention error",
        "Mean over replaced attention modules of ||A(x) - A'(x)|| / ||A(x)|| (Frobenius), exact module against replacement, "
        "on the inputs that the replacement receives; null where no attention is replaced.",
    ),
    "approximation/output_error": Measure(
        "relative error", "lower", "Output error",
        "||f(x) - f'(x)|| / ||f(x)|| of the logits over test images, the model before parts were replaced against what "
        "ships; null where nothing is replaced.",
    ),
    "approximation/rank_share": Measure(
        "fraction", "lower", "Rank of the weights",
        "Mean over linear layers and convolutions of the smallest rank that holds 99 % of the squared singular values, over "
        "the full rank: the best approximation of that rank is at most 10 % away.",
        "Eckart & Young 1936",
    ),
    "spectral/log_norm_bound": Measure(
        "log10", "lower", "Spectral norm bound",
        "log10 of prod ||W||_2 x (sum (||W^T||_{2,1} / ||W||_2)^(2/3))^(3/2) over the median margin of the test images and "
        "the root of the number of training images: linear layers, convolutions and scales of normalisations as one "
        "chain, reference matrices 0. Attention's softmax and residuals are not in it: no guarantee, for ranking models of "
        "one architecture on one data set.",
        "Bartlett, Foster & Telgarsky 2017, arXiv 1706.08498",
    ),
    "spectral/mean_stable_rank": Measure(
        "rank", "lower", "Stable rank",
        "Mean over linear layers and convolutions of ||W||_F^2 / ||W||_2^2.",
        "Rudelson & Vershynin 2007",
    ),
    "continual/average_accuracy": Measure(
        "fraction", "higher", "Average accuracy",
        "Mean over the tasks of a stream of the accuracy on their test images after the last task, among all classes.",
        "Lopez-Paz & Ranzato 2017, eq. 2",
    ),
    "continual/average_incremental_accuracy": Measure(
        "fraction", "higher", "Incremental accuracy",
        "Mean over the tasks i of the mean accuracy on the tasks up to i after task i.",
        "Rebuffi et al. 2017",
    ),
    "continual/forgetting": Measure(
        "fraction", "lower", "Forgetting",
        "Mean over all tasks but the last of the best accuracy on them before the last task minus that after it.",
        "Chaudhry et al. 2018",
    ),
    "continual/backward_transfer": Measure(
        "fraction", "higher", "Backward transfer",
        "Mean over all tasks but the last of the accuracy after the last task minus that right after their own.",
        "Lopez-Paz & Ranzato 2017, eq. 3",
    ),
    "continual/forward_transfer": Measure(
        "fraction", "higher", "Forward transfer",
        "Mean over all tasks but the first of the accuracy right before they are trained minus that of the untrained "
        "model; null where classes come with the tasks.",
        "Lopez-Paz & Ranzato 2017, eq. 4",
    ),
    "continual/task_incremental_accuracy": Measure(
        "fraction", "higher", "Task-incremental accuracy",
        "Average accuracy where the model is told the task, and chooses among its classes only.",
        "van de Ven & Tolias 2019",
    ),
    "continual/kept_mb": Measure(
        "MB", "lower", "Memory of earlier tasks",
        "What a strategy keeps of earlier tasks after the last one: images, their logits, copies of the model and of its "
        "importance, as bytes in memory.",
    ),
    "continual/seconds_per_task": Measure(
        "s", "lower", "Seconds per task",
        "Mean wall time of training a task, tests left out; a resumed task counts all its parts.",
    ),
}  # fmt: skip
