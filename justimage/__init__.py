"""justimage: diffusion transformers directly on raw arrays. JiT, "Just image Transformers" (arXiv 2511.13720)."""

import lazy_loader

__version__ = "0.1.0"

# The public names stand in __init__.pyi; each is imported when it is first used (scientific Python's SPEC 1).
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
