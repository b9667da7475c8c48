"""The model card of an adapter folder: what it is, how to open it, and on which base."""

from typing import Any, Final

from surgery.model.remote_code import remote_file
from surgery.model.source import BUILTIN
from surgery.plan.planner import Plan
from surgery.plan.summary import summary_line
from surgery.storage.file_names import ASSEMBLED_FOLDER

FINGERPRINT_LINE: Final = "Fingerprint of the base (a sample of its bytes, SHA-256):"
RIGHT_BASE: Final = "# the right base"
"""Ends the line by which a card lets plain PEFT check its base."""

_PEFT = """\
```python
from peft import PeftModel
from transformers import {auto}
{imported}
base = {auto}.from_pretrained({base})
{check}model = PeftModel.from_pretrained(base, "FOLDER")  # multimodal path
with model.disable_adapter():  # text path: the untouched base
    ...
```
"""

_SURGERY = """\
```python
from surgery import load_adapter, text_path

model = load_adapter("FOLDER")  # refuses another base
with text_path(model):
    ...
```
"""

_IN_PLACE = """\
```python
from transformers import {auto}

model = {auto}.from_pretrained("FOLDER"{trust})
```

Every weight trains in place, so this folder has no text path of its own: the text path is the
stored original, `{source}`.
"""


_DEEPER = """\
```python
from transformers import {auto}

model = {auto}.from_pretrained("FOLDER"{trust})
```

A plain checkpoint: nothing of `surgery` is needed to open it. Its {blocks} blocks are, in order,
the blocks {order} of `{source}`, counted from 0.
"""

_LEARNED = """\
```python
from surgery import load_adapter

model = load_adapter("FOLDER")  # the trained base in FOLDER/base, and what is beside it
```

The base trains in place, so this folder has no text path of its own: the text path is the
stored original, `{source}`.
"""


def model_card(plan: Plan, fingerprint: dict[str, Any] | None) -> str:
    """Return the text of README.md.

    Args:
        plan: The applied plan.
        fingerprint: Fingerprint of the base; None without its weights.
    """
    source, recipe = plan.anatomy.source, plan.recipe
    base = recipe.model if recipe.vision else source
    parts = [
        f"---\nbase_model: {base}\nlibrary_name: {'transformers' if plan.is_plain else 'peft'}\n"
        "tags: [surgery]\n---\n",
        f"# {recipe.name} on {source}\n",
        f"{recipe.resolved()['description']}.\n" if recipe.description else "",
        f"{summary_line(plan)}\n",
        "## Open it\n",
        _opening(plan, fingerprint),
        "## How it was made\n",
        f"`surgery apply {recipe.name}`; the resolved recipe is `recipe.yaml`, every edit with its "
        "count is in `plan.json`.\n",
        f"{FINGERPRINT_LINE} {fingerprint['sample']}\n" if fingerprint else "",
    ]
    return "\n".join(part for part in parts if part)


def _opening(plan: Plan, fingerprint: dict[str, Any] | None) -> str:
    source = plan.anatomy.source
    is_multimodal = plan.anatomy.names_in("vision")
    remote = remote_file(plan.anatomy.model_type)
    trust = ", trust_remote_code=True" if remote else ""
    auto = "AutoModelForImageTextToText" if is_multimodal else "AutoModelForCausalLM"
    loaded: dict[str, Any] = {"auto": auto, "trust": trust}
    if plan.changes_depth:
        order = ", ".join(str(slot.source) for slot in plan.depth)
        loaded = {"blocks": len(plan.depth), "order": order, **loaded}
        return _DEEPER.format(source=source, **loaded)
    if plan.in_place:
        return (_IN_PLACE if plan.is_plain else _LEARNED).format(source=source, **loaded)
    if plan.is_routed:
        return f"{_SURGERY}\nPlain PEFT doesn't know the parts that image tokens are routed to.\n"
    builtin = source.startswith(BUILTIN) and not plan.recipe.vision
    base = f'"FOLDER/{ASSEMBLED_FOLDER}"' if plan.recipe.vision else f'"{source}"'
    peft = _PEFT.format(
        imported="from surgery import find_model\n" if builtin else "",
        base=(f'find_model("{source}").folder' if builtin else base) + trust,
        check=_check(fingerprint),
        auto=auto,
    )
    note = "Plain PEFT can't know whether the base is the right one; the `assert` does.\n"
    return f"{peft}\n{note}\nWith `surgery`:\n\n{_SURGERY}"


def _check(fingerprint: dict[str, Any] | None) -> str:
    probe = (fingerprint or {}).get("probe")
    if not probe:
        return ""
    name, values = probe["tensor"], probe["values"]
    start = f'base.get_parameter("{name}").flatten()[:{len(values)}].tolist()'
    return f"assert {start} == {values}  {RIGHT_BASE}\n"
