"""Video autoencoder: pixels to latents and back."""

from .config import VideoVAEConfig
from .decoder import VideoDecoder
from .encoder import VideoEncoder
from .statistics import STATISTICS_NAMES, LatentStatistics
from .tiling import Tiling

__all__ = ["STATISTICS_NAMES", "LatentStatistics", "Tiling", "VideoDecoder", "VideoEncoder", "VideoVAEConfig"]
