"""torchvision v2 transforms that raise where nothing was transformed.

torchvision's own base class passes through what it does not know, and transforms only the first pure tensor of a
sample. Here every image of the sample is transformed, an unknown image type raises, and so does a sample without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .checking import Checker, Report
from .direct import torch_looks_on
from .errors import InputTypeError, ParameterError, missing, refuse_export
from .functional import decrypt, encrypt
from .hidden import is_array_of_images, is_image_file
from .keys import Key, SecretHolder, export_is_allowed
from .plans import Plans
from .schemes import DLMT, Plan
from .schemes.plan import DTypeLike, Scalars

try:
    import PIL.Image
    import torch
    from torch.utils._pytree import tree_flatten, tree_unflatten
    from torchvision import tv_tensors
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as F

    from . import traced
except ImportError as error:
    raise missing(error.name or "torchvision", "dlmt_fast.transforms", "torch") from error

_PIL_MODES = ("L", "RGB")


class _KeyTransform(SecretHolder, v2.Transform):  # type: ignore[misc]
    """What both directions share: finding the images of a sample, and one cached plan per image shape."""

    def __init__(
        self,
        key: Key,
        scheme: DLMT,
        normalize: str = "range",
        dtype: DTypeLike = None,
        mean: Scalars = None,
        std: Scalars = None,
        transform_inputs: Sequence[int] | Callable[[list[Any]], list[bool]] | None = None,
    ) -> None:
        super().__init__()
        self._plans = Plans(key, scheme, normalize, dtype, mean, std)
        self._selected = _checked_choice(transform_inputs)
        self._handle = traced.register(self)

    def forward(self, *inputs: Any) -> Any:
        """Transform every image of the sample; boxes, masks, labels and other dtypes pass."""
        sample = inputs[0] if len(inputs) == 1 else inputs
        leaves, structure = tree_flatten(sample)
        selected = self._select(leaves)
        if not any(selected):
            kinds = sorted({type(leaf).__name__ for leaf in leaves})
            raise InputTypeError(
                f"{type(self).__name__} found no image in the sample (it holds {kinds}), so nothing would be "
                "transformed. Images are tv_tensors.Image, PIL images in mode L or RGB, and pure tensors of dtype "
                f"{self._expected()} with 3 or 4 axes and 1 or 3 channels; transform_inputs= names others"
            )
        done = [self._apply(leaf) if chosen else leaf for leaf, chosen in zip(leaves, selected, strict=True)]
        return tree_unflatten(done, structure)

    def _expected(self) -> str:
        raise NotImplementedError

    def _on_host(self) -> bool:
        """Whether the host takes part in every call, on a GPU too."""
        raise NotImplementedError

    def _call(self, tensor: torch.Tensor, plan: Plan, out: torch.Tensor | None) -> Any:
        raise NotImplementedError

    @property
    def result_dtype(self) -> torch.dtype:
        """Of the transformed images."""
        raise NotImplementedError

    def transform_into(self, images: torch.Tensor, out: torch.Tensor) -> None:
        """What the operator `dlmt::transform` runs where torch traced the call: (C, H, W) or (N, C, H, W)."""
        self._call(images, self._plans[tuple(images.shape[-3:])], out)

    def _select(self, leaves: list[Any]) -> list[bool]:
        if self._selected is None:
            return [self._is_image(leaf) for leaf in leaves]
        if callable(self._selected):
            chosen = list(self._selected(leaves))
            if len(chosen) != len(leaves):
                raise ParameterError(f"transform_inputs gave {len(chosen)} answers for {len(leaves)} inputs")
            return chosen
        for index in self._selected:
            if index >= len(leaves):
                raise ParameterError(f"transform_inputs has the index {index}, but the sample has {len(leaves)} inputs")
        return [i in self._selected for i in range(len(leaves))]

    def _is_image(self, leaf: Any) -> bool:
        if isinstance(
            leaf, (tv_tensors.Image, tv_tensors.Video, PIL.Image.Image)
        ):  # `_apply` refuses what it cannot do
            return True
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, tv_tensors.TVTensor):
            return False
        if leaf.ndim not in (3, 4) or leaf.shape[-3] not in (1, 3):
            return False
        return bool(leaf.dtype == getattr(torch, self._expected()))

    def _apply(self, image: Any) -> Any:
        if isinstance(image, PIL.Image.Image):
            if image.mode not in _PIL_MODES:
                raise InputTypeError(
                    f'PIL images must be in mode L or RGB, got {image.mode!r}; convert with image.convert("RGB")'
                )
            tensor = F.pil_to_tensor(image)
        elif isinstance(image, torch.Tensor) and not isinstance(image, tv_tensors.Video):
            tensor = image.as_subclass(torch.Tensor) if isinstance(image, tv_tensors.TVTensor) else image
        else:
            raise InputTypeError(f"images must be tv_tensors.Image, PIL images or tensors, got {type(image).__name__}")
        if tensor.ndim not in (3, 4):
            raise InputTypeError(f"images must have 3 or 4 axes, (C, H, W) or (N, C, H, W), got {tuple(tensor.shape)}")
        if torch_looks_on(tensor):
            result = traced.transform(tensor, self._expected(), self._handle, self._on_host())
        else:
            result = self._call(tensor, self._plans[tuple(tensor.shape[-3:])], None)
        return tv_tensors.Image(result) if isinstance(image, (tv_tensors.TVTensor, PIL.Image.Image)) else result

    def extra_repr(self) -> str:
        return repr(self._plans)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not export_is_allowed():
            raise refuse_export(type(self).__name__)
        return object.__reduce_ex__(self, protocol)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._handle = traced.register(self)


def _refuse_hidden_image(leaf: Any) -> None:
    """Raise for what holds an image in a form that would be left as it is."""
    if is_image_file(leaf):
        raise InputTypeError("the sample holds an encoded image, which would be left as it is; decode it first")
    if is_array_of_images(leaf):
        raise InputTypeError(
            f"the sample holds a NumPy image, uint8 {leaf.shape}, which would be left as it is; make it a tensor with "
            "v2.ToImage(), or name the images with transform_inputs="
        )
    if not isinstance(leaf, torch.Tensor) or isinstance(leaf, tv_tensors.TVTensor):
        return
    if leaf.dtype == torch.uint8 and leaf.ndim in (3, 4) and leaf.shape[-1] in (1, 3):
        raise InputTypeError(
            f"the sample holds a uint8 tensor {tuple(leaf.shape)}, channels last, which would be left as it is; "
            "permute it to (C, H, W), wrap it as tv_tensors.Mask, or name the images with transform_inputs="
        )


def _checked_choice(
    choice: Sequence[int] | Callable[[list[Any]], list[bool]] | None,
) -> tuple[int, ...] | Callable[[list[Any]], list[bool]] | None:
    """`transform_inputs`; a negative index or a list of booleans would leave an image as it is without a word."""
    if choice is None or callable(choice):
        return choice
    if not isinstance(choice, Sequence) or any(type(index) is not int or index < 0 for index in choice):
        raise ParameterError(
            f"transform_inputs must be indices from 0 into the flattened sample, or a function; got {choice!r}"
        )
    return tuple(choice)


class Encrypt(_KeyTransform):
    """Transform every image of a sample with a key.

    Args:
        key: the secret.
        scheme: for example `DLMT("mat_mmt")`.
        normalize: "range" (default), "minmax", "minmax_channel" or "none".
        dtype: of the output; None means float32 in 0..1, or int32 for "none".
        mean, std: as torchvision's Normalize, for float outputs.
        transform_inputs: which inputs are images, where the rules below do not serve: indices into the flattened
            sample, or a function from the flattened list to booleans.
        check: compare this share of the calls with the NumPy reference while training goes on (0.01), or "all" of
            them; None does not. Over DataLoader's workers too: see `checking.Checker`.
        check_seed: chooses the calls that are compared.
        on_difference: "raise" a `CheckError` at the next call or in `close_check`, or "log" it.

    Images are tv_tensors.Image, PIL images in mode L or RGB, and pure uint8 tensors of 3 or 4 axes with 1 or 3
    channels. PIL images come back as tv_tensors.Image.

    Raises:
        InputTypeError: a sample without an image, a PIL image in another mode, a tv_tensors.Video, or an image in a
            form that would be left as it is: uint8 arrays, uint8 tensors with channels last, encoded files.
        CheckError: with `check`, where an earlier call gave another value than the reference.
    """

    def __init__(
        self,
        key: Key,
        scheme: DLMT,
        normalize: str = "range",
        dtype: DTypeLike = None,
        mean: Scalars = None,
        std: Scalars = None,
        transform_inputs: Sequence[int] | Callable[[list[Any]], list[bool]] | None = None,
        check: float | str | None = None,
        check_seed: int = 0,
        on_difference: str = "raise",
    ) -> None:
        super().__init__(key, scheme, normalize, dtype, mean, std, transform_inputs)
        self._checker = None if check is None else Checker(check, check_seed, on_difference)

    def check_report(self) -> Report:
        """What was compared so far, in this process and in its workers.

        Raises:
            ParameterError: it was made without `check`.
        """
        return self._checked().report()

    def close_check(self) -> Report:
        """End the check: wait for what is in line, log the report, and give it.

        Raises:
            CheckError: a value differed, in this process or in a worker, and `on_difference` is "raise".
            ParameterError: it was made without `check`.
        """
        return self._checked().close()

    def _checked(self) -> Checker:
        if self._checker is None:
            raise ParameterError("nothing is checked: make it with check=0.01 (a share of the calls) or check='all'")
        return self._checker

    def _expected(self) -> str:
        return "uint8"

    @property
    def result_dtype(self) -> torch.dtype:
        """Of the transformed images."""
        dtype: torch.dtype = getattr(torch, self._plans.dtype)
        return dtype

    def _select(self, leaves: list[Any]) -> list[bool]:
        selected = super()._select(leaves)
        if self._selected is None:
            for leaf, chosen in zip(leaves, selected, strict=True):
                if not chosen:
                    _refuse_hidden_image(leaf)
        return selected

    def _on_host(self) -> bool:
        return self._checker is not None

    def _call(self, tensor: torch.Tensor, plan: Plan, out: torch.Tensor | None) -> Any:
        if self._checker is None:
            return encrypt(tensor, plan, out)
        end = self._checker.begin(tensor, plan)
        result = encrypt(tensor, plan, out)
        if end is not None:
            end(result, None)
        return result

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", check={self._checker.share!r}" if self._checker is not None else "")


class Decrypt(_KeyTransform):
    """The inverse of `Encrypt` with the same arguments, for "none" and "range": uint8 images.

    Raises:
        ParameterError: min-max, whose inverse needs each image's bounds: use `dlmt_fast.decrypt`.
        DecryptError: values that this key cannot give.
    """

    def __init__(self, key: Key, scheme: DLMT, normalize: str = "range", *args: Any, **options: Any) -> None:
        if normalize.startswith("minmax"):
            raise ParameterError(
                f'normalize="{normalize}" needs each image\'s bounds to decrypt; use dlmt_fast.decrypt(y, plan, bounds)'
            )
        super().__init__(key, scheme, normalize, *args, **options)

    def _expected(self) -> str:
        return self._plans.dtype

    @property
    def result_dtype(self) -> torch.dtype:
        """Of the recovered images."""
        return torch.uint8

    def _on_host(self) -> bool:
        return True  # it asks the device whether all values could be decrypted

    def _call(self, tensor: torch.Tensor, plan: Plan, out: torch.Tensor | None) -> Any:
        return decrypt(tensor, plan, out=out)


__all__ = ["Decrypt", "Encrypt"]
