"""Batch normalisation into the convolution before it, in any network.

Which pairs may be fused is read off the flow of data, not off names: the model's forward is traced symbolically, with
convolutions and norms as wholes, so that every reader of a convolution is seen. Where a forward cannot be read, what it
does with its parts is not known; pairs inside these are fused all the same, and the plan says so.

Reference: Jacob et al., Quantization and training of neural networks (2018), section 3.2; see ``conv_norm``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from detloom.errors import PluginError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Fold, ReparamPass
from detloom.reparam import replace_submodule_
from detloom_plugins.conv_norm import fused_kernel
from detloom_plugins.flow import Flow, read_flows
from detloom_plugins.sharing import Sharing

__all__ = ["FuseBnPass"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class FuseBnPass(ReparamPass):
    """Fuse each convolution with the batch norm that alone reads its output."""

    def plan(self, model: nn.Module) -> list[Fold]:
        """Return every batch norm: with the convolution it is fused into, or why it stays."""
        return _Planner(model).folds()

    @torch.no_grad()
    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        """Return the module with the convolution scaled and shifted, and without the norm."""
        conv_path, norm_path = fold.parts
        conv, norm = module.get_submodule(conv_path), module.get_submodule(norm_path)
        if not (isinstance(conv, _ConvNd) and isinstance(norm, _BatchNorm)):
            raise PluginError(f"fuse-bn: {fold.path}: {' and '.join(fold.parts)} are no convolution and batch norm")
        weight, bias_O = fused_kernel(conv, norm)
        dtype = conv.weight.dtype
        conv.weight, conv.bias = nn.Parameter(weight.to(dtype)), nn.Parameter(bias_O.to(dtype))
        # timm's norms carry a dropout and an activation of their own.
        rest = [part for part in norm.children() if not isinstance(part, nn.Identity)]
        return replace_submodule_(module, norm_path, nn.Sequential(*rest) if rest else nn.Identity())


class _Planner:
    """Finds for each batch norm the convolution that it alone reads."""

    def __init__(self, model: nn.Module) -> None:
        self.reading = read_flows(model, _is_whole)
        self.times = self.reading.times()
        self.read = frozenset(name.rpartition(".")[0] for flow in self.reading.flows for name in flow.read)
        self.sharing = Sharing(model)
        self.pending = {path: m for path, m in model.named_modules() if isinstance(m, _BatchNorm)}
        self.modules = dict(model.named_modules())
        self.order = list(self.pending)
        self.decided: dict[str, Fold] = {}

    def folds(self) -> list[Fold]:
        """Return the verdict on every norm, in the order of the model."""
        for path in self.order:
            reason = self._objection_to_norm(self.pending[path])
            if reason:
                self._refuse(path, reason)
        for flow in self.reading.flows:
            for node in flow.calls():
                if flow.path_of(node) in self.pending:
                    self._judge(flow, node)
        for path in list(self.pending):
            self._refuse(path, self.reading.obstacle(path) or "evaluation mode does not run it")
        return [self.decided[path] for path in self.order]

    def _judge(self, flow: Flow, node: fx.Node) -> None:
        """Decide on a norm that is called."""
        path = flow.path_of(node)
        obstacle = self.reading.obstacle(path)
        source = flow.source(node)
        if source is None or source.op == "placeholder":
            self._refuse(path, obstacle or "its input is not the output of a convolution")
            return
        target = flow.called(source)
        if not isinstance(target, _ConvNd):
            maker = type(target).__name__ if target else getattr(source.target, "__name__", str(source.target))
            self._refuse(path, f"its input is made by {maker}, not by a convolution")
            return
        conv_path = flow.path_of(source)
        conv = self.modules[conv_path]
        reason = self._objection_to_conv(conv) or self._objection_to_use(flow, source, conv_path, path)
        if isinstance(conv, _ConvNd) and conv.out_channels != self.pending[path].num_features:
            reason = f"{conv_path} has {conv.out_channels} channels, the norm {self.pending[path].num_features}"
        if reason:
            self._refuse(path, reason)
            return
        del self.pending[path]
        owner = flow.owner(source, node)
        prefix = f"{owner}." if owner else ""
        parts = (conv_path.removeprefix(prefix), path.removeprefix(prefix))
        seen = f"; {obstacle}, so the proof must show that nothing else does" if obstacle else ""
        self.decided[path] = Fold(owner, applies=True, reason=f"{parts[1]} alone reads {parts[0]}{seen}", parts=parts)

    def _refuse(self, path: str, reason: str) -> None:
        del self.pending[path]
        self.decided[path] = Fold(path, applies=False, reason=reason)

    def _objection_to_norm(self, norm: _BatchNorm) -> str:
        kind = type(norm)
        if kind not in NORMALISATIONS and not _is_of_timm(kind, "BatchNormAct2d"):
            return f"{kind.__name__} may do more than a batch norm"
        if norm.running_mean is None:
            return "it keeps no statistics, it uses those of each batch"
        return self.sharing.objection(norm)

    def _objection_to_conv(self, conv: nn.Module) -> str:
        kind = type(conv)
        if kind not in CONVOLUTIONS and not _is_of_timm(kind, "Conv2dSame"):
            return f"{kind.__name__} may do more than a convolution"
        return self.sharing.objection(conv)

    def _objection_to_use(self, flow: Flow, source: fx.Node, conv: str, norm: str) -> str:
        """Return why a convolution and a norm after it may not become one, from what else uses them."""
        for path in (conv, norm):
            if self.times[path] > 1:
                return f"{path} is called {self.times[path]} times"
            if path in self.read:
                return f"the weights of {path} are read by other code"
        if len(source.users) > 1:
            return f"the output of {flow.path_of(source)} is read in {len(source.users)} places"
        return ""


def _is_whole(module: nn.Module) -> bool:
    """Return whether the inside of a module does not matter."""
    return isinstance(module, _ConvNd | _BatchNorm) or not any(
        isinstance(part, _ConvNd | _BatchNorm) for part in module.modules()
    )


def _is_of_timm(kind: type, name: str) -> bool:
    # By name: whoever uses no timm model need not import it.
    return kind.__name__ == name and kind.__module__.startswith("timm.")


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the pass."""
    register("fuse-bn", FuseBnPass)
