"""Batch normalisation into the convolution before it, in any network.

With scale ``t = gamma / sqrt(variance + eps)``: ``W' = t W``, ``b' = beta + t (b - mean)``. Which pairs may be fused is
read off the flow of data, not off names: each module's forward is traced symbolically, its parts as wholes, from the
innermost out, until each normalisation's input is known.

Reference: Ioffe and Szegedy, Batch normalization (2015), section 3.1; Jacob et al., Quantization and training of
neural networks (2018), section 3.2, for the folded form.
"""

import copy
from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from detloom.errors import PluginError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Fold, ReparamPass
from detloom.reparam import replace_submodule_

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
        _scale_(conv, norm)
        # timm's norms carry a dropout and an activation of their own.
        rest = [part for part in norm.children() if not isinstance(part, nn.Identity)]
        return replace_submodule_(module, norm_path, nn.Sequential(*rest) if rest else nn.Identity())


def _scale_(conv: _ConvNd, norm: _BatchNorm) -> None:
    """Put the norm's scale and shift into kernel and bias, in float64."""
    if norm.running_mean is None or norm.running_var is None:
        raise PluginError("fuse-bn: the batch norm has no running statistics")
    weight, dtype = conv.weight.double(), conv.weight.dtype
    mean_O, variance_O = norm.running_mean.double(), norm.running_var.double()
    scale_O = (variance_O + norm.eps).rsqrt()
    if norm.weight is not None:
        scale_O = scale_O * norm.weight.double()
    bias_O = -mean_O if conv.bias is None else conv.bias.double() - mean_O
    bias_O = bias_O * scale_O
    if norm.bias is not None:
        bias_O = bias_O + norm.bias.double()
    if isinstance(conv, _ConvTransposeNd):
        # [in, out / groups, ...]: the groups lie along the inputs.
        grouped = weight.view(conv.groups, -1, *weight.shape[1:])
        per_output = scale_O.view(conv.groups, 1, -1, *[1] * (weight.dim() - 2))
        weight = (grouped * per_output).flatten(0, 1)
    else:
        weight = weight * scale_O.view(-1, *[1] * (weight.dim() - 1))
    conv.weight = nn.Parameter(weight.to(dtype))
    conv.bias = nn.Parameter(bias_O.to(dtype))


