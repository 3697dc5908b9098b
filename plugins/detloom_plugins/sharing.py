"""Which parts of a model cannot be changed alone, because they stand in several places."""

from collections import Counter

from torch import nn

from detloom.errors import with_article

__all__ = ["Sharing"]


class Sharing:
    """Counts where the modules and tensors of a model stand."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        self._tensors = Counter(id(tensor) for _, tensor in model.named_parameters(remove_duplicate=False))

    def objection(self, module: nn.Module) -> str:
        """Return why a module, without its parts, cannot be replaced, or nothing."""
        kind = type(module).__name__
        one = with_article(kind)
        if self._modules[id(module)] > 1:
            return f"{one} stands in several places"
        if any(self._tensors[id(tensor)] > 1 for tensor in module.parameters(recurse=False)):
            return f"the weights of {one} are shared"
        if module._forward_hooks or module._forward_pre_hooks:  # noqa: SLF001 - there is no public way to ask
            return f"{one} has hooks"
        return ""

    def objection_to_all(self, module: nn.Module) -> str:
        """Return why a module cannot be replaced with all its parts, or nothing."""
        return next((said for each in module.modules() if (said := self.objection(each))), "")
