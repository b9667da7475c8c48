"""The schema of one stage of training: trained tensors, data, hyperparameters."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from surgery.operations.base import Strict

Names = Annotated[tuple[str, ...], Field(strict=False)]
Scalar = bool | int | float | str
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_File = Annotated[str, Field(min_length=1)]
_Share = Annotated[float, Field(ge=0, lt=1)]


class Source(Strict):
    """One file of data."""

    file: _File
    """JSON, JSONL or plain text; relative to where the command runs."""

    weight: _Positive = 1.0
    """How often an epoch has each of its rows: 2 is twice, 0.5 is every other row."""

    images: str = ""
    """The folder that its image paths are relative to, and that they can't leave; by default the
    file's own."""


class Stage(Strict):
    """One stage of training."""

    train: Names | None = None
    """Replaces the recipe's `train` in this stage."""

    data: _File | dict[str, _File | Source] = {}
    """A file, or several by names of your own. Conversations as LLaVA or as chat messages write
    them, `text` rows, or a plain text file."""

    text_mix: _Share | None = None
    """Fraction of rows without images; by default as the weights of the files give it."""

    text_rows: Literal["shared", "text"] = "shared"
    """The path of rows without images. shared: the multimodal one, as the paper's shared base.
    text: the untouched text path, where they train nothing."""

    bad_records: Literal["error", "skip"] = "error"
    """What to do with an invalid record: stop the training, or skip it and count it."""

    length: Annotated[int, Field(ge=2)] = 2048
    """Largest length of a row in tokens; images are counted by their tokens."""

    packing: bool = False
    """Whether several records share a row of `length` tokens, without attention between them."""

    rate: _Positive = 1e-4
    """Peak learning rate of parameters that `rates` doesn't name."""

    rates: dict[str, _Positive] = {}
    """Peak learning rates by names as in `train`; of several that match, the last wins."""

    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from one block of the vision tower to the one before it
    (BEiT, arXiv 2106.08254)."""

    schedule: Literal["cosine", "linear", "constant", "polynomial", "inverse_sqrt"] = "cosine"
    """Learning-rate schedule after the warm-up."""

    warmup: Annotated[float, Field(ge=0)] = 0.0
    """Steps of linear warm-up; below 1 a fraction of all steps."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """Number of optimizer steps; by default as many as `epochs` take."""

    epochs: _Positive = 1.0
    """Number of passes over the data, where `steps` isn't given."""

    batch: Annotated[int, Field(ge=1)] = 8
    """Rows of one optimizer step, over all processes and accumulated micro-batches."""

    accumulation: Annotated[int, Field(ge=1)] = 1
    """Micro-batches of an optimizer step on each process."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Dtype of the computation. Trained weights are in fp32 in any case; frozen ones keep their
    dtype on disk with bf16 and fp16."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of matrices; vectors such as norms and biases don't decay."""

    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]],
        Field(strict=False),
    ] = (0.9, 0.999)
    """Betas of AdamW."""

    eps: _Positive = 1e-8
    """Epsilon of AdamW."""

    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""

    seed: Annotated[int, Field(ge=0)] | None = None
    """Seed of the order of rows and of dropout; by default the recipe's."""

    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between lines of the log; the first and last step and each checkpoint also have one."""

    save_every: Annotated[int, Field(ge=1)] = 500
    """Steps between checkpoints; the last two are kept."""

    trainer: dict[str, Scalar] = {}
    """Further fields of transformers' TrainingArguments, such as `optim` or
    `gradient_checkpointing`."""

    @field_validator("data", mode="before")
    @classmethod
    def _named(cls, data: object) -> object:
        """Refuse the keys of a file in place of names; each would become a separate file."""
        keys = set(data) if isinstance(data, dict) else set()
        if len(keys) > 1 and "file" in keys and keys <= Source.model_fields.keys():
            fault = "`data` has the keys of a file where a name for the file belongs"
            raise PydanticCustomError("named", "{fault}", {"fault": fault})
        return data

    @property
    def sources(self) -> Mapping[str, Source]:
        """The data files by name."""
        named = {"data": self.data} if isinstance(self.data, str) else self.data
        return {n: Source(file=s) if isinstance(s, str) else s for n, s in named.items()}
