"""All reproductions by name, in the paper's order."""

from justimage.reproductions.family import Family
from justimage.reproductions.guided import GUIDANCE
from justimage.reproductions.ingredients import BOTTLENECK, CLASSIFICATION_LOSS, COMPONENTS
from justimage.reproductions.sizes import CROSS_RESOLUTION, RESOLUTION, SCALING
from justimage.reproductions.spaces import LOSS_CURVES, NOISE_SHIFT, PRECONDITIONER, PREDICTION_SPACE
from justimage.reproductions.toy import TOY

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        TOY,
        PREDICTION_SPACE,
        NOISE_SHIFT,
        BOTTLENECK,
        COMPONENTS,
        RESOLUTION,
        SCALING,
        PRECONDITIONER,
        CLASSIFICATION_LOSS,
        CROSS_RESOLUTION,
        LOSS_CURVES,
        GUIDANCE,
    )
}
