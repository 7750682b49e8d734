"""The systems that the loader is measured against, each making the six views of IDMM at 112 pixels, uint8.

Every maker takes (beton, data, workers): an opened beton of JPEGs, the same images as bytes, the threads to use; it
returns a function that makes all views of all images once. One that is not installed raises ImportError. None of them
does CutMix. What a system lacks it does not do, and that is said beside it.
"""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from ..loader import IDMM_VIEWS

SIZE = 112


def _over(data, workers, one):
    def everything():
        if workers == 1:
            for source in data:
                one(source)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(one, data))

    return everything


class _Blur:
    def __call__(self, image):
        from PIL import ImageFilter

        return image.filter(ImageFilter.GaussianBlur(radius=float(torch.empty(1).uniform_(0.1, 2.0))))


def official(beton, data, workers):
    """The published recipe: PIL and torchvision, decoded once an image."""
    from torchvision import transforms

    def view(scale):
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

    views = [view(v.scale) for v in IDMM_VIEWS for _ in range(v.count)]

    def one(source):
        image = Image.open(io.BytesIO(source)).convert("RGB")
        return [v(image) for v in views]

    return _over(data, workers, one)


def albumentations(beton, data, workers):
    """Albumentations 2 on OpenCV, decoded once an image; its bilinear resize is not antialiased."""
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)

    def view(scale):
        return A.Compose(
            [
                A.RandomResizedCrop((SIZE, SIZE), scale=scale, ratio=(3 / 4, 4 / 3)),
                A.HorizontalFlip(p=0.5),
                A.ColorJitter((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2), p=0.8),
                A.ToGray(p=0.2),
                A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.5),
            ]
        )

    views = [view(v.scale) for v in IDMM_VIEWS for _ in range(v.count)]

    def one(source):
        image = cv2.cvtColor(cv2.imdecode(np.frombuffer(source, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        return [v(image=image)["image"] for v in views]

    return _over(data, workers, one)


def dali(beton, data, workers):
    """NVIDIA DALI's CPU pipeline, decoded once an image; a colour operation or blur that is not drawn is not run.

    It does not work ahead: what it prepared after its turn would be taken from the time of the next system.
    """
    from nvidia.dali import fn, pipeline_def, types

    batch = min(64, len(data))
    images = [np.frombuffer(d, np.uint8) for d in data]

    @pipeline_def(
        batch_size=batch,
        num_threads=workers,
        device_id=None,
        enable_conditionals=True,
        exec_async=False,
        exec_pipelined=False,
        prefetch_queue_depth=1,
    )
    def pipeline():
        decoded = fn.decoders.image(fn.external_source(source=batches, batch=True), device="cpu")
        views = []
        for spec in IDMM_VIEWS:
            for _ in range(spec.count):
                x = fn.random_resized_crop(decoded, size=(SIZE, SIZE), random_area=spec.scale, antialias=True)
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
                    x = x  # DALI wants both branches
                if fn.random.coin_flip(probability=0.2, dtype=types.BOOL):
                    x = fn.saturation(x, saturation=0.0)
                else:
                    x = x
                if fn.random.coin_flip(probability=0.5, dtype=types.BOOL):
                    x = fn.gaussian_blur(x, sigma=fn.random.uniform(range=(0.1, 2.0)))
                else:
                    x = x
                views.append(x)
        return tuple(views)

    def endless():
        k = 0
        while True:
            yield [images[(k + i) % len(images)] for i in range(batch)]
            k += batch

    batches = endless()
    built = pipeline()
    built.build()

    def everything():
        for _ in range(len(images) // batch):
            built.run()

    everything.images = len(images) // batch * batch
    return everything


def ffcv(beton, data, workers):
    """Stock FFCV, a decoder for each view; it has neither hue nor grayscale nor blur, and resizes by area."""
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline import PipelineSpec
    from ffcv.transforms import RandomBrightness, RandomContrast, RandomHorizontalFlip, RandomSaturation, ToTensor

    pipelines = {"image": None, "label": None}
    for v in IDMM_VIEWS:
        for _ in range(v.count):
            decoder = RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=v.scale)
            steps = [
                RandomHorizontalFlip(),
                RandomBrightness(0.8, 0.8),
                RandomContrast(0.8, 0.8),
                RandomSaturation(0.8, 0.8),
                ToTensor(),
            ]
            pipelines[f"view{len(pipelines)}"] = PipelineSpec("image", decoder=decoder, transforms=steps)
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

    def everything():
        for _ in loader:
            pass

    return everything


PEERS = {"official": official, "ffcv": ffcv, "albumentations": albumentations, "dali": dali}
