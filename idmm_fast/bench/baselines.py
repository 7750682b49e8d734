"""The baselines of the loader's benchmark, each making IDMM's six crops at 112 pixels, uint8.

A maker takes an opened beton of JPEGs, the same images as bytes, and the number of threads; it returns a System whose
work is all crops of all images, once. One that is not installed raises ImportError. None of them does CutMix. What
else a baseline lacks is said beside it.
"""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..beton.read import Beton
from ..loader import IDMM_VIEWS
from .rounds import System

SIZE = 112  # pixels


def _over(data: list[bytes], workers: int, one: Callable[[bytes], Any]) -> System:
    """`one` of every image, over a pool of threads."""

    def everything() -> None:
        if workers == 1:
            for source in data:
                one(source)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(one, data))

    return System(everything, len(data))


class _Blur:
    """PIL's Gaussian blur with a random sigma."""

    def __call__(self, image: Image.Image) -> Image.Image:
        from PIL import ImageFilter

        return image.filter(ImageFilter.GaussianBlur(radius=float(torch.empty(1).uniform_(0.1, 2.0))))


def official(beton: Beton, data: list[bytes], workers: int) -> System:
    """The reference implementation: PIL and torchvision, each image decoded once."""
    from torchvision import transforms

    def crop(scale: tuple[float, float]) -> Any:
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(SIZE, scale=scale),
                transforms.RandomHorizontalFlip(),
                transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([_Blur()], p=0.5),
                transforms.PILToTensor(),
            ]
        )

    crops = [crop(group.scale) for group in IDMM_VIEWS for _ in range(group.count)]

    def one(source: bytes) -> list:
        image = Image.open(io.BytesIO(source)).convert("RGB")
        return [transform(image) for transform in crops]

    return _over(data, workers, one)


def albumentations(beton: Beton, data: list[bytes], workers: int) -> System:
    """Albumentations 2 on OpenCV, each image decoded once; its bilinear resize is not antialiased."""
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)

    def crop(scale: tuple[float, float]) -> Any:
        return A.Compose(
            [
                A.RandomResizedCrop((SIZE, SIZE), scale=scale, ratio=(3 / 4, 4 / 3)),
                A.HorizontalFlip(p=0.5),
                A.ColorJitter((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2), p=0.8),
                A.ToGray(p=0.2),
                A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.5),
            ]
        )

    crops = [crop(group.scale) for group in IDMM_VIEWS for _ in range(group.count)]

    def one(source: bytes) -> list:
        decoded: Any = cv2.imdecode(np.frombuffer(source, np.uint8), cv2.IMREAD_COLOR)
        image = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
        return [transform(image=image)["image"] for transform in crops]

    return _over(data, workers, one)


def dali(beton: Beton, data: list[bytes], workers: int) -> System:
    """NVIDIA DALI's CPU pipeline, each image decoded once; a colour operation or blur that is not sampled is not run.

    It does not work ahead: what it prepared after its turn would slow the next system.
    """
    from nvidia.dali import pipeline_def

    batch = min(64, len(data))
    images = [np.frombuffer(d, np.uint8) for d in data]

    def endless() -> Iterator[list[np.ndarray]]:
        k = 0
        while True:
            yield [images[(k + i) % len(images)] for i in range(batch)]
            k += batch

    built = pipeline_def(
        batch_size=batch,
        num_threads=workers,
        device_id=None,
        enable_conditionals=True,
        exec_async=False,
        exec_pipelined=False,
        prefetch_queue_depth=1,
    )(_dali_graph(endless()))()
    built.build()

    def everything() -> None:
        for _ in range(len(images) // batch):
            built.run()

    return System(everything, len(images) // batch * batch)


def _dali_graph(batches: Iterator[list[np.ndarray]]) -> Callable[[], tuple]:
    """The function that DALI makes a pipeline of. DALI rewrites it for its conditions, so imports stay outside."""
    from nvidia.dali import fn, types

    def crops_of_images() -> tuple:
        decoded = fn.decoders.image(fn.external_source(source=batches, batch=True), device="cpu")
        crops = []
        for group in IDMM_VIEWS:
            for _ in range(group.count):
                x = fn.random_resized_crop(decoded, size=(SIZE, SIZE), random_area=group.scale, antialias=True)
                x = fn.flip(x, horizontal=fn.random.coin_flip(probability=0.5))
                if fn.random.coin_flip(probability=0.8, dtype=types.BOOL):
                    x = fn.color_twist(
                        x,
                        brightness=fn.random.uniform(range=(0.2, 1.8)),
                        contrast=fn.random.uniform(range=(0.2, 1.8)),
                        saturation=fn.random.uniform(range=(0.2, 1.8)),
                        hue=fn.random.uniform(range=(-72.0, 72.0)),
                    )
                else:
                    x = x  # DALI needs both branches
                if fn.random.coin_flip(probability=0.2, dtype=types.BOOL):
                    x = fn.saturation(x, saturation=0.0)
                else:
                    x = x
                if fn.random.coin_flip(probability=0.5, dtype=types.BOOL):
                    x = fn.gaussian_blur(x, sigma=fn.random.uniform(range=(0.1, 2.0)))
                else:
                    x = x
                crops.append(x)
        return tuple(crops)

    return crops_of_images


def ffcv(beton: Beton, data: list[bytes], workers: int) -> System:
    """Stock FFCV, one decoder per crop; it has neither hue nor grayscale nor blur, and resizes by area."""
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline import PipelineSpec
    from ffcv.transforms import RandomBrightness, RandomContrast, RandomHorizontalFlip, RandomSaturation, ToTensor

    pipelines = {"image": None, "label": None}
    for group in IDMM_VIEWS:
        for _ in range(group.count):
            decoder = RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=group.scale)
            steps = [
                RandomHorizontalFlip(),
                RandomBrightness(0.8, 0.8),
                RandomContrast(0.8, 0.8),
                RandomSaturation(0.8, 0.8),
                ToTensor(),
            ]
            pipelines[f"crop{len(pipelines)}"] = PipelineSpec("image", decoder=decoder, transforms=steps)
    loader = Loader(
        str(beton.path),
        batch_size=64,
        num_workers=workers,
        order=OrderOption.RANDOM,
        seed=0,
        drop_last=False,
        indices=np.arange(len(data)),
        pipelines=pipelines,
    )

    def everything() -> None:
        for _ in loader:
            pass

    return System(everything, len(data))


BASELINES = {"official": official, "ffcv": ffcv, "albumentations": albumentations, "dali": dali}
