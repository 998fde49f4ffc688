"""Catches, during one forward and backward pass over a batch, what every example's own gradient is made of.

Hooks at the modules that own parameters keep what they read and learn the gradient at what they made of it. The sums of
squares grow as gradients come; no parameter gets a gradient of its own, so autograd computes none over the batch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import torch
from torch import nn

from gramfuse.measuring.squares import Lookup, Product, Ready, Use, add_squares
from gramfuse.measuring.stream import exact_sums

Measured: TypeAlias = Mapping[nn.Parameter, torch.Tensor]
"""The parameters that are measured, and the sum of squares of each, fp32 on the parameter's device."""

_MATRIX: Final = 2


class NotByExampleError(Exception):
    """The gradient of a parameter cannot be told by example in a batch; raised before any of the batch was added."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class ExampleGradients:
    """`with ExampleGradients(model, sums) as batch: batch.begin(n); …backward(); batch.finish()`.

    Serves models of linear layers, embeddings, normalizations and other modules without submodules that make one
    tensor of one, whose first axis (or first two, flattened) are the examples and their tokens.
    """

    def __init__(self, model: nn.Module, sums: Measured) -> None:
        """Take the model, in evaluation mode, and the sums that grow.

        Raises:
            NotByExampleError: a parameter belongs to a module of another kind.
        """
        self._model = model
        self._sums = sums
        self._examples = 0
        self._uses: dict[nn.Parameter, list[Use]] = {}
        self._awaited: dict[nn.Parameter, int] = {}
        self._owners = [module for module in model.modules() if any(p in sums for p in _own(module).values())]
        self._factors = {module: _factors_of(module) for module in self._owners}
        self._differentiating = False
        self._hooks: list[Any] = []
        self._trained: list[nn.Parameter] = []

    def begin(self, examples: int) -> None:
        """Say how many examples the next forward pass takes."""
        self._examples = examples
        self._uses.clear()
        self._awaited.clear()

    def finish(self) -> None:
        """Add what still waits for a gradient that will not come: some use that the loss does not hang on."""
        for parameter in list(self._uses):
            self._add(parameter)

    def __enter__(self) -> Self:
        self._trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        for parameter in self._trained:
            parameter.requires_grad = False
        self._hooks = [module.register_forward_hook(self._follow, with_kwargs=True) for module in self._owners]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for parameter in self._trained:
            parameter.requires_grad = True

    def _follow(
        self,
        module: nn.Module,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        output: Any,  # noqa: ANN401 - whatever a module returns
    ) -> torch.Tensor | None:
        """Note what a module reads, and wait for the gradient at what it makes; a forward hook."""
        if self._differentiating:  # a module is called once more by itself
            return None
        read = [value for value in (*arguments, *keywords.values()) if isinstance(value, torch.Tensor)]
        if len(read) != 1 or not isinstance(output, torch.Tensor):
            raise NotByExampleError(f"{type(module).__name__} does not make one tensor of one")
        rows, made = read[0], output
        if isinstance(module, nn.Embedding) and rows.shape[0] == 1 < self._examples:
            # positions are looked up once for all; each example gets a gradient of its own
            rows, made = rows.expand(self._examples, *rows.shape[1:]), made.expand(self._examples, *made.shape[1:])
        rows = self._by_example(module, rows.detach())
        self._by_example(module, made)
        if not made.requires_grad:
            # gradients end here; a copy, because models write into what they embedded
            made = made.detach().requires_grad_().clone()
        used = [parameter for parameter in _own(module).values() if parameter in self._sums]
        for parameter in used:
            self._uses.setdefault(parameter, [])
            self._awaited[parameter] = self._awaited.get(parameter, 0) + 1
        made.register_hook(partial(self._take, module, rows))  # type: ignore[no-untyped-call] # torch's own
        return made

    def _take(self, module: nn.Module, rows: torch.Tensor, gradient: torch.Tensor) -> None:
        with exact_sums(gradient.device):
            self._differentiating = True
            try:
                uses = self._factors[module](module, rows, self._by_example(module, gradient.detach()))
            finally:
                self._differentiating = False
            for name, parameter in _own(module).items():
                if parameter in self._sums:
                    self._uses[parameter].append(uses[name])
                    self._awaited[parameter] -= 1
                    if not self._awaited[parameter]:
                        self._add(parameter)

    def _add(self, parameter: nn.Parameter) -> None:
        uses = self._uses.pop(parameter)
        if uses:
            with exact_sums(parameter.device):
                add_squares(self._sums[parameter], uses, self._examples)

    def _by_example(self, module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
        """Return [B, …] of [B, …] or [B·T, d]."""
        if tensor.dim() and tensor.shape[0] == self._examples:
            return tensor
        if tensor.dim() == _MATRIX and tensor.shape[0] % self._examples == 0:
            return tensor.reshape(self._examples, -1, tensor.shape[1])
        raise NotByExampleError(f"what {type(module).__name__} reads or makes belongs to no single example")


_Factors: TypeAlias = Callable[[nn.Module, torch.Tensor, torch.Tensor], dict[str, Use]]
"""From a module, what it read and the gradient at what it made, both [B, …]: the uses of its parameters by name."""


def _factors_of(module: nn.Module) -> _Factors:
    if isinstance(module, nn.Linear):
        return _of_linear
    if type(module).__name__ == "Conv1D":  # transformers' own: a linear layer stored [in, out]
        return _of_conv1d
    if isinstance(module, nn.Embedding) and module.max_norm is None and not module.scale_grad_by_freq:
        return _of_embedding
    if isinstance(module, nn.LayerNorm):
        return _of_layer_norm
    if isinstance(module, nn.Embedding) or list(module.children()):
        raise NotByExampleError(f"{type(module).__name__} is of a kind that is not known")
    return _of_any


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False))


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return [B, T, d] of [B, …, d]."""
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])


