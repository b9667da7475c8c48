"""The file that overrides initializers of a graph, as ONNX Runtime writes and reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ADAPTER_FILE: Final = "mm.onnx_adapter"
EXTRA: Final = "genai"
CONFIG_FILE: Final = "genai_config.json"
_VERSION: Final = 1


def write_overrides(file: Path, arrays: Mapping[str, Any]) -> None:
    """Write an adapter file; onnxruntime has to be there.

    Args:
        file: to write.
        arrays: numpy's, by the names of the initializers.
    """
    from onnxruntime import AdapterFormat, OrtValue

    adapter = AdapterFormat()
    adapter.set_adapter_version(_VERSION)
    adapter.set_model_version(_VERSION)
    values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    adapter.set_parameters(values)
    adapter.export_adapter(str(file))
