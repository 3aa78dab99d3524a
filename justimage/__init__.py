"""justimage: diffusion transformers directly on raw arrays. JiT, "Just image Transformers" (arXiv 2511.13720)."""

__version__ = "0.1.0"

from justimage.data.sources import DataOptions as DataOptions
from justimage.data.sources import open_source as open_source
from justimage.data.spec import DataSpec as DataSpec
from justimage.denoiser import Denoiser as Denoiser
from justimage.networks.jit import JiT as JiT
from justimage.networks.jit import JiTConfig as JiTConfig
from justimage.process import LogitNormal as LogitNormal
from justimage.process import Prediction as Prediction
from justimage.process import denoising_loss as denoising_loss
from justimage.process import diffuse as diffuse
from justimage.samplers import Sampling as Sampling
from justimage.samplers import guided as guided
from justimage.samplers import integrate as integrate
from justimage.sampling.fields import to_xarray as to_xarray
from justimage.weights.load import load as load
from justimage.weights.load import prepare as prepare
