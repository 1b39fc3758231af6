"""Optimizers, the learning-rate schedule as a function of the share of the run, clipping, the average of the weights,
and the objective."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UserError
from .models.ensemble import ensemble_of, members_of
from .models.transfer import head_of
from .muon import Muon
from .recipe import LossConfig, OptimConfig

RATES = ("lr", "linear_lr", "bias_lr", "body_lr")  # the fields of OptimConfig that are learning rates
Kind = TypeVar("Kind", bound=type[torch.optim.Optimizer])


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer that the recipe names, on the parameters that are to be trained. Every group has its `peak`, the
    learning rate that the schedule multiplies."""
    groups = parameter_groups(model, config)
    device = groups[0]["params"][0].device if groups else torch.device("cpu")
    on_gpu = device.type == "cuda"
    if on_gpu:  # read by the kernels themselves: the steps of a CUDA graph get its value of the moment
        groups = [{**group, "lr": torch.tensor(group["peak"], device=device)} for group in groups]
    if config.name == "muon":
        return eager(Muon)(groups, config.lr, config.momentum)
    if config.name == "sgd":
        return eager(torch.optim.SGD)(groups, config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    if config.name == "rmsprop":
        return eager(torch.optim.RMSprop)(groups, config.lr, momentum=config.momentum, capturable=on_gpu)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return eager(kind)(groups, config.lr, betas=(config.beta1, config.beta2), fused=True, capturable=on_gpu)


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Give every group `share` of its peak, in the place where its learning rate lies."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["peak"] * share)
        else:
            group["lr"] = group["peak"] * share


def eager(kind: Kind) -> Kind:
    """`kind`, whose methods are those inside torch's wrappers. What these add is to import torch's compiler (two
    seconds) and to tell it to let the method alone; it never sees one here, where only the model is compiled. A step
    takes no gradients, as there."""
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**methods, "step": step})  # type: ignore[return-value] # it is a Kind


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Filters of convolutions, weights of linear layers, and the rest (biases and norms, one-dimensional), each with
    its learning rate; the rest is decayed only where `decay_all` is true. With `body_lr` first those before the last
    layer, all at that rate, then its own: what is pretrained needs smaller steps than what is new (Howard and Ruder,
    arXiv:1801.06146)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    # also with head_epochs: torch's fused SGD wants the momentum of all of a group, or of none
    body = {id(p) for p in body_of(model)} if config.body_lr or config.head_epochs else set()
    groups = []
    for part, lr in ((body, config.body_lr), ({id(p) for p in parameters} - body, 0.0)):
        members = [p for p in parameters if id(p) in part]
        kinds = (
            ([p for p in members if p.ndim > 2], lr or config.lr, True),
            ([p for p in members if p.ndim == 2], lr or config.linear_lr or config.lr, True),
            ([p for p in members if p.ndim < 2], lr or config.bias_lr or config.lr, config.decay_all),
        )
        groups += [
            {
                "params": kind,
                "lr": rate,
                "peak": rate,
                "weight_decay": config.weight_decay if decayed else 0.0,
                "filters": index == 0,
            }
            for index, (kind, rate, decayed) in enumerate(kinds)
            if kind
        ]
    return groups


def body_of(model: nn.Module) -> list[nn.Parameter]:
    """What learns in front of the last layer that has weights; of an ensemble, in front of each member's."""
    head = {id(p) for member in members_of(model) for p in head_of(member).parameters()}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in head]


def freezable(model: nn.Module, config: OptimConfig) -> list[list[nn.Parameter]]:
    """What each share in `config.freeze` freezes: the first convolution that learns with all that comes before the
    second, then the second, and so on; of an ensemble each member's. First layers settle first, and a step is shorter
    without their gradients (FreezeOut: Brock et al., arXiv:1706.04983).

    Raises:
        UserError: no convolution would be left to learn.
    """
    of_members = [_by_convolution(member) for member in members_of(model)]
    layers = [[p for part in parts for p in part] for parts in zip(*of_members, strict=True)]
    if config.freeze and len(config.freeze) >= len(layers):
        raise UserError(
            f"optim.freeze has {len(config.freeze)} shares, but the model has {len(layers)} convolutions that learn, "
            "and the last is not frozen"
        )
    return layers[: len(config.freeze)]


def _by_convolution(network: nn.Module) -> list[list[nn.Parameter]]:
    layers: list[list[nn.Parameter]] = []
    before: list[nn.Parameter] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
            layers.append(before)
            before = []
        (layers[-1] if layers else before).extend(p for p in module.parameters(recurse=False) if p.requires_grad)
    return layers


