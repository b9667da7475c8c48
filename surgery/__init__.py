"""Declarative architecture surgery for language models.

A recipe says what to change in a decoder, a plan says what that means for one model to the byte,
applying it gives an adapter, and verifying proves that both of its paths are what they should be.
The public names are listed in `__init__.pyi` and loaded when they are first used (SPEC 1,
https://scientific-python.org/specs/spec-0001), so that `import surgery` costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
