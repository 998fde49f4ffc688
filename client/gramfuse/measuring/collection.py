"""Measures the inputs of a model's linear layers during whatever forward passes the caller runs."""

import inspect
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from gramfuse.measuring.differences import OutputDifferences, with_constant
from gramfuse.measuring.examples import Examples, examples_of
from gramfuse.measuring.forward_pass import ForwardPass, Wiring
from gramfuse.measuring.layers import Layer, choose_layers, find_layers
from gramfuse.measuring.masking import Frame, frame_of, select
from gramfuse.measuring.probing import PROBES_PER_MODULE, Probe, probe_sources
from gramfuse.measuring.statistics import Statistics
from gramfuse.measuring.stream import exact_sums, worst_source
from gramfuse.measuring.weighting import GradientWeighting
from gramfuse_shared.contract.manifest import CollectorSettings, Weighting
from gramfuse_shared.errors import StateError
from gramfuse_shared.version import __version__

_DECODER_INPUT: Final = "decoder_input_ids"


class Collector:
    """Collect statistics while the model runs: `with Collector(model) as statistics: …`, then `statistics.save(path)`.

    Hooks on every linear layer sum XᵀX of its input rows, in fp32 on the model's device: rows that the attention mask
    calls padding are left out, layers that read the same tensor share one sum, and what gradient checkpointing
    recomputes in the backward pass is not counted twice. Works in any loop: a DataLoader, a `Trainer`, a pipeline.
    Which taps the embeddings feed directly is probed once, on an example of the first pass, without touching gradients,
    random numbers or the training mode.

    Args:
        model: any torch module; of a transformers model the layers are named as `save_pretrained` names them.
        base: fingerprint of the project's base model, written into the file.
        padding: "counted" keeps padded rows, as the published RegMean code does.
        share_inputs: False measures each layer for itself; needed only where layers share their inputs in some
            forward passes and not in others.
        weighting: "output_gradient" lets each row count by ‖∂ℓ/∂y‖², y its layer's output, ℓ what the loop calls
            `backward` on: the sum of its examples' losses, not their mean. Measures each layer for itself.
        layers: weights to measure, as they are saved; None: all. Those that are no linear layer's are not measured.
        differences: takes the rows and outputs of every layer beside; then each row has a constant 1 behind it.
        resume: statistics to go on with, as returned by an earlier run on the same model.

    Raises:
        ArchitectureMismatchError: there is nothing to measure.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        base: str | None = None,
        padding: Literal["dropped", "counted"] = "dropped",
        share_inputs: bool = True,
        weighting: Weighting = "none",
        layers: Collection[str] | None = None,
        differences: OutputDifferences | None = None,
        resume: Statistics | None = None,
    ) -> None:
        self.layers = choose_layers(find_layers(model), layers)
        settings = CollectorSettings(collector_version=__version__, padding=padding, weighting=weighting)
        self.statistics = Statistics(settings=settings, base=base) + (resume or Statistics())
        self.statistics.layouts |= {layer.weight: layer.layout for layer in self.layers}
        self._model = model
        self._drop_padding = padding == "dropped"
        self._share_inputs = share_inputs and weighting == "none"
        self._weighting = None if weighting == "none" else GradientWeighting(self.statistics)
        self._differences = differences
        self._wiring = Wiring()
        self._probe = Probe()
        self._calls: list[tuple[nn.Module, Frame]] = []
        self._pass: ForwardPass | None = None
        self._hooks: list[RemovableHandle] = []
        self._warned = False

    def __enter__(self) -> Statistics:
        if self._hooks:
            msg = "this collector is already collecting"
            raise StateError(msg)
        layer_of = {module: layer for layer in self.layers for module in layer.modules}
        for module in self._model.modules():
            if module in layer_of:
                hook = _LayerHook(self, layer_of[module])
                self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                if self._weighting is not None:
                    self._hooks.append(module.register_forward_hook(self._weighting.follow))
                if self._differences is not None:
                    self._hooks.append(module.register_forward_hook(self._differences.follow))
            elif any(inner in layer_of for inner in module.modules()):
                enter = _EnterHook(self, tuple(inspect.signature(module.forward).parameters))
                self._hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                self._hooks.append(module.register_forward_hook(self._leave, always_call=True))
        return self.statistics

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._calls.clear()
        self._pass = None
        if self._weighting is not None:
            self._weighting.forget()
        self.statistics.settle()

    # --- what the hooks call -------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, bound: Mapping[str, Any], *, two_sided: bool) -> None:
        if self._calls and (module is self._model or module is self._calls[0][0]):
            self._calls.clear()  # the last pass was interrupted: no outermost module calls itself
        if getattr(module, "_is_replica", False):
            msg = (
                "nn.DataParallel runs copies of the model in threads, which cannot be told apart: use one device "
                "(CUDA_VISIBLE_DEVICES=0), or DistributedDataParallel with a collector in each process; statistics add"
            )
            raise StateError(msg)
        outer = self._calls[-1][1] if self._calls else None
        frame = frame_of(bound, outer, two_sided=two_sided)
        if outer is None:
            self._warn_of_dropout(module)
            self._probe_once(module, bound, frame)
            self._pass = self._begin(examples_of(bound, frame))
        self._calls.append((module, frame))

    def _leave(self, module: nn.Module, _arguments: object, output: object) -> None:
        if _is_in_backward() or not self._calls:
            return
        while self._calls and self._calls.pop()[0] is not module:
            pass
        if not self._calls and self._pass is not None:
            finished, self._pass = self._pass, None
            if output is not None:  # None: the call raised an error, and not every reader was reached
                self._finish(finished)

    def _read(self, module: nn.Module, layer: Layer, tensor: torch.Tensor) -> None:
        if self._pass is not None:
            self._measure(self._pass, module, layer, tensor, self._calls[-1][1])
        else:  # a layer that is called by itself
            alone = self._begin(Examples(0))
            self._measure(alone, module, layer, tensor, Frame(batch=None))
            self._finish(alone)

    def _begin(self, examples: Examples) -> ForwardPass:
        return ForwardPass(self.statistics, self._wiring, examples, share_inputs=self._share_inputs)

    def _measure(
        self, current: ForwardPass, module: nn.Module, layer: Layer, tensor: torch.Tensor, frame: Frame
    ) -> None:
        known = current.find(layer, tensor)
        if known and self._differences is None:
            return
        with exact_sums(tensor.device):
            selection = select(tensor, frame, drop_padding=self._drop_padding)
            if self._differences is not None:
                selection = with_constant(selection)
                self._differences.expect(module, layer, selection)
            if known:
                return
            if self._weighting is not None:  # the rows are counted now, and added when it is known what they weigh
                self._weighting.expect(module, layer, selection)
                selection = replace(selection, rows=selection.rows[:0])
            current.add(layer, tensor, selection)

    def _finish(self, finished: ForwardPass) -> None:
        with torch.no_grad():
            finished.finish()
        for readers, stream in self.statistics.streams.items():
            if stream.source == "unknown":
                stream.source = worst_source(
                    self._probe.sources[layer] for layer in set(readers) if layer in self._probe.sources
                )

    def _warn_of_dropout(self, module: nn.Module) -> None:
        if module.training and not self._warned and _has_dropout(module):
            self._warned = True
            warnings.warn(
                "the model is in training mode: with dropout its layers read other inputs than in use, and the "
                "statistics are noisier for it; call model.eval() before collecting",
                stacklevel=2,
            )

    def _probe_once(self, module: nn.Module, bound: Mapping[str, Any], frame: Frame) -> None:
        if self._probe.attempts[module] >= PROBES_PER_MODULE or frame.cached:
            return
        found = probe_sources(module, bound, frame, self.layers)
        self._probe.attempts[module] = PROBES_PER_MODULE if found else self._probe.attempts[module] + 1
        self._probe.sources = found | self._probe.sources


class _EnterHook:
    """Called before a module that contains measured layers."""

    def __init__(self, collector: Collector, parameters: tuple[str, ...]) -> None:
        self._collector = collector
        self._parameters = parameters

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not _is_in_backward():
            bound = dict(zip(self._parameters, arguments, strict=False)) | keywords
            self._collector._enter(module, bound, two_sided=_DECODER_INPUT in self._parameters)  # noqa: SLF001 - its own hook


class _LayerHook:
    """Called before a measured layer."""

    def __init__(self, collector: Collector, layer: Layer) -> None:
        self._collector = collector
        self._layer = layer

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not _is_in_backward():
            tensor = arguments[0] if arguments else next(iter(keywords.values()))
            self._collector._read(module, self._layer, tensor)  # noqa: SLF001 - its own hook


def _has_dropout(module: nn.Module) -> bool:
    return any(getattr(inner, "p", 0.0) > 0.0 for inner in module.modules() if isinstance(inner, nn.Dropout))


def _is_in_backward() -> bool:
    # There, gradient checkpointing computes again what was counted already.
    return torch._C._current_graph_task_id() != -1  # noqa: SLF001 - as torch.utils.checkpoint asks it
