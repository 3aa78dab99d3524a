"""Resolution and scale: Tables 5, 6 and 12 of arXiv 2511.13720."""

from justimage.reproductions.family import Axis, Family, Part, Scale, ScaleName, Settings
from justimage.reproductions.pictures import Lines, Samples
from justimage.reproductions.setups import SETUPS, sized
from justimage.reproductions.spaces import FD
from justimage.reproductions.verdict import Of, Statement
from justimage.runs.recipes import IMAGENET

# Times the smallest size, whose patch and noise grow with it: label -> settings.
GROWING: dict[ScaleName, dict[str, Settings]] = {
    "laptop": {f"x{k}": sized(28 * k, 14 * k, 28) for k in (1, 2, 4, 8, 16)},
    "gpu": {f"x{k}": sized(64 * k, 8 * k, 256) for k in (1, 2, 4)},
    "paper": {f"x{k}": sized(256 * k, 16 * k, 256) for k in (1, 2, 4)},
}
RESOLUTION = Family(
    name="resolution",
    paper="Table 5",
    claim="With a patch that grows with the image, so that the number of tokens stays the same, and noise in "
    "proportion, quality holds from 256 to 1024 px at a cost that hardly rises.",
    how="Digits of 28 px, and the same enlarged to 56, 112, 224 and 448 px: four tokens, of 196 to 50,176 numbers, "
    "and a network 96 wide with a bottleneck of 32. Enlarged digits have no more detail; photographs do. All are "
    "judged at 28 px.",
    number="fd",
    meaning=FD,
    scales={scale: Scale(SETUPS[scale], (Part("resolution", (Axis("size", GROWING[scale]),)),)) for scale in SETUPS},
    statements=(
        Statement(
            "x2 and x4 are at most a factor of 1.25 worse than x1",
            Of("resolution", {"size": ("x2", "x4")}),
            Of("resolution", {"size": "x1"}),
            1 / 1.25,
        ),
        Statement(
            "All sizes are at most a factor of 2 worse than x1",
            Of("resolution"),
            Of("resolution", {"size": "x1"}),
            1 / 2,
        ),
    ),
    theirs={"resolution": {("x1",): 4.37, ("x2",): 4.64, ("x4",): 4.82}},
    pictures=(Samples("samples", "resolution"), Lines("resolution", "resolution", "size", logarithmic=False)),
    shown=("agreement", "parameters_M", "multiply_adds_M"),
)

_SHAPE = ("depth", "width", "heads")
SMALL_TO_LARGE: dict[ScaleName, dict[str, tuple[int, int, int]]] = {
    "laptop": {"1st": (2, 48, 2), "2nd": (4, 96, 4), "3rd": (6, 192, 6)},
    "gpu": {"1st": (6, 192, 3), "2nd": (12, 384, 6), "3rd": (12, 768, 12)},
    "paper": {"1st": (12, 768, 12), "2nd": (24, 1024, 16), "3rd": (32, 1280, 16), "4th": (40, 1664, 16)},
}
_AROUND: dict[ScaleName, dict[str, Settings]] = {  # what else differs between the sizes: Table 9
    "laptop": {},
    "gpu": {},
    "paper": {
        "2nd": {"recipe.network.context_start": 8},
        "3rd": {
            "recipe.network.context_start": 10,
            "recipe.network.bottleneck": 256,
            "recipe.network.dropout": 0.2,
        },
        "4th": {
            "recipe.network.context_start": 10,
            "recipe.network.bottleneck": 256,
            "recipe.network.dropout": 0.2,
            "recipe.training.checkpoint": True,
        },
    },
}


def models(scale: ScaleName) -> dict[str, Settings]:
    """The networks of a scale, from small to large."""
    return {
        name: {
            **{f"recipe.network.{field}": value for field, value in zip(_SHAPE, shape, strict=True)},
            **_AROUND[scale].get(name, {}),
        }
        for name, shape in SMALL_TO_LARGE[scale].items()
    }


def _scaling(scale: ScaleName) -> Scale:
    sizes = {label: GROWING[scale][label] for label in ("x1", "x2")}
    return Scale(SETUPS[scale], (Part("scaling", (Axis("network", models(scale)), Axis("size", sizes))),))


