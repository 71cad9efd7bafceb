"""torchvision v2 transforms that raise where nothing was transformed.

torchvision's own base class passes through what it does not know, and transforms only the first pure tensor of a
sample. Here every image of the sample is transformed, an unknown image type raises, and so does a sample without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any

from .checking import Checker, Report
from .errors import InputTypeError, ParameterError, missing, refuse_export
from .functional import decrypt, encrypt
from .keys import Key, SecretHolder, export_is_allowed
from .schemes import DLMT, Plan
from .schemes.plan import DTypeLike, Scalars

try:
    import PIL.Image
    import torch
    from torch.utils._pytree import tree_flatten, tree_unflatten
    from torchvision import tv_tensors
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as F
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
        if normalize != "none" and dtype is None:
            dtype = "float32"
        self._key, self._scheme = key, scheme
        self._options: dict[str, Any] = {"normalize": normalize, "dtype": dtype, "mean": mean, "std": std}
        self._selected = _checked_choice(transform_inputs)
        self._plans: dict[tuple[int, ...], Plan] = {}
        channels = max(len(v) if isinstance(v, Sized) and getattr(v, "ndim", 1) != 0 else 1 for v in (mean, std))
        self._dtype = self._new_plan((channels, 1, 1)).dtype  # refuses what can never work before an image comes

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

    def _call(self, tensor: torch.Tensor, plan: Plan) -> Any:
        raise NotImplementedError

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
        if type(leaf) is not torch.Tensor or leaf.ndim not in (3, 4) or leaf.shape[-3] not in (1, 3):
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
            tensor = image
        else:
            raise InputTypeError(f"images must be tv_tensors.Image, PIL images or tensors, got {type(image).__name__}")
        wrapped = type(image) is not torch.Tensor
        shape = tuple(tensor.shape[-3:])
        if tensor.ndim not in (3, 4):
            raise InputTypeError(f"images must have 3 or 4 axes, (C, H, W) or (N, C, H, W), got {tuple(tensor.shape)}")
        plain = tensor.as_subclass(torch.Tensor) if isinstance(tensor, tv_tensors.TVTensor) else tensor
        result = self._call(plain, self._plan(shape))
        return tv_tensors.Image(result) if wrapped else result

    def _plan(self, shape: tuple[int, ...]) -> Plan:
        plan = self._plans.get(shape)
        if plan is None:
            plan = self._plans[shape] = self._new_plan(shape)
        return plan

    def _new_plan(self, shape: tuple[int, ...]) -> Plan:
        return self._scheme.plan(self._key, shape, **self._options)

    def extra_repr(self) -> str:
        given = [f"{name}={value!r}" for name, value in self._options.items() if value is not None]
        return ", ".join([f"key={self._key.fingerprint!r}", repr(self._scheme), *given])

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not export_is_allowed():
            raise refuse_export(type(self).__name__)
        return object.__reduce_ex__(self, protocol)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plans": {}}  # a child makes its plans anew; they are larger than the key


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
        InputTypeError: a sample without an image, a PIL image in another mode, or a tv_tensors.Video.
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

    def _call(self, tensor: torch.Tensor, plan: Plan) -> Any:
        if self._checker is None:
            return encrypt(tensor, plan)
        end = self._checker.begin(tensor, plan)
        result = encrypt(tensor, plan)
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
        return self._dtype

    def _call(self, tensor: torch.Tensor, plan: Plan) -> Any:
        return decrypt(tensor, plan)


__all__ = ["Decrypt", "Encrypt"]
