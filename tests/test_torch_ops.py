"""torch.compile, fake tensors, vmap and modes: the operators give what the direct call gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import dlmt_fast as dlmt
from dlmt_fast.transforms import Decrypt, Encrypt

SCHEMES = {
    "mat": dlmt.DLMT("mat"),
    "mmt": dlmt.DLMT("mmt"),
    "rise_mmt": dlmt.DLMT("rise_mmt", rise_v=300),
    "mat_mmt": dlmt.DLMT("mat_mmt"),
    "mmt_mat": dlmt.DLMT("mmt_mat"),
}
PAIRS = [
    ("none", "int32"),
    *((n, d) for n in ("range", "minmax", "minmax_channel") for d in ("uint8", "float32", "float16", "bfloat16")),
]
SHAPE = (3, 6, 5)
MEMORY = {"NCHW": "contiguous", "NHWC": "contiguous", "channels_last": "channels_last", "strided": "strided"}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


def images_for(memory: str, count: int = 4) -> tuple[torch.Tensor, str]:
    """A batch and its layout."""
    x = torch.from_numpy(np.random.default_rng(count).integers(0, 256, (count, *SHAPE), dtype=np.uint8))
    if memory == "NHWC":
        return x.permute(0, 2, 3, 1).contiguous(), "NHWC"
    if memory == "channels_last":
        return x.contiguous(memory_format=torch.channels_last), "NCHW"
    if memory == "strided":
        return x.repeat_interleave(2, 3)[..., ::2], "NCHW"
    return x, "NCHW"


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the bit."""
    as_bytes = [t.contiguous().view(torch.uint8) if t.dtype != torch.uint8 else t for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize(("normalize", "dtype"), PAIRS)
@pytest.mark.parametrize("mode", SCHEMES)
def test_opcheck_and_equality(mode: str, normalize: str, dtype: str, memory: str, key: dlmt.Key) -> None:
    plan = SCHEMES[mode].plan(key, SHAPE, normalize, dtype)
    images, layout = images_for(memory)
    y, bounds = dlmt.encrypt(images, plan, layout=layout, return_bounds=True)
    through, limits = torch.ops.dlmt.affine_bounds(images, plan.handle, layout)
    assert same(through, y)
    assert same(torch.ops.dlmt.affine(images, plan.handle, layout), y)
    assert torch.equal(limits.reshape(bounds.shape), bounds)
    back = torch.ops.dlmt.affine_inverse(through, bounds, plan.handle, layout, "auto", 0)
    assert torch.equal(back, dlmt.decrypt(y, plan, bounds=bounds, layout=layout))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for operator in (torch.ops.dlmt.affine, torch.ops.dlmt.affine_bounds):
        torch.library.opcheck(operator.default, (images, plan.handle, layout, "auto", 1), test_utils=checks)
    torch.library.opcheck(
        torch.ops.dlmt.affine_inverse.default, (y, bounds, plan.handle, layout, "auto", 1), test_utils=checks
    )


@pytest.mark.parametrize(("normalize", "dtype"), [("none", "int32"), ("range", "uint8"), ("minmax", "float32")])
def test_opcheck_whole(normalize: str, dtype: str, key: dlmt.Key) -> None:
    plan = SCHEMES["mat_mmt"].plan(key, SHAPE, normalize, dtype)
    images, layout = images_for("NCHW")
    y, bounds = dlmt.encrypt(images, plan, layout=layout, return_bounds=True)
    torch.library.opcheck(torch.ops.dlmt.affine.default, (images, plan.handle))
    torch.library.opcheck(torch.ops.dlmt.affine_bounds.default, (images, plan.handle, layout, "auto", 0))
    torch.library.opcheck(torch.ops.dlmt.affine_inverse.default, (y, bounds, plan.handle, layout, "auto", 0))


@pytest.mark.parametrize(("normalize", "dtype"), PAIRS)
def test_compiles_whole_and_once_more_for_another_batch(normalize: str, dtype: str, key: dlmt.Key) -> None:
    torch._dynamo.reset()
    plan = SCHEMES["mmt_mat"].plan(key, SHAPE, normalize, dtype)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def there_and_back(images: torch.Tensor) -> Any:
        y, bounds = dlmt.encrypt(images, plan, return_bounds=True)
        return y, bounds, dlmt.decrypt(y, plan, bounds=bounds)

    for count in (4, 4, 7, 9, 4, 65):
        images, _ = images_for("NCHW", count)
        y, bounds = dlmt.encrypt(images, plan, return_bounds=True)
        got = there_and_back(images)
        assert same(got[0], y)
        assert torch.equal(got[1], bounds)
        assert torch.equal(got[2], dlmt.decrypt(y, plan, bounds=bounds))
    assert counter.frame_count <= 2


def test_inductor(key: dlmt.Key) -> None:
    torch._dynamo.reset()
    plan = SCHEMES["mat_mmt"].plan(key, SHAPE, "range", "float32")
    images, _ = images_for("channels_last")
    fused = torch.compile(lambda x: dlmt.encrypt(x, plan) * 2 + 1, fullgraph=True)
    assert torch.equal(fused(images), dlmt.encrypt(images, plan) * 2 + 1)


@pytest.mark.parametrize("memory", MEMORY)
def test_fake_tensors_have_the_shape_dtype_and_strides_of_real_ones(memory: str, key: dlmt.Key) -> None:
    plan = SCHEMES["mat_mmt"].plan(key, SHAPE, "minmax_channel", "float16")
    images, layout = images_for(memory)
    real = torch.ops.dlmt.affine(images, plan.handle, layout)
    with FakeTensorMode() as mode:
        fake = dlmt.encrypt(mode.from_tensor(images), plan, layout=layout)
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize(("normalize", "dtype"), PAIRS)
@pytest.mark.parametrize("inner_batch", [False, True])
def test_vmap(normalize: str, dtype: str, inner_batch: bool, key: dlmt.Key) -> None:
    plan = SCHEMES["mat_mmt"].plan(key, SHAPE, normalize, dtype)
    images, _ = images_for("NCHW", 6)
    expected, limits = dlmt.encrypt(images, plan, return_bounds=True)
    mapped = images.reshape(2, 3, *SHAPE) if inner_batch else images
    y, bounds = torch.vmap(lambda x: dlmt.encrypt(x, plan, return_bounds=True))(mapped)
    assert same(y.reshape(expected.shape), expected)
    assert torch.equal(bounds.reshape(limits.shape), limits)
    back = torch.vmap(lambda x, b: dlmt.decrypt(x, plan, bounds=b))(y, bounds)
    assert torch.equal(back.reshape(images.shape), dlmt.decrypt(expected, plan, bounds=limits))


def test_a_dispatch_mode_sees_the_operator(key: dlmt.Key) -> None:
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    plan = SCHEMES["mat_mmt"].plan(key, SHAPE)
    images, _ = images_for("NCHW")
    expected = dlmt.encrypt(images, plan)
    with Watch():
        y = dlmt.encrypt(images, plan)
    assert torch.equal(y, expected)
    assert "dlmt.affine.default" in seen


def test_autocast_and_inference_mode(key: dlmt.Key) -> None:
    plan = SCHEMES["mat_mmt"].plan(key, SHAPE, "range", "float32")
    images, _ = images_for("NCHW")
    expected = dlmt.encrypt(images, plan)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(dlmt.encrypt(images, plan), expected)
        assert same(torch.ops.dlmt.affine(images, plan.handle), expected)
    with torch.inference_mode():
        assert torch.equal(dlmt.encrypt(images, plan), expected)
        assert torch.equal(dlmt.encrypt(images.clone(), plan), expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_training_step_with_autocast(compiled: bool, key: dlmt.Key) -> None:
    """The transform's float32 comes as it is; the layers after it take what autocast says."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    transform, seen = Encrypt(key, SCHEMES["mat_mmt"], mean=0.5, std=0.25), []
    layer = torch.nn.Conv2d(3, 4, 3)
    model = torch.nn.Sequential(transform, layer, torch.nn.Flatten(), torch.nn.Linear(48, 4))
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    images, _ = images_for("NCHW")
    layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    with torch.autocast("cpu", torch.bfloat16):
        y = run(images)
        loss = torch.nn.functional.cross_entropy(y, torch.arange(4))
    loss.backward()
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0
    assert same(seen[0], transform(images))
    with torch.inference_mode():
        assert run(images).is_inference()


def test_what_requires_grad_is_refused_everywhere(key: dlmt.Key) -> None:
    plan = SCHEMES["mat_mmt"].plan(key, SHAPE, "range", "float32")
    y = dlmt.encrypt(images_for("NCHW")[0], plan).requires_grad_()
    with pytest.raises(dlmt.errors.InputTypeError, match="not differentiable"):
        dlmt.decrypt(y, plan)
    with pytest.raises(dlmt.errors.InputTypeError, match="not differentiable"):
        torch.ops.dlmt.affine_inverse(y, None, plan.handle, "NCHW", "auto", 0)


@pytest.mark.parametrize("strict", [False, True])
def test_a_graph_with_the_transform_is_not_exported(strict: bool, key: dlmt.Key) -> None:
    plan = SCHEMES["mat_mmt"].plan(key, SHAPE)

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return dlmt.encrypt(x, plan)

    with pytest.raises(Exception, match="cannot be part of an exported graph"):
        torch.export.export(Model(), (images_for("NCHW")[0],), strict=strict)


def test_wrong_inputs_are_refused_while_tracing(key: dlmt.Key) -> None:
    plan = SCHEMES["mat_mmt"].plan(key, SHAPE, "minmax")
    images, _ = images_for("NCHW")
    with FakeTensorMode() as mode:
        x = mode.from_tensor(images)
        with pytest.raises(dlmt.errors.InputShapeError, match='layout="NHWC"'):
            dlmt.encrypt(x.permute(0, 2, 3, 1), plan)
        with pytest.raises(dlmt.errors.InputTypeError, match="nothing is cast silently"):
            dlmt.encrypt(x.float(), plan)
        with pytest.raises(dlmt.errors.ParameterError, match="unknown backend"):
            dlmt.encrypt(x, plan, backend="fast")
        with pytest.raises(dlmt.errors.ParameterError, match="threads"):
            dlmt.encrypt(x, plan, threads=0)
        with pytest.raises(dlmt.errors.ParameterError, match="bounds"):
            dlmt.decrypt(x, plan)
        with pytest.raises(dlmt.errors.InputTypeError, match="expected a plan"):
            dlmt.encrypt(x, "plan")


def test_a_graph_outlives_no_plan() -> None:
    with pytest.raises(dlmt.errors.ParameterError, match="no longer exists"):
        torch.ops.dlmt.affine(images_for("NCHW")[0], 1)


def test_out_is_written_while_tracing(key: dlmt.Key) -> None:
    torch._dynamo.reset()
    plan = SCHEMES["mat_mmt"].plan(key, SHAPE)
    images, _ = images_for("NCHW")
    out = torch.zeros_like(images)
    torch.compile(lambda x, y: dlmt.encrypt(x, plan, out=y), fullgraph=True, backend="aot_eager")(images, out)
    assert torch.equal(out, dlmt.encrypt(images, plan))


# --- transforms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("normalize", "dtype"), PAIRS)
def test_a_transform_compiles_whole_at_its_first_call(normalize: str, dtype: str, key: dlmt.Key) -> None:
    """It makes its plans when the graph runs; a second graph serves all batches and all sizes."""
    torch._dynamo.reset()
    transform, eager = (Encrypt(key, SCHEMES["mat_mmt"], normalize, dtype) for _ in range(2))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: (transform(x), x + 1), fullgraph=True, backend=counter)
    for count in (4, 4, 7, 9, 4, 65):
        images, _ = images_for("NCHW", count)
        assert same(compiled(images)[0], eager(images))
    assert counter.frame_count <= 2


def test_a_compiled_transform_meets_other_sizes(key: dlmt.Key) -> None:
    torch._dynamo.reset()
    transform, eager = Encrypt(key, SCHEMES["mat_mmt"]), Encrypt(key, SCHEMES["mat_mmt"])
    compiled = torch.compile(transform, fullgraph=True, dynamic=True)
    for shape in ((3, 6, 5), (3, 8, 9), (2, 3, 6, 5), (2, 1, 7, 7)):
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        assert torch.equal(compiled({"image": images, "label": 3})["image"], eager(images))


def test_a_compiled_model_with_the_transform_before_it(key: dlmt.Key) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    layers = torch.nn.Flatten(1), torch.nn.Linear(90, 4)
    model = torch.nn.Sequential(Encrypt(key, SCHEMES["mat_mmt"], mean=0.5, std=0.25), *layers)
    images, _ = images_for("NCHW")
    expected = model(images)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(images), expected)
    expected.sum().backward()
    assert layers[1].weight.grad is not None


def test_decrypt_compiles_whole(key: dlmt.Key) -> None:
    torch._dynamo.reset()
    there, back = Encrypt(key, SCHEMES["mat_mmt"], "none"), Decrypt(key, SCHEMES["mat_mmt"], "none")
    images, _ = images_for("channels_last")
    compiled = torch.compile(lambda x: back(there(x)), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images), images)
    with pytest.raises(dlmt.errors.DecryptError):
        torch.compile(back, backend="aot_eager")(torch.full((2, *SHAPE), -1, dtype=torch.int32))


def test_the_check_sees_what_is_compiled(key: dlmt.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    transform = Encrypt(key, SCHEMES["mat_mmt"], check="all")
    compiled = torch.compile(lambda x: transform(x) + 1, fullgraph=True, backend="aot_eager")
    images, _ = images_for("NCHW")
    for _ in range(3):
        compiled(images)
    report = transform.check_report()
    assert (report.calls, report.checked, report.values, report.differ) == (3, 3, 3 * images.numel(), 0)
    wrong = SCHEMES["mat_mmt"].plan(dlmt.Key(bytes(32)), SHAPE, "range", "float32")
    with monkeypatch.context() as patch:
        patch.setattr("dlmt_fast.transforms.encrypt", lambda x, _, out: dlmt.encrypt(x, wrong, out))
        compiled(images)
    assert transform.check_report().differ > 0
    with pytest.raises(dlmt.errors.CheckError, match="differ from the reference"):
        compiled(images)
    assert transform.close_check().calls == 4, "the call that raised was not made"


@pytest.mark.parametrize("memory", [name for name in MEMORY if name != "NHWC"])
@pytest.mark.parametrize(("normalize", "dtype"), PAIRS)
def test_opcheck_of_transforms(normalize: str, dtype: str, memory: str, key: dlmt.Key) -> None:
    transform = Encrypt(key, SCHEMES["mat_mmt"], normalize, dtype)
    images, _ = images_for(memory)
    y = torch.ops.dlmt.transform(images, transform._handle)
    assert same(y, transform(images))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.dlmt.transform.default, (images, transform._handle), test_utils=checks)
    with FakeTensorMode() as mode:
        fake = transform(mode.from_tensor(images))
    assert (fake.shape, fake.dtype, fake.stride()) == (y.shape, y.dtype, y.stride())


def test_where_the_host_takes_part_no_cuda_graph_stands_for_it(key: dlmt.Key) -> None:
    """A replayed graph runs no Python: checks would be left out, and decrypting could not tell of errors."""
    torch._dynamo.reset()
    graphs: list[str] = []

    def backend(module: torch.fx.GraphModule, example: Any) -> Any:
        graphs.append(str(module.code))
        return module

    images, scheme = images_for("NCHW")[0], SCHEMES["mat_mmt"]
    for transform in (Encrypt(key, scheme), Encrypt(key, scheme, check=0.5), Decrypt(key, scheme, dtype="uint8")):
        torch.compile(transform, fullgraph=True, backend=backend)(images)
    assert ["dlmt.transform_on_host(" in code for code in graphs] == [False, True, True]
    assert "dlmt.transform(" in graphs[0]
    unsafe = getattr(torch.Tag, "cudagraph_unsafe", None)
    if unsafe is not None:
        assert unsafe in torch.ops.dlmt.transform_on_host.default.tags
        assert unsafe not in torch.ops.dlmt.transform.default.tags


@pytest.mark.parametrize("check", [None, "all"])
@pytest.mark.parametrize("inner_batch", [False, True])
def test_vmap_of_a_transform(inner_batch: bool, check: Any, key: dlmt.Key) -> None:
    images, _ = images_for("NCHW", 6)
    transform = Encrypt(key, SCHEMES["mat_mmt"], "minmax", check=check)
    expected = transform(images)
    mapped = images.reshape(2, 3, *SHAPE) if inner_batch else images
    assert same(torch.vmap(transform)(mapped).reshape(expected.shape), expected)


def test_transforms_refuse_while_tracing_too(key: dlmt.Key) -> None:
    transform = Encrypt(key, SCHEMES["mat_mmt"])
    with FakeTensorMode() as mode:
        x = mode.from_tensor(images_for("NCHW")[0])
        with pytest.raises(dlmt.errors.InputTypeError, match="found no image"):
            transform(x.float())
        with pytest.raises(dlmt.errors.InputTypeError, match="uint8, got float32"):
            Encrypt(key, SCHEMES["mat_mmt"], transform_inputs=[0])(x.float())
        with pytest.raises(dlmt.errors.InputTypeError, match="not differentiable"):
            Decrypt(key, SCHEMES["mat_mmt"])(x.float().requires_grad_())


def test_a_graph_outlives_no_transform() -> None:
    with pytest.raises(dlmt.errors.ParameterError, match="no longer exists"):
        torch.ops.dlmt.transform(images_for("NCHW")[0], 1)


# --- nothing is exported ---------------------------------------------------------------------------------------------


class Encrypts(torch.nn.Module):
    """A model that transforms by the function, not by the transform."""

    def __init__(self, plan: dlmt.Plan) -> None:
        super().__init__()
        self.plan = plan

    def forward(self, x: torch.Tensor) -> Any:
        return dlmt.encrypt(x, self.plan).float().mean()


@pytest.mark.filterwarnings("ignore")  # torch.jit warns of much else
@pytest.mark.parametrize("kind", ["function", "transform"])
def test_neither_onnx_nor_torch_jit_takes_a_model_with_the_transform(kind: str, key: dlmt.Key, tmp_path: Path) -> None:
    """torch.jit would bake the example's result in as a constant, without a word."""
    scheme = SCHEMES["mat_mmt"]
    model = torch.nn.Sequential(Encrypt(key, scheme)) if kind == "transform" else Encrypts(scheme.plan(key, SHAPE))
    model, images, file = model.eval(), images_for("NCHW")[0], tmp_path / "model.onnx"
    for export in (
        lambda: torch.jit.trace(model, images),
        lambda: torch.onnx.export(model, (images,), file, dynamo=False),
        lambda: torch.onnx.export(model, (images,), file, dynamo=True, verbose=False),
    ):
        with pytest.raises(Exception, match="cannot be part of an exported graph"):
            export()
    assert not file.exists()