def _of_linear(_module: nn.Module, rows: torch.Tensor, gradient: torch.Tensor) -> dict[str, Use]:
    right, left = _rows(rows), _rows(gradient)
    return {"weight": Product(left, right), "bias": Ready(left.float().sum(dim=1))}


def _of_conv1d(_module: nn.Module, rows: torch.Tensor, gradient: torch.Tensor) -> dict[str, Use]:
    left, right = _rows(rows), _rows(gradient)
    return {"weight": Product(left, right), "bias": Ready(right.float().sum(dim=1))}


def _of_embedding(module: nn.Module, rows: torch.Tensor, gradient: torch.Tensor) -> dict[str, Use]:
    if not isinstance(module, nn.Embedding):
        raise TypeError
    flat = rows.reshape(rows.shape[0], -1)
    return {"weight": Lookup(flat, _rows(gradient), module.num_embeddings, module.padding_idx)}


def _of_layer_norm(module: nn.Module, rows: torch.Tensor, gradient: torch.Tensor) -> dict[str, Use]:
    if not isinstance(module, nn.LayerNorm):
        raise TypeError
    shape = tuple(module.normalized_shape)
    normal = nn.functional.layer_norm(rows.float(), shape, eps=module.eps)
    by_token = (rows.shape[0], -1, *shape)
    gradient = gradient.float()
    weight = (gradient * normal).reshape(by_token).sum(dim=1)
    return {"weight": Ready(weight), "bias": Ready(gradient.reshape(by_token).sum(dim=1))}


def _of_any(module: nn.Module, rows: torch.Tensor, gradient: torch.Tensor) -> dict[str, Use]:
    """Differentiate the module alone, for every example by itself."""

    def made(parameters: dict[str, torch.Tensor], one: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.func.functional_call(module, parameters, (one.unsqueeze(0),))
        return (output.squeeze(0) * by).sum()

    parameters = {name: parameter.detach() for name, parameter in _own(module).items()}
    with torch.enable_grad():
        found = torch.func.vmap(torch.func.grad(made), in_dims=(None, 0, 0))(parameters, rows, gradient)
    return {name: Ready(value) for name, value in found.items()}
