"""What PEFT requires of a trained part that a module has by adapter, whatever the part computes."""

from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError


class TrainedPart(AuxiliaryTrainingWrapper):
    """Base of experts and learners: saved, loaded and switched by PEFT, and never merged.

    A subclass names in `adapter_layer_names` the ModuleDict of its parts by adapter.
    """

    saved_prefix = ""
    """Prefix of the tensors' names on disk."""

    @property
    def parts(self) -> nn.ModuleDict:
        """The parts by the name of their adapter."""
        parts: nn.ModuleDict = getattr(self, self.adapter_layer_names[0])
        return parts

    def merge_refusal(self) -> Diagnostic:
        """Error of merging the part into the base."""
        raise NotImplementedError

    def check_set_adapter(self, adapter_name: str | list[str]) -> str | None:
        """The one adapter to activate; see PEFT."""
        return adapter_name if isinstance(adapter_name, str) else adapter_name[0]

    def adapter_state_dict(self, adapter_name: str, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The part's tensors under their names on disk."""
        names = self.adapter_state_dict_load_map(adapter_name)
        return {saved: state_dict[name] for saved, name in names.items()}

    def adapter_state_dict_load_map(self, adapter_name: str) -> dict[str, str]:
        """The name on disk of each of the part's tensors to its name in memory."""
        if adapter_name not in self.parts:
            return {}
        prefix = f"{self.adapter_layer_names[0]}.{adapter_name}"
        names = self.parts[adapter_name].state_dict()
        return {f"{self.saved_prefix}{name}": f"{prefix}.{name}" for name in names}

    def unload_and_optionally_merge_module(self, merge: bool, **kwargs: Any) -> nn.Module:
        """Return the wrapped module; merging is refused.

        Raises:
            SurgeryError: A412, if asked to merge.
        """
        if merge:
            raise SurgeryError(self.merge_refusal())
        self.enable_adapters(False)  # the decoder still asks one of them whether they take part
        base: nn.Module = self.original_module
        return base

    def _get_available_adapters(self) -> set[str]:
        return set(self.parts.keys())
