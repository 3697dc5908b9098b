"""The recipe's ``[train]`` and ``[predict]`` tables; imports no torch.

The defaults are YOLOv7's published ones (its hyper-parameter files for COCO from scratch), apart
from what a computer's size decides.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Precision", "PredictSettings", "TrainSettings"]

Precision = Literal["float32", "bfloat16", "float16"]

Metric = Literal["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


class TrainSettings(BaseModel):
    """How a detector is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(default=300, ge=1, description="Times that every picture of the training split is seen.")
    batch: int = Field(default=16, ge=1, description="Pictures of a forward pass, over all processes together.")
    nominal_batch: int = Field(
        default=64,
        ge=0,
        description=(
            "Pictures of an optimiser step, which sees their mean loss: max(round(nominal_batch / batch), 1) forward "
            "passes are accumulated, and weight_decay is scaled by batch * accumulated / nominal_batch. 0: neither."
        ),
    )
    auxiliary_weight: float = Field(
        default=0.25, ge=0, description="Factor of the losses of auxiliary outputs, for models that have them."
    )

    optimizer: str = Field(default="sgd", description="Any optimizer that timm names; 'sgd' has Nesterov momentum.")
    learning_rate: float = Field(
        default=0.01, gt=0, description="Learning rate after the warm-up, before the schedule."
    )
    momentum: float = Field(
        default=0.937, ge=0, lt=1, description="Momentum after the warm-up; the first beta of Adam's family."
    )
    weight_decay: float = Field(
        default=0.0005,
        ge=0,
        description="Decay of weights, not of biases, normalisation and other per-channel tensors.",
    )
    clip_norm: float = Field(
        default=0.0, ge=0, description="Largest norm of the gradient of all parameters; 0: no limit."
    )

    schedule: Literal["cosine", "linear", "step", "multistep", "constant"] = Field(
        default="cosine", description="How the learning rate falls, from epoch to epoch, by timm's schedulers."
    )
    final_fraction: float = Field(
        default=0.1, ge=0, le=1, description="Learning rate at the end over learning_rate; for 'step', the floor."
    )
    decay_epochs: tuple[int, ...] = Field(
        default=(),
        description="Epochs at which 'step' (its first entry, repeated) and 'multistep' multiply by decay_rate.",
    )
    decay_rate: float = Field(default=0.1, gt=0, le=1, description="Factor of 'step' and 'multistep'.")
    warmup_epochs: float = Field(default=3.0, ge=0, description="Epochs in which learning rate and momentum warm up.")
    warmup_min_steps: int = Field(
        default=1000, ge=0, description="The least length of the warm-up, in forward passes; 0: as warmup_epochs says."
    )
    warmup_momentum: float = Field(default=0.8, ge=0, lt=1, description="Momentum at the start of the warm-up.")
    warmup_bias_lr: float = Field(default=0.1, ge=0, description="Learning rate of biases at the start of the warm-up.")

    freeze: tuple[str, ...] = Field(
        default=(),
        description="Parts kept as they are, normalisation statistics too: 'backbone', 'neck', or a dotted name.",
    )
    init_from: str | None = Field(
        default=None,
        description="Artifact to start from: every tensor of equal name and shape is taken, the rest reported.",
    )

    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Of the forward pass. 'auto': bfloat16 where the hardware has it, else float32."
    )
    channels_last: bool = Field(
        default=True, description="Lay pictures and weights out channels last, which is faster."
    )
    deterministic: bool = Field(
        default=False,
        description="Use repeatable, slower kernels on a GPU too; on a CPU runs always repeat bit for bit.",
    )
    seed: int = Field(
        default=0, ge=0, description="Of the initial weights, the order of pictures and their augmentation."
    )

    evaluate_every: int = Field(
        default=1, ge=0, description="Epochs between evaluations; the last is always; 0: never."
    )
    fitness: dict[Metric, float] = Field(
        default={"AP50": 0.1, "AP": 0.9}, description="What the best artifact has most of: a weight for each metric."
    )
    save_every: int = Field(
        default=1,
        ge=1,
        description="Epochs between saved states, from which a killed run resumes; a new best epoch always has one.",
    )
    snapshot_every: int = Field(
        default=0,
        ge=0,
        description=(
            "Epochs between artifacts that are kept, epoch-0010.safetensors and so on, with the weights as trained and "
            "not as averaged by [ema], for `detloom average`; the last is kept, too; 0: none."
        ),
    )
    checkpoint_minutes: float = Field(
        default=10.0,
        ge=0,
        description=(
            "Minutes after which the state is saved within an epoch too, where there are several processes at the "
            "next look at the losses; 0: only at its end."
        ),
    )
    log_every: int = Field(
        default=20,
        ge=1,
        description=(
            "Optimiser steps between looks at the losses; each waits for the device once, and several processes then "
            "agree whether to stop on Ctrl-C or to save."
        ),
    )


class PredictSettings(BaseModel):
    """How predictions become detections."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    batch: int = Field(default=16, ge=1, description="Pictures of a forward pass, in prediction and in evaluation.")
    score: float = Field(default=0.25, ge=0, le=1, description="Least score of a detection, when predicting.")
    overlap: float = Field(
        default=0.45, ge=0, le=1, description="IoU from which the lesser of two boxes is dropped, when predicting."
    )
    evaluation_score: float = Field(default=0.001, ge=0, le=1, description="Least score of a detection, in evaluation.")
    evaluation_overlap: float = Field(
        default=0.65, ge=0, le=1, description="IoU from which the lesser of two boxes is dropped, in evaluation."
    )
    max_detections: int = Field(default=300, ge=1, description="Most detections of a picture.")
    candidates: int = Field(default=30000, ge=1, description="Most boxes of a picture that enter the suppression.")
    agnostic: bool = Field(default=False, description="Let boxes of different classes suppress one another.")
    rectangular: bool = Field(
        default=True,
        description=(
            "Pad pictures to the nearest multiple of the largest stride, not to the whole canvas, in prediction and in "
            "evaluation, which then takes pictures by shape."
        ),
    )
    fuse: bool = Field(
        default=True,
        description=("Apply the recipe's reparam passes first, unmeasured; `detloom fuse` measures what they change."),
    )
