"""The augmentations of a crop: one table, of which the loader's `Augment` and the section `augment` are made.

A new augmentation begins as a field here; see CONTRIBUTING.md.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from fastargs import Param
from fastargs.validation import Checker

from .types import Float, Int, Range


def _option(default: Any, checker: Checker, description: str) -> Any:
    """A field with its default, its bounds, and what the help says of it."""
    return field(default=default, metadata={"checker": checker, "description": description})


@dataclass(frozen=True)
class Augment:
    """What happens to a crop, in this order; 0 switches an augmentation off.

    The defaults are IDMM's pretraining (arXiv 2201.10728). The four colour operations of the jitter run in a random
    order.

    Raises:
        ValueError: for a value out of its bounds.
    """

    flip_prob: float = _option(0.5, Float(0, 1), "probability of a horizontal flip")
    jitter_prob: float = _option(0.8, Float(0, 1), "probability of the colour jitter")
    brightness: float = _option(0.8, Float(0, 10), "the jitter's factor is drawn from max(0, 1 - x) .. 1 + x")
    contrast: float = _option(0.8, Float(0, 10), "likewise")
    saturation: float = _option(0.8, Float(0, 10), "likewise")
    hue: float = _option(
        0.2, Float(0, 0.5), "the jitter's shift is drawn from -x .. x, as a fraction of the hue circle"
    )
    grayscale_prob: float = _option(0.2, Float(0, 1), "probability of grayscale")
    blur_prob: float = _option(0.5, Float(0, 1), "probability of a Gaussian blur")
    blur_sigma: tuple[float, float] = _option((0.1, 2.0), Range(0, 8), "the blur's sigma, in pixels, is drawn from it")
    randaugment: int = _option(0, Int(0, 2), "how many of the fifteen operations of IDMM's RandAugment follow")

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            try:
                option.metadata["checker"].check(value)
            except (TypeError, ValueError):
                wanted = option.metadata["checker"].help()
                raise ValueError(f"Augment.{option.name}: {value!r} is not {wanted}") from None
            if isinstance(value, list):  # a range, as YAML has it
                object.__setattr__(self, option.name, tuple(value))

    @classmethod
    def none(cls) -> "Augment":
        """No augmentation but the crop."""
        return cls(flip_prob=0, jitter_prob=0, grayscale_prob=0, blur_prob=0)


def augment_section(defaults: Augment) -> tuple[str, dict[str, Param]]:
    """The section `augment` of a schema, a key for each field of `Augment`."""
    params = {}
    for option in fields(Augment):
        default = getattr(defaults, option.name)
        params[option.name] = Param(
            option.metadata["checker"],
            option.metadata["description"],
            default=list(default) if isinstance(default, tuple) else default,
        )
    return "what happens to each crop, in this order; 0 switches an augmentation off", params
