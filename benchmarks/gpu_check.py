"""Parts of gpu.sh in Python: `info`, `tests RESULTS.xml`, and `small`, the case that compute-sanitizer watches."""

from __future__ import annotations

import itertools
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def info() -> None:
    """Show what is installed; fail where the GPU cannot be used."""
    import dlmt_fast as dlmt
    from dlmt_fast.info import collect, describe

    print(f"dlmt_fast comes from {Path(dlmt.__file__).parent}")
    print(describe(collect()))
    for name in ("cuda", "native"):
        state = dlmt.backends.available()[name]
        if state != "ok":
            sys.exit(f"the backend {name} cannot run here: {state}")


def tests(results: Path) -> None:
    """Fail where nothing was run: a file of skipped tests is no success."""
    cases = list(ElementTree.parse(results).getroot().iter("testcase"))
    skipped = [case for case in cases if case.find("skipped") is not None]
    reasons = sorted({str(case.find("skipped").get("message")) for case in skipped})  # type: ignore[union-attr]
    print(f"{len(cases) - len(skipped)} tests were run, {len(skipped)} skipped")
    for reason in reasons:
        print(f"  skipped: {reason}")
    if len(cases) - len(skipped) < 500:
        sys.exit("fewer than 500 GPU tests were run; the equality walk alone has more")


def small() -> None:
    """Every output there and back, over images small enough for compute-sanitizer, with odd sizes and addresses."""
    import numpy as np
    import torch

    import dlmt_fast as dlmt

    outputs = [
        ("none", "int32"),
        *itertools.product(("range", "minmax", "minmax_channel"), ("uint8", "float32", "bfloat16")),
    ]
    scheme, key = dlmt.DLMT("mat_mmt"), dlmt.Key(bytes(range(32)))
    for shape, count in (((3, 32, 32), 5), ((1, 7, 9), 3), ((3, 64, 65), 3), ((3, 160, 160), 2)):
        host = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
        memory = torch.zeros(host.size + 3, dtype=torch.uint8, device="cuda")
        images = memory[3:].view(host.shape)
        images.copy_(torch.from_numpy(host))
        for normalize, dtype in outputs:
            plan = scheme.plan(key, shape, normalize, dtype)
            y, bounds = dlmt.encrypt(images, plan, return_bounds=True)
            wanted = dlmt.encrypt(torch.from_numpy(host), plan)
            assert torch.equal(y.cpu(), wanted), (shape, normalize, dtype)
            dlmt.decrypt(y, plan, bounds)
    torch.cuda.synchronize()
    print("small case done")


if __name__ == "__main__":
    {"info": info, "tests": tests, "small": small}[sys.argv[1]](*map(Path, sys.argv[2:]))