SCALING = Family(
    name="scaling",
    paper="Table 6",
    claim="Wider and deeper networks draw better samples, at both resolutions, and the gap between these shrinks.",
    how="Networks of 2 blocks 48 wide, 4 blocks 96 wide and 6 blocks 192 wide, on digits of 28 px and enlarged to 56 "
    "px, in four tokens; all are judged at 28 px.",
    number="fd",
    meaning=FD,
    scales={scale: _scaling(scale) for scale in SETUPS},
    statements=(
        Statement(
            "The second network is better than the first, at the same size of image",
            Of("scaling", {"network": "2nd"}),
            Of("scaling", {"network": "1st"}),
            matched=("size",),
        ),
        Statement(
            "The third network is better than the second, at the same size of image",
            Of("scaling", {"network": "3rd"}),
            Of("scaling", {"network": "2nd"}),
            matched=("size",),
        ),
        Statement(
            "The gap between x2 and x1, as a ratio, is smaller for the third network than for the first",
            Of("scaling", {"network": "3rd", "size": "x2"}),
            Of("scaling", {"network": "1st", "size": "x2"}),
            relative={"size": "x1"},
        ),
        Statement(
            "At the third network x2 is at most a factor of 1.25 worse than x1",
            Of("scaling", {"network": "3rd", "size": "x2"}),
            Of("scaling", {"network": "3rd", "size": "x1"}),
            1 / 1.25,
        ),
    ),
    theirs={
        "scaling": {
            ("1st", "x1"): "4.37 (B)",
            ("1st", "x2"): "4.64",
            ("2nd", "x1"): "2.79 (L)",
            ("2nd", "x2"): "3.06",
            ("3rd", "x1"): "2.29 (H)",
            ("3rd", "x2"): "2.51",
            ("4th", "x1"): "2.15 (G)",
            ("4th", "x2"): "2.11",
        }
    },
    pictures=(Lines("scaling", "scaling", "network"), Samples("samples", "scaling")),
    shown=("parameters_M", "multiply_adds_M"),
)

# The sizes of both models, and what samples are judged at: (settings of the small one, of the large one, lengths).
CROSSED: dict[ScaleName, tuple[Settings, Settings, tuple[int, int]]] = {
    "laptop": (sized(14, 7, 28), sized(28, 14, 28), (14, 28)),  # enlarged digits would have nothing to lose
    "gpu": (sized(64, 8, 256), sized(128, 16, 256), (64, 128)),
    "paper": (sized(256, 16, 256), sized(512, 32, 256), (256, 512)),
}
# Table 12 is of G, whose training was stopped at about 320 epochs.
_TRAINED: dict[ScaleName, Settings] = {
    "laptop": {},
    "gpu": {},
    "paper": {**models("paper")["4th"], "recipe.training.duration_nimg": 320 * IMAGENET},
}


def _crossed(scale: ScaleName) -> Scale:
    small, large, lengths = CROSSED[scale]
    sizes = {
        "small": {**small, "measure.also_at": lengths, "measure.seen_at": lengths[0]},
        "large": {**large, "measure.also_at": lengths, "measure.seen_at": lengths[1]},
    }
    return Scale(SETUPS[scale].having(_TRAINED[scale]), (Part("sizes", (Axis("model of size", sizes),)),))


CROSS_RESOLUTION = Family(
    name="cross-resolution",
    paper="Table 12 and appendix B.4",
    claim="A model of twice the size, its samples reduced, is as good as the model of the size itself; enlarging the "
    "samples of the smaller one loses.",
    how="Digits reduced to 14 px in patches of 7 x 7, and of 28 px in patches of 14 x 14. Samples of both are "
    "resized to both sizes, and judged there by features that were fitted at that size.",
    number="fd_small",
    meaning="the Frechet distance of samples at the small size; `fd_large` at the large one.",
    scales={scale: _crossed(scale) for scale in SETUPS},
    statements=(
        Statement(
            "Reduced samples of the large model are at most a factor of 1.25 worse than the small model's",
            Of("sizes", {"model of size": "large"}),
            Of("sizes", {"model of size": "small"}),
            1 / 1.25,
        ),
        Statement(
            "Enlarged samples of the small model are worse than the large model's",
            Of("sizes", {"model of size": "large"}, "fd_large"),
            Of("sizes", {"model of size": "small"}, "fd_large"),
        ),
    ),
    theirs={"sizes": {("small",): "1.82 small, 2.45 large", ("large",): "1.84 small, 1.78 large"}},
    pictures=(Samples("samples", "sizes"),),
    shown=("fd_large",),
)
