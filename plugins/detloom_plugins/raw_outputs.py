"""One raw map for each level and branch of a head: boxes, objectness, classes.

A quantiser gives each map one scale. Pixels, an objectness that is small nearly everywhere and classes in one map have
to share it, and the small ones are lost. Maps of their own have scales of their own; decoding stays with the host.

Reference: Jacob et al., Quantization and training of neural networks (2018), section 2.1: one scale for each array.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detloom.decode_spec import DecodeSpec, MapSpec, OutputName
from detloom.errors import PluginError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Fold, Head, ReparamPass
from detloom.ops.maps import whole_maps
from detloom.structures import HeadMaps, Predictions
from detloom_plugins.anchor_head import ImplicitConv
from detloom_plugins.flow import evaluated
from detloom_plugins.output_branches import Branch, branched, opened_graph
from detloom_plugins.sharing import Sharing

__all__ = ["BranchedHead", "RawOutputsPass"]

_BRANCHES: tuple[tuple[OutputName, ...], ...] = (("center", "size", "distances"), ("objectness",), ("classes",))


class BranchedHead(Head):
    """A head whose levels have a map for each branch; it decodes as the head that it was made from.

    It has no auxiliary maps: it is a deployed form.

    Args:
        network: Takes the lead levels, returns the maps of the first one, of the second, and so on.
        decoder: The head as it was, without the parts that the network has.
        spec: Of the decoder, with what each map holds.
    """

    def __init__(self, network: nn.Module, decoder: Head, spec: DecodeSpec) -> None:
        super().__init__()
        self.num_classes = decoder.num_classes
        self.traits = decoder.traits
        self.network = network
        self.decoder = decoder
        self.spec = spec

    def forward(self, levels: Sequence[Tensor]) -> HeadMaps:
        """Return the raw maps."""
        return HeadMaps(self.network(*levels[: len(self.spec["levels"])]))

    def decode(self, maps: Sequence[Tensor]) -> Predictions:
        """Return the predictions of the maps, in float32 (float64 stays)."""
        return self.decoder.decode(whole_maps(self.spec, maps))

    def decode_spec(self) -> DecodeSpec:
        """Return as plain JSON data all that a decoder needs on a host without torch."""
        return copy.deepcopy(self.spec)


class RawOutputsPass(ReparamPass):
    """Split the maps of a head by branch: its last convolutions, or else what it concatenates.

    What a head returns is followed to what makes it. A last convolution of several branches becomes one for each; where
    branches are concatenated, they are returned before; else channels are sliced.
    """

    def plan(self, model: nn.Module) -> list[Fold]:
        """Return every head: which maps it will have, or why it stays."""
        sharing = Sharing(model)
        twins = dict(evaluated(model).named_modules())
        plan: list[Fold] = []
        for path, module in model.named_modules():
            inside = any(not each.path or path.startswith(f"{each.path}.") for each in plan)
            if not isinstance(module, Head) or inside:
                continue
            twin = twins[path]
            objection = _objection(module) or sharing.objection_to_all(module)
            if not objection and isinstance(twin, Head):
                objection = _unread(twin)
            plan.append(Fold(path, applies=not objection, reason=objection or _described(module.decode_spec())))
        return plan

    @torch.no_grad()
    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        """Return the head with a map for each branch."""
        if not isinstance(module, Head):
            raise PluginError(f"raw-outputs: {fold.path or 'the model'} is no head")
        spec = module.decode_spec()
        spec["maps"] = _maps(spec)
        graph = opened_graph(module, len(spec["levels"]))
        # Before it is split: what the branches' convolutions are made of goes, too.
        taken = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
        network = branched(module, graph, [_branches(spec, level) for level in range(len(spec["levels"]))])
        return BranchedHead(network, _without(module, taken), spec)


def _objection(head: Head) -> str:
    if isinstance(head, BranchedHead):
        return "its branches have maps of their own already"
    if any(isinstance(each, ImplicitConv) for each in head.modules()):
        return "it has implicit knowledge, which makes its weights at each run; fold-implicit comes first"
    auxiliary = getattr(head, "auxiliary", None)
    if isinstance(auxiliary, nn.ModuleList) and len(auxiliary):
        return "it has auxiliary outputs, which no deployed form has; drop-auxiliary comes first"
    spec = head.decode_spec()
    if "maps" in spec:
        return "its levels have several maps already"
    return "" if len(_names(spec)) > 1 else "it has one branch"


def _unread(head: Head) -> str:
    try:
        opened_graph(head, len(head.decode_spec()["levels"]))
    except PluginError as error:
        return str(error)
    return ""


def _names(spec: DecodeSpec) -> list[list[OutputName]]:
    """Return the outputs of each branch."""
    there = [output["name"] for output in spec["outputs"]]
    return [found for branch in _BRANCHES if (found := [name for name in there if name in branch])]


def _maps(spec: DecodeSpec) -> list[MapSpec]:
    return [{"level": level, "outputs": names} for level in range(len(spec["levels"])) for names in _names(spec)]


def _described(spec: DecodeSpec) -> str:
    branches = " | ".join(" and ".join(names) for names in _names(spec))
    return f"{len(spec['levels'])} maps into {len(_maps(spec))}: {branches}"


def _branches(spec: DecodeSpec, level: int) -> list[Branch]:
    """Return the channels of each branch of a level's map."""
    ends: dict[OutputName, range] = {}
    width = 0
    for output in spec["outputs"]:
        ends[output["name"]] = range(width, width + output["channels"])
        width += output["channels"]
    num_priors = len(spec["levels"][level]["priors"])
    return [
        Branch(
            "_".join(names),
            tuple(prior * width + channel for prior in range(num_priors) for name in names for channel in ends[name]),
        )
        for names in _names(spec)
    ]


def _without(head: Head, paths: Sequence[str]) -> Head:
    """Return the head without parts that are elsewhere now."""
    for path in dict.fromkeys(paths):
        parent, _, name = path.rpartition(".")
        delattr(head.get_submodule(parent), name)
    return head


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the pass."""
    register("raw-outputs", RawOutputsPass)
