"""The PaCa-ViT family in PyTorch, usable on its own: `from export.paca import create; model =
create("pacavit_tiny_p2cconv_100_0")`."""

from .config import VARIANTS, PaCaConfig, StageConfig, variant
from .model import Features, PaCaViT, create

__all__ = ["VARIANTS", "Features", "PaCaConfig", "PaCaViT", "StageConfig", "create", "variant"]
