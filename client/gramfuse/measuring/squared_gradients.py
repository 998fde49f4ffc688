"""Sums the squares of examples' gradients of log p(y|x) over batches; what y is, the loss of an example says."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

import torch
from torch import nn

from gramfuse.measuring.batching import TokenizedText, batch_inputs
from gramfuse.measuring.checkpoint import Unfinished
from gramfuse.measuring.example_gradients import ExampleGradients, NotByExampleError
from gramfuse.measuring.example_losses import ExampleLoss
from gramfuse.measuring.inference import OpenModel
from gramfuse.measuring.layers import Layer
from gramfuse.measuring.masking import frame_of
from gramfuse.measuring.probing import PROBES_PER_MODULE, probe_sources
from gramfuse.measuring.stream import worst_source
from gramfuse_shared.contract.manifest import Source

Numbered: TypeAlias = tuple[int, TokenizedText]
"""A text and its place among the texts, by which its labels are known."""

_MASKS: Final = ("attention_mask", "decoder_attention_mask")
_PREDICTIONS: Final = ("logits", "start_logits", "end_logits")
_DECODER_INPUT: Final = "decoder_input_ids"

_NO_INFLUENCE: Final = 1e-3
"""Of the mean of all sums: a parameter below has gradients of rounding alone, such as the bias of attention keys."""


class SquaredGradients:
    """The sums of one run over a model that is in evaluation mode.

    Attributes:
        names: the parameters, by the checkpoint's names.
        sums: Σ (∂ log p/∂θ)² of each, fp32 on its device.
        by_batch: whether gradients are told apart within a batch; else examples are passed alone.
    """

    def __init__(self, opened: OpenModel, names: Mapping[nn.Parameter, str], loss: ExampleLoss) -> None:
        """Begin with zero."""
        self.names = names
        self.sums = {
            parameter: torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device) for parameter in names
        }
        self.by_batch = False
        self._model = opened.model
        self._device = opened.device
        self._pad = opened.pad
        self._loss_of = loss
        self._sources: dict[str, Source] = {}
        self._probes = 0

    def try_batches(self, examples: Sequence[Numbered]) -> None:
        """Find out on two examples whether gradients can be told apart within a batch. The sums are zero afterwards.

        Compared with the definition, each example alone: whatever an architecture does with its batch, it is found.
        """
        if len(examples) < 2:  # noqa: PLR2004 - nothing to tell apart
            return
        pair = (examples[0], examples[-1])
        try:
            self._add_batch(pair)
            why = self._differs_from_alone(pair)
        except (NotByExampleError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            why = str(error).partition("\n")[0]
        for total in self.sums.values():
            total.zero_()
        self.by_batch = why is None
        if why is not None:
            warnings.warn(
                f"the texts are passed one by one, which takes longer: within a batch the gradients of "
                f"{type(self._model).__name__} cannot be told apart ({why})",
                stacklevel=3,
            )

    def add(self, batch: Sequence[Numbered]) -> None:
        """Add some examples."""
        if self._probes < PROBES_PER_MODULE and not self._sources:
            self._probes += 1
            self._probe(batch)
        if self.by_batch:
            try:
                self._add_batch(batch)
            except NotByExampleError:  # before anything of the batch was added
                self._add_alone(batch)
        else:
            self._add_alone(batch)

    def keep(self) -> Unfinished:
        """Return what `restore` needs."""
        document = {"sources": self._sources, "probes": self._probes}
        return Unfinished(document, {self.names[parameter]: total for parameter, total in self.sums.items()})

    def restore(self, kept: Unfinished) -> None:
        """Go on where the sums were kept; of the same model, and after `try_batches`."""
        self._sources, self._probes = dict(kept.document["sources"]), kept.document["probes"]
        for parameter, total in self.sums.items():
            total.copy_(kept.tensors[self.names[parameter]])

    @property
    def sources(self) -> dict[str, Source]:
        """What the modules of each parameter read, by the checkpoint's name."""
        readers: dict[nn.Parameter, list[Source]] = {}
        for path, module in self._model.named_modules():
            for parameter in module.parameters(recurse=False):
                looked_up = isinstance(module, nn.Embedding | nn.EmbeddingBag)
                source: Source = "embeddings" if looked_up else self._sources.get(path, "unknown")
                readers.setdefault(parameter, []).append(source)
        return {name: worst_source(readers.get(parameter, ())) for parameter, name in self.names.items()}

    def _probe(self, batch: Sequence[Numbered]) -> None:
        """Find out which modules read what embeddings made of single tokens, as the collector of Gram matrices does."""
        inputs = self._inputs(batch)
        owners = tuple(
            Layer(path, 0, "out_in", (module,))
            for path, module in self._model.named_modules()
            if not isinstance(module, nn.Embedding | nn.EmbeddingBag) and list(module.parameters(recurse=False))
        )
        two_sided = _DECODER_INPUT in inspect.signature(self._model.forward).parameters
        self._sources = probe_sources(self._model, inputs, frame_of(inputs, None, two_sided=two_sided), owners)

    def _add_batch(self, batch: Sequence[Numbered]) -> None:
        inputs = self._inputs(batch)
        with torch.enable_grad(), ExampleGradients(self._model, self.sums) as gradients:
            gradients.begin(len(batch))
            self._loss(inputs, batch).backward()  # type: ignore[no-untyped-call] # torch's own
            gradients.finish()

    def _add_alone(self, batch: Sequence[Numbered], *, sign: int = 1) -> None:
        for numbered in batch:
            with torch.enable_grad(), _trained(self._model):
                loss = self._loss(self._inputs([numbered]), [numbered])
                found = torch.autograd.grad(loss, list(self.sums), allow_unused=True)
            for total, gradient in zip(self.sums.values(), found, strict=True):
                if gradient is not None:
                    total.addcmul_(gradient.float(), gradient.float(), value=sign)

    def _differs_from_alone(self, batch: Sequence[Numbered]) -> str | None:
        """Say which sum is not that of the same examples alone; the sums are used up."""
        sizes = {parameter: float(total.norm()) for parameter, total in self.sums.items()}
        mean = sum(float(total.sum()) for total in self.sums.values()) / sum(
            total.numel() for total in self.sums.values()
        )
        self._add_alone(batch, sign=-1)
        for parameter, total in self.sums.items():
            rounding = torch.finfo(parameter.dtype).eps ** 0.5
            most = rounding * (sizes[parameter] + _NO_INFLUENCE * mean * total.numel() ** 0.5)
            if not float(total.norm()) <= most:  # NaN fails too
                return f"{self.names[parameter]} has other sums there"
        return None

    def _inputs(self, batch: Sequence[Numbered]) -> dict[str, Any]:
        return batch_inputs(self._model, [text for _, text in batch], self._pad, self._device)

    def _loss(self, inputs: Mapping[str, Any], batch: Sequence[Numbered]) -> torch.Tensor:
        """Return Σ −log p(y|x) over the examples."""
        output = self._model(**inputs)
        losses = []
        for place, (number, _) in enumerate(batch):
            predicted = SimpleNamespace(
                **{
                    name: value[place : place + 1]
                    for name in _PREDICTIONS
                    if isinstance(value := getattr(output, name, None), torch.Tensor)
                }
            )
            masks = {name: inputs[name][place : place + 1] for name in _MASKS if name in inputs}
            losses.append(self._loss_of(number, predicted, masks))
        return torch.stack(losses).sum()


@contextmanager
def _trained(model: nn.Module) -> Iterator[None]:
    """Let every floating-point parameter have a gradient, then as before."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad = True
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad = False
