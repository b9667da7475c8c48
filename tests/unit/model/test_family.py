"""Each file in `surgery/model/families` is of a type that exists and speaks of what exists."""

from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from surgery.model.structure import family
from surgery.model.structure.family import Family, read_family
from surgery.operations.base import known_operations

FILES = sorted(Path(family.__file__).parents[1].glob("families/*"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_file_is_of_a_known_type_and_says_something(file):
    assert file.suffix == ".yaml"
    assert file.stem in CONFIG_MAPPING
    known = read_family(file.stem)
    assert known != Family()
    assert set(known.refuse) <= set(known_operations())
    assert file.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("field", ["slow_but_exact"])
def test_options_that_files_name_are_the_configs(field):
    named = {name for file in FILES for name in read_family(file.stem).called.values()}
    assert named == {field}
    assert hasattr(CONFIG_MAPPING["bloom"](), field)


def test_type_without_a_file_is_known_by_its_structure_alone():
    assert read_family("llama") == Family()
