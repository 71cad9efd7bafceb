"""An Albumentations transform: NumPy images (H, W, C) in, transformed NumPy images out.

    A.Compose([A.HorizontalFlip(), Encrypt(key, scheme), A.ToTensorV2()])

Put it last, before ToTensorV2, and in no container that leaves it out by chance (OneOf, or a Compose with p below 1).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import BackendError, InputTypeError, missing
from .functional import encrypt
from .hidden import is_array_of_images
from .keys import Key, SecretHolder
from .plans import Plans
from .schemes import DLMT
from .schemes.plan import DTypeLike, Scalars

try:
    import albumentations as A
except ImportError as error:
    raise missing(error.name or "albumentations", "dlmt_fast.albumentations", None) from error

if hasattr(A.BasicTransform, "apply_in_invocation"):  # AlbumentationsX, which calls its transforms by other ways
    raise BackendError(f"dlmt_fast.albumentations knows albumentations 2.0, and {A.__version__} works otherwise")

_IMAGES = frozenset({"image", "images", "volume", "volumes"})


class Encrypt(SecretHolder, A.ImageOnlyTransform):  # type: ignore[misc]
    """Transform the images of an Albumentations sample with a key, always: it has no probability.

    Args:
        key: the secret.
        scheme: for example `DLMT("mat_mmt")`.
        normalize, dtype, mean, std: as for `dlmt_fast.transforms.Encrypt`; bfloat16 does not exist in NumPy.
        name: what stands for it where Albumentations writes a pipeline down (`A.to_dict`, `A.save`). Nothing of the key
            is written; `A.from_dict(saved, nonserializable={name: transform})` puts it back.

    Images are uint8 (H, W), (H, W, 1) or (H, W, 3) under "image", "images" (a stack or a list), "volume" or "volumes",
    and under what `additional_targets` names as one of these. They come back in the same shape, in the plan's dtype.

    Raises:
        InputTypeError: no image, one that is not uint8 or of another shape, or an image under a name that
            Albumentations was not told of, which would be left as it is.
        ParameterError: options that mean nothing.
    """

    def __init__(
        self,
        key: Key,
        scheme: DLMT,
        normalize: str = "range",
        dtype: DTypeLike = None,
        mean: Scalars = None,
        std: Scalars = None,
        name: str = "dlmt",
    ) -> None:
        super().__init__(p=1.0)
        self._plans = Plans(key, scheme, normalize, dtype, mean, std)
        self._name = name
        self._others = {"mask", "masks", "mask3d", "masks3d"}

    def __call__(self, *args: Any, force_apply: bool = False, **data: Any) -> Any:
        """The sample with every image transformed (`force_apply` changes nothing)."""
        if not any(name in self._key2func and value is not None for name, value in data.items()):
            raise InputTypeError(
                f"{type(self).__name__} found no image in the sample (it holds {sorted(data)}), so nothing would be "
                "transformed; images stand under image, images, volume or volumes, or under additional_targets="
            )
        for name, value in data.items():
            if name not in self._key2func and name not in self._others and is_array_of_images(value):
                raise InputTypeError(
                    f"{name!r} holds an image, uint8 {value.shape}, which would be left as it is; name it in "
                    f'A.Compose(..., additional_targets={{{name!r}: "image"}}), or "mask" where it is one'
                )
        if self.replay_mode:
            return self.apply_with_params({}, **data)
        return super().__call__(*args, force_apply=True, **data)

    def should_apply(self, force_apply: bool = False) -> bool:
        """Always, whatever became of `p`."""
        return True

    def update_transform_params(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """It takes none."""
        return params

    def add_targets(self, additional_targets: dict[str, str]) -> None:
        """Albumentations' `additional_targets`."""
        super().add_targets(additional_targets)
        self._others |= {name for name, like in additional_targets.items() if like not in _IMAGES}

    def apply(self, img: Any, **params: Any) -> Any:
        """One image, uint8 (H, W) or (H, W, C).

        Raises:
            InputTypeError: it is something else.
        """
        if not isinstance(img, np.ndarray) or img.ndim not in (2, 3) or (img.ndim == 3 and img.shape[2] not in (1, 3)):
            what = f"{img.dtype} {img.shape}" if isinstance(img, np.ndarray) else type(img).__name__
            raise InputTypeError(f"images must be NumPy arrays (H, W), (H, W, 1) or (H, W, 3), got {what}")
        image = img[..., None] if img.ndim == 2 else img
        result = encrypt(image, self._plans[image.shape[2], image.shape[0], image.shape[1]], layout="HWC")
        return result[..., 0] if img.ndim == 2 else result

    @classmethod
    def is_serializable(cls) -> bool:
        """Not by itself: the key stays here."""
        return False

    def to_dict_private(self) -> dict[str, Any]:
        """Its class and its name, as Albumentations' own Lambda has it."""
        return {"__class_fullname__": self.get_class_fullname(), "__name__": self._name}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._plans!r})"


__all__ = ["Encrypt"]