def hold(body: list[nn.Parameter], layers: list[list[nn.Parameter]], frozen: int, only_head: bool) -> None:
    """Let the first `frozen` of `layers`, or with `only_head` all of `body`, not learn, and the rest of it learn."""
    held = {id(p) for part in ([body] if only_head else layers[:frozen]) for p in part}
    for p in body:
        p.requires_grad_(id(p) not in held)
        p.grad = None


def train_mode(model: nn.Module, only_head: bool) -> None:
    """Put the model in training mode, or with `only_head` its last layer alone (of an ensemble every member's): what
    lies before it then computes as in evaluation. Frozen features that change with the batch, and whose running
    statistics move, would not be the ones that were pretrained (so Keras too: keras.io/guides/transfer_learning)."""
    model.train(not only_head)
    if together := ensemble_of(model):
        together.training = True  # it alone: whoever learns has a share of its own, and no mirror
    for member in members_of(model):
        head_of(member).train()


def schedule(config: OptimConfig, t: float) -> float:
    """The multiplier of the learning rate, 0..1, at share `t` (0 <= t < 1) of the run's steps.

    `one-cycle` rises linearly over `warmup` and falls linearly to 0, as the CIFAR-10 speed records do (after
    Smith, arXiv:1803.09820); `cosine` is Loshchilov and Hutter's half wave (arXiv:1608.03983).
    """
    warmup = config.warmup
    if t < warmup:
        return t / warmup if config.schedule == "one-cycle" else max(t / warmup, 1e-3)
    rest = (t - warmup) / (1 - warmup) if warmup < 1 else 0.0
    if config.schedule == "one-cycle":
        return 1 - rest
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    if config.schedule == "step":
        return config.step_factor ** sum(t >= at for at in config.step_at)
    return 1.0


def clipping(optimizer: torch.optim.Optimizer, limit: float) -> Callable[[], object]:
    """The function that scales the gradients of all parameters such that their common L2 norm is at most `limit`
    (Pascanu et al., arXiv:1211.5063), where it is not 0. A GPU need not wait for it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return (lambda: nn.utils.clip_grad_norm_(parameters, limit)) if limit else lambda: None


def averaging(model: nn.Module, decay: float) -> tuple[list[Tensor], list[Tensor], Callable[[int], None]]:
    """The tensors of `model` that are averaged, as many for their averages, and the function that takes the tensors of
    step `t` (from 0) into the averages: no tensors, and a function that does nothing, where `decay` is 0.

    The average is exponential (Polyak and Juditsky, 1992; Tarvainen and Valpola, arXiv:1703.01780). At first its decay
    is (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage, such that the weights that a run began with are
    soon forgotten. The statistics of batch norm are averaged with the weights: those that the last steps left fit the
    last weights; averaged over the same steps they come near those of the average, without another pass over the images
    (torchvision's and timm's averages do so too). Counts of batches are left alone.
    """
    if decay == 0:
        return [], [], lambda _: None
    weights = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    averages = [tensor.detach().clone() for tensor in weights]

    @torch.no_grad()
    def take_in(t: int) -> None:
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + t) / (10 + t)))

    return weights, averages, take_in


@contextmanager
def exchanged(weights: list[Tensor], others: list[Tensor]) -> Iterator[None]:
    """Inside the `with` each has the other's values."""
    _exchange(weights, others)
    try:
        yield
    finally:
        _exchange(weights, others)


@torch.no_grad()
def _exchange(weights: list[Tensor], others: list[Tensor]) -> None:
    for one, other in zip(weights, others, strict=True):
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """A weight (classes,) for each class, inverse to its number of `labels` (N,), and over all labels 1 on average. It
    is scikit-learn's `balanced` where every class has an image; one that has none weighs 0."""
    counts = labels.bincount(minlength=classes)
    return torch.where(counts > 0, len(labels) / ((counts > 0).sum() * counts.clamp(min=1)), 0.0).float()


def objective(
    model: nn.Module, loss: LossConfig, l1: float = 0.0, weights: Tensor | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The function (logits (N, K), labels) -> scalar that is minimised; `l1` adds l1 * sum |parameter|. The labels are
    int64 (N,), or the classes' shares (N, K) in the type of the logits. `weights` (K,) multiply what each class adds to
    the cross-entropy."""

    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=loss.label_smoothing)

    def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
        shares = labels if labels.ndim == 2 else F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        return F.mse_loss(logits.softmax(1), shares)

    def weighted(logits: Tensor, labels: Tensor) -> Tensor:  # over the images, not over the sum of their weights
        smoothing = loss.label_smoothing
        return F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing) / len(labels)

    plain = cross_entropy if loss.name == "cross-entropy" else squared_error
    if weights is not None:
        plain = weighted
    if l1 == 0:
        return plain
    parameters = [p for p in model.parameters() if p.requires_grad]
    return lambda logits, labels: plain(logits, labels) + l1 * torch.stack([p.abs().sum() for p in parameters]).sum()
