"""Batches through pinned memory, on a pretended device: what is copied, on which stream, and what waits for what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import stand_in_cuda as stand_in
import torch

import dlmt_fast as dlmt
from dlmt_fast.errors import BackendError, InputShapeError, InputTypeError, ParameterError
from dlmt_fast.pinned import encrypt_batches

SHAPE = (3, 6, 5)


class Labelled(NamedTuple):
    images: Any
    target: Any
    name: str


class Streams:
    """torch's streams as numbers: 1000 is the caller's, 7 the second one; and what happened, in order."""

    def __init__(self, patch: pytest.MonkeyPatch, gpu: Any) -> None:
        self.log: list[str] = []
        self.gpu = gpu
        streams = self

        class Stream:
            def __init__(self, device: Any = None, number: int = 7) -> None:
                self.cuda_stream = number

            def wait_event(self, event: Any) -> None:
                streams.log.append(f"{self.cuda_stream} waits for batch {event.number}")

        class Event:
            count = 0

            def record(self, stream: Stream) -> None:
                self.number = Event.count
                Event.count += 1
                streams.log.append(f"batch {self.number} begun on {stream.cuda_stream}")

        @contextmanager
        def stream(chosen: Stream) -> Iterator[None]:
            before, gpu.streams[0] = gpu.streams[0], chosen.cuda_stream
            yield
            gpu.streams[0] = before

        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "stream", stream)
        patch.setattr(torch.cuda, "current_stream", lambda device: Stream(number=gpu.streams[0]))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    mode = stand_in.install_torch(monkeypatch, stand_in.install(monkeypatch))
    with mode:
        yield mode


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch, gpu: Any) -> Streams:
    return Streams(monkeypatch, gpu)


def pixels(seed: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def plan_of(key: dlmt.Key, **options: Any) -> dlmt.Plan:
    return dlmt.DLMT().plan(key, SHAPE, **{"normalize": "range", "dtype": "float32", **options})


def check(gpu: Any, got: torch.Tensor, images: np.ndarray, plan: dlmt.Plan) -> None:
    assert got.is_cuda
    np.testing.assert_array_equal(gpu.off(got).numpy(), dlmt.encrypt(images, plan, backend="reference"))


@pytest.mark.parametrize("ahead", [1, 3, 9])
def test_batches_come_transformed_in_their_order(ahead: int, key: dlmt.Key, gpu: Any, streams: Streams) -> None:
    plan = plan_of(key)
    given: list[Any] = [
        pixels(0),
        (torch.from_numpy(pixels(1)), torch.tensor([1, 2, 3, 4])),
        [pixels(2)[::-1], np.array([5, 6, 7, 8])],
        Labelled(pixels(3), torch.tensor([9.5]), "a name"),
        (pixels(4, 0),),
    ]
    done = list(encrypt_batches(given, plan, ahead=ahead))
    assert [type(batch) for batch in done] == [torch.Tensor, tuple, list, Labelled, tuple]
    for batch, source in zip(done, given, strict=True):
        images = source if isinstance(source, np.ndarray) else source[0]
        check(gpu, batch if isinstance(source, np.ndarray) else batch[0], np.asarray(images), plan)
    assert gpu.off(done[1][1]).tolist() == [1, 2, 3, 4]
    assert gpu.off(done[2][1]).tolist() == [5, 6, 7, 8]
    assert done[2][1].is_cuda
    assert done[3].name == "a name"
    kernels = [call for call in gpu.module.calls if call.name == "affine"]
    assert {call.stream for call in kernels} == {7}
    assert {call.stream for call in gpu.module.calls if call.name == "record_stream"} == {1000}


def test_the_next_batch_is_under_way_before_one_is_handed_out(key: dlmt.Key, gpu: Any, streams: Streams) -> None:
    fed = encrypt_batches((pixels(i) for i in range(4)), plan_of(key), ahead=1)
    assert streams.log == []
    next(fed)
    assert streams.log == ["batch 0 begun on 7", "batch 1 begun on 7", "1000 waits for batch 0"]
    next(fed)
    assert streams.log[3:] == ["batch 2 begun on 7", "1000 waits for batch 1"]
    gpu.streams[0] = 1234  # the caller may change streams between batches
    next(fed)
    assert streams.log[5:] == ["batch 3 begun on 7", "1234 waits for batch 2"]


def test_every_tensor_is_recorded_on_the_callers_stream(key: dlmt.Key, gpu: Any, streams: Streams) -> None:
    ((images, target),) = encrypt_batches([(pixels(0), np.arange(4))], plan_of(key))
    recorded = [call.images for call in gpu.module.calls if call.name == "record_stream"]
    assert recorded == [images.data_ptr(), target.data_ptr()]


def test_pinned_memory_is_used_as_it_is(
    key: dlmt.Key, gpu: Any, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[int] = []
    gpu.pinned = pinned
    tensor = torch.from_numpy(pixels(0))
    first = list(encrypt_batches([tensor], plan_of(key)))
    assert len(pinned) == 1
    pinned.append(tensor.data_ptr())
    second = list(encrypt_batches([tensor], plan_of(key)))
    assert len(pinned) == 2
    assert torch.equal(gpu.off(first[0]), gpu.off(second[0]))


def test_an_exception_comes_after_the_batches_before_it(key: dlmt.Key, gpu: Any, streams: Streams) -> None:
    class Gone(Exception):
        pass

    def source() -> Iterator[np.ndarray]:
        yield pixels(0)
        yield pixels(1)
        raise Gone

    fed = encrypt_batches(source(), plan_of(key), ahead=5)
    assert next(fed).is_cuda
    assert next(fed).is_cuda
    with pytest.raises(Gone):
        next(fed)
    with pytest.raises(StopIteration):
        next(fed)


@pytest.mark.parametrize(
    ("batch", "error", "text"),
    [
        (pixels(0).astype(np.float32), InputTypeError, "must have dtype uint8"),
        (pixels(0)[:, :, :5], InputShapeError, "do not fit"),
        ([], InputTypeError, "a batch is empty"),
        (("a name", pixels(0)), InputTypeError, "got builtins.str"),
        (None, InputTypeError, "images in main memory"),
    ],
)
def test_a_batch_that_will_not_do(
    batch: Any, error: type[Exception], text: str, key: dlmt.Key, gpu: Any, streams: Streams
) -> None:
    fed = encrypt_batches([pixels(0), batch], plan_of(key))
    assert next(fed).is_cuda
    with pytest.raises(error, match=text):
        next(fed)


def test_a_transform_instead_of_a_plan(key: dlmt.Key, gpu: Any, streams: Streams) -> None:
    from dlmt_fast.transforms import Encrypt

    transform = Encrypt(key, dlmt.DLMT())
    (y,) = encrypt_batches([pixels(0)], transform)
    check(gpu, y, pixels(0), plan_of(key))


def test_arguments_are_refused_at_once(key: dlmt.Key, gpu: Any, streams: Streams) -> None:
    for ahead in (0, -1, 1.5, True):
        with pytest.raises(ParameterError, match="ahead must be"):
            encrypt_batches([], plan_of(key), ahead=ahead)  # type: ignore[arg-type]
    gpu.module.state = "no device visible"
    with pytest.raises(BackendError, match="no device visible"):
        encrypt_batches([], plan_of(key))
