"""Names of the files and folders in adapters, plans and exports."""

from typing import Final

ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
ADAPTER_CONFIG: Final = "adapter_config.json"
PLAN_FILE: Final = "plan.json"
CARD_FILE: Final = "README.md"
RECIPE_FILE: Final = "recipe.yaml"
ROUTED_TYPE: Final = "SURGERY_ROUTED"
"""Written as `peft_type` where plain PEFT would open the folder without its experts."""
BASE_FOLDER: Final = "base"
"""Inside an adapter folder, the checkpoint of a base that trains in place with added parts."""
ASSEMBLED_FOLDER: Final = "assembled"
"""Inside an adapter folder whose recipe names `vision`, the model it assembles, as it starts."""
MANIFEST_FILE: Final = "manifest.json"
"""Of an export."""
ADAPTER: Final = "default"
"""PEFT's name for the one adapter of a model."""
