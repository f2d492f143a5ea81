"""How a hospital trains between two rounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from fedrobust.learning.losses import CrossEntropy, LocalLoss
from fedrobust.options import Many, OneOf, Options, imported, refusal
from fedrobust.users_code import FORM

if TYPE_CHECKING:
    import torch

Momentum = Annotated[float, Field(ge=0, lt=1)]


Precision = Literal[
    "32-true",
    "64-true",
    "bf16-mixed",
    "bf16-true",
    "16-mixed",
    "16-true",
    "transformer-engine",
    "transformer-engine-float16",
]
"""The precisions of Lightning's Trainer."""


class LocalOptimizer(Options):
    """An optimiser of local training."""

    name: str
    lr: float = Field(gt=0)
    """Learning rate."""

    @abstractmethod
    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser of `parameters`."""

    def state_names(self) -> tuple[str, ...]:
        """The names of the optimiser's state of one parameter in torch; empty when it has none.

        `step` is a count; any other state is a tensor of the parameter's shape.
        """
        return ()


class SGD(LocalOptimizer):
    """Stochastic gradient descent, with heavy-ball momentum."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.05, gt=0)
    """Learning rate."""
    momentum: Momentum = 0.9
    """Share of the last step's direction that is kept; 0: plain descent."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty."""

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.SGD(
            parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, fused=True
        )

    def state_names(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()


class _Moments(LocalOptimizer):
    """The options of Adam and AdamW."""

    lr: float = Field(default=1e-3, gt=0)
    """Learning rate."""
    beta1: Momentum = 0.9
    """Decay of the mean of gradients."""
    beta2: Momentum = 0.999
    """Decay of the mean of squared gradients."""

    def state_names(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "step")


class Adam(_Moments):
    """Adam (Kingma & Ba, ICLR 2015)."""

    name: Literal["adam"] = "adam"
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty."""

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        import torch

        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(parameters, lr=self.lr, betas=betas, weight_decay=self.weight_decay, fused=True)


class AdamW(_Moments):
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019)."""

    name: Literal["adamw"] = "adamw"
    weight_decay: float = Field(default=0.01, ge=0)
    """Each step subtracts this share of a weight, times the learning rate."""

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        import torch

        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(parameters, lr=self.lr, betas=betas, weight_decay=self.weight_decay, fused=True)


class TrainerCallback(Options):
    """A callback for Lightning's Trainer: one of Lightning's own, or a user's."""

    name: str = Field(pattern=FORM.pattern)
    """Where the class is: `pytorch_lightning.callbacks:StochasticWeightAveraging`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of its constructor."""

    @model_validator(mode="after")
    def _constructible(self) -> TrainerCallback:
        self.build()
        return self

    def build(self) -> Any:
        """A new callback; one is made for each hospital and round."""
        from pytorch_lightning import Callback

        made = imported(self.name)
        if not (isinstance(made, type) and issubclass(made, Callback)):
            raise refusal(f"'{self.name}' is not a Lightning callback", "name")
        try:
            return made(**self.options)
        except Exception as error:  # any error of its constructor
            raise refusal(f"{self.name} does not take these options: {error}", "options") from error


class LocalTraining(Options):
    """Local training at a hospital: how long, on what loss, with which optimiser and engine."""

    engine: Literal["lean", "trainer", "stacked"] = "lean"
    """`lean` drives the Lightning module in a bare loop; `trainer` is Lightning's Trainer, about a millisecond slower
    per step and two per hospital and round, with its accelerators and precisions; `stacked` trains the hospitals of an
    actor together, for GPUs: the updates of `lean` up to rounding, whose last bits depend on which hospitals share an
    actor."""
    stack: int = Field(default=64, gt=0)
    """Hospitals that the stacked engine trains together, at most; fewer need less memory."""
    optimizer: Annotated[LocalOptimizer, OneOf(LocalOptimizer)] = SGD()
    """Optimiser; starts afresh every round unless its momentum is carried."""
    loss: Annotated[LocalLoss, OneOf(LocalLoss)] = CrossEntropy()
    """Training loss."""
    steps: int | None = Field(default=None, gt=0)
    """Batches per round, the same number at every hospital. Instead of `epochs`."""
    epochs: int | None = Field(default=None, gt=0)
    """Passes over a hospital's own patches per round; 1 where neither this nor `steps` is named."""
    batch_size: int = Field(default=32, gt=0)
    """Patches per step; a hospital with fewer takes all of them."""
    carry_momentum: bool = False
    """Keep a hospital's optimiser state from one round to its next (Karimireddy et al., ICML 2021)."""
    proximal: float = Field(default=0.0, ge=0)
    """FedProx's mu: adds mu/2 ‖w − w_global‖² to the loss (Li et al., MLSys 2020)."""
    augment: bool = True
    """Random flips and quarter turns of the patches."""
    precision: Precision = "32-true"
    """Precision of the trainer engine; some need a GPU. Updates are float32 in any case."""
    callbacks: Many[TrainerCallback] = ()
    """Callbacks of the trainer engine."""
    channels_last: bool = True
    """Memory format of images and convolutions: faster on CPUs, the same to 2e-6 after four steps. The stacked engine
    has a format of its own."""

    @model_validator(mode="before")
    @classmethod
    def _one_epoch(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and not {"steps", "epochs"} & set(data):
            return {**data, "epochs": 1}
        return data

    @model_validator(mode="after")
    def _possible(self) -> LocalTraining:
        if self.steps is not None and self.epochs is not None:
            raise refusal(
                f"both steps ({self.steps}) and epochs ({self.epochs}) are given; set one of them to null", "steps"
            )
        if self.steps is None and self.epochs is None:
            raise refusal("both steps and epochs are null; give one, e.g. epochs: 1", "steps")
        if self.carry_momentum and not self.optimizer.state_names():
            raise refusal(
                f"{self.optimizer.name} without momentum has nothing to carry; give optimizer.momentum above 0, "
                "or set it to false",
                "carry_momentum",
            )
        if self.precision != "32-true" and self.engine != "trainer":
            raise refusal(
                f"the {self.engine} engine trains in 32-true; {self.precision} needs engine: trainer", "precision"
            )
        if self.callbacks and self.engine != "trainer":
            raise refusal(f"the {self.engine} engine has no callbacks; they need engine: trainer", "callbacks")
        if self.engine == "stacked" and self.carry_momentum and "step" in self.optimizer.state_names():
            raise refusal(
                f"hospitals that carry a state of {self.optimizer.name} have different step counts and cannot be "
                "stacked; use optimizer: sgd, engine: lean, or set it to false",
                "carry_momentum",
            )
        return self

    def steps_for(self, patches: int) -> int:
        """Number of batches that a hospital with so many training `patches` trains on in a round."""
        return self.steps or (self.epochs or 1) * -(-patches // self.batch_size)