class _Planner:
    """Finds for each batch norm the convolution that it alone reads.

    The work is done on a twin in eval mode that shares the tensors, so that the model's own modes stay.
    """

    def __init__(self, model: nn.Module) -> None:
        shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
        self.twin = copy.deepcopy(model, dict(shared)).eval()
        self.uses = Counter(id(module) for _, module in self.twin.named_modules(remove_duplicate=False))
        self.tensor_uses = Counter(id(tensor) for _, tensor in self.twin.named_parameters(remove_duplicate=False))
        self.pending = {path: m for path, m in self.twin.named_modules() if isinstance(m, _BatchNorm)}
        self.order = list(self.pending)
        self.taken: set[int] = set()
        self.decided: dict[str, Fold] = {}
        self.untraced: dict[str, str] = {}

    def folds(self) -> list[Fold]:
        """Return the verdict on every norm, in the order of the model."""
        for path in self.order:
            reason = self._objection_to_norm(self.pending[path])
            if reason:
                self._refuse(path, reason)
        for owner in self._owners():
            below = [path for path in self.pending if _is_below(path, owner)]
            if below:
                self._look_inside(owner, below)
        for path in list(self.pending):
            self._refuse(path, self.untraced.get(path, "its input is not the output of a convolution"))
        return [self.decided[path] for path in self.order]

    def _owners(self) -> list[str]:
        """Return every module that holds a norm, innermost first."""
        owners = {owner for path in self.pending for owner in _ancestors(path)}
        return sorted(owners, key=lambda path: (-path.count("."), not path, path))

    def _look_inside(self, owner: str, below: list[str]) -> None:
        module = self.twin.get_submodule(owner)
        if type(module) in (nn.ModuleList, nn.ModuleDict):
            return  # it has no forward; those derived from it may
        open_parts = {id(m) for m in self.pending.values()}
        open_parts |= {id(m) for m in module.modules() if isinstance(m, _ConvNd) and id(m) not in self.taken}
        try:
            graph = _Tracer(open_parts).trace(module)
        except Exception as error:  # noqa: BLE001 - a forward may do anything; the reason is reported in the plan
            for path in below:
                line = str(error).strip().split("\n")[0]
                self.untraced.setdefault(path, f"the flow through {owner or 'the model'} cannot be read: {line}")
            return
        flow = _Flow(owner, module, graph)
        for node in flow.calls:
            if flow.path_of(node) in self.pending:
                self._judge(flow, node)

    def _judge(self, flow: "_Flow", node: fx.Node) -> None:
        """Decide on a norm, unless what it reads is only known further out."""
        path = flow.path_of(node)
        source = flow.source(node)
        if source is None or source.op == "placeholder":
            return
        conv = flow.called(source)
        if not isinstance(conv, _ConvNd):
            maker = type(conv).__name__ if conv else getattr(source.target, "__name__", str(source.target))
            self._refuse(path, f"its input is made by {maker}, not by a convolution")
            return
        reason = self._objection_to_conv(conv) or flow.objection(source, node)
        if conv.out_channels != self.pending[path].num_features:
            reason = f"{source.target} has {conv.out_channels} channels, the norm {self.pending[path].num_features}"
        if reason:
            self._refuse(path, reason)
            return
        del self.pending[path]
        self.taken.add(id(conv))
        parts = (str(source.target), str(node.target))
        self.decided[path] = Fold(flow.owner, applies=True, reason=f"{parts[1]} alone reads {parts[0]}", parts=parts)

    def _refuse(self, path: str, reason: str) -> None:
        del self.pending[path]
        self.decided[path] = Fold(path, applies=False, reason=reason)

    def _objection_to_norm(self, norm: _BatchNorm) -> str | None:
        kind = type(norm)
        if kind not in NORMALISATIONS and not _is_of_timm(kind, "BatchNormAct2d"):
            return f"{kind.__name__} may do more than a batch norm"
        if norm.running_mean is None:
            return "it keeps no statistics, it uses those of each batch"
        return self._objection_to_sharing(norm)

    def _objection_to_conv(self, conv: _ConvNd) -> str | None:
        kind = type(conv)
        if kind not in CONVOLUTIONS and not _is_of_timm(kind, "Conv2dSame"):
            return f"{kind.__name__} may do more than a convolution"
        return self._objection_to_sharing(conv)

    def _objection_to_sharing(self, module: nn.Module) -> str | None:
        if self.uses[id(module)] > 1:
            return f"a {type(module).__name__} stands in several places"
        if any(self.tensor_uses[id(tensor)] > 1 for tensor in module.parameters(recurse=False)):
            return f"the weights of a {type(module).__name__} are shared"
        if module._forward_hooks or module._forward_pre_hooks:  # noqa: SLF001 - there is no public way to ask
            return f"a {type(module).__name__} has hooks"
        return None


class _Flow:
    """What a module's forward does with its parts."""

    def __init__(self, owner: str, module: nn.Module, graph: fx.Graph) -> None:
        self.owner = owner
        self.module = module
        self.calls = [node for node in graph.nodes if node.op == "call_module"]
        self.times = Counter(str(node.target) for node in self.calls)
        self.read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}

    def path_of(self, node: fx.Node) -> str:
        """Return the dotted name, in the whole model, of a part that is called."""
        return f"{self.owner}.{node.target}" if self.owner else str(node.target)

    def called(self, node: fx.Node) -> nn.Module | None:
        """Return the part that a node calls, if it calls one."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def source(self, node: fx.Node) -> fx.Node | None:
        """Return what made a call's input, looking through identities."""
        source = node.args[0] if node.args else None
        while isinstance(source, fx.Node) and isinstance(self.called(source), nn.Identity) and len(source.users) == 1:
            source = source.args[0] if source.args else None
        return source if isinstance(source, fx.Node) else None

    def objection(self, conv: fx.Node, norm: fx.Node) -> str | None:
        """Return why a convolution and a norm after it may not become one."""
        for target in (str(conv.target), str(norm.target)):
            if self.times[target] > 1:
                return f"{target} is called {self.times[target]} times"
            if target in self.read:
                return f"the weights of {target} are read by other code"
        if len(conv.users) > 1:
            return f"the output of {conv.target} is read in {len(conv.users)} places"
        return None


class _Tracer(fx.Tracer):
    """Records a module's forward; parts without open convolutions and norms stay wholes."""

    def __init__(self, open_parts: set[int]) -> None:
        super().__init__()
        self.open_parts = open_parts

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a part is a whole."""
        del module_qualified_name
        if isinstance(m, _ConvNd | _BatchNorm):
            return True
        return not any(id(part) in self.open_parts for part in m.modules())


def _is_of_timm(kind: type, name: str) -> bool:
    # By name: whoever uses no timm model need not import it.
    return kind.__name__ == name and kind.__module__.startswith("timm.")


def _ancestors(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts))]


def _is_below(path: str, owner: str) -> bool:
    return not owner or path.startswith(f"{owner}.")


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the pass."""
    register("fuse-bn", FuseBnPass)
