"""Image encoders: pixels ``[N, 3, H, W]`` to features ``[N, T, width]`` on a ``grid`` of tokens."""

from rebus.models.encoders import conv_vit, efficientnet, vit

__all__ = ["conv_vit", "efficientnet", "vit"]
