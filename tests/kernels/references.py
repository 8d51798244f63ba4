"""How a compiled operation is held against its torch reference."""

import torch

EXACTLY = {"atol": 2e-5, "rtol": 1e-5}
ROUNDED = {"atol": 3e-2, "rtol": 2e-2}
DTYPES = {torch.float32: EXACTLY, torch.bfloat16: ROUNDED}


def leaves(*tensors):
    return [None if one is None else one.detach().clone().requires_grad_() for one in tensors]


def compare(fast, slow, tensors, dtype):
    """Run both on the same leaves and hold outputs and gradients against each other."""
    found = []
    for function in (fast, slow):
        mine = leaves(*tensors)
        out = function(*mine)
        outs = out if isinstance(out, tuple) else (out,)
        total = sum((one.float() * torch.linspace(-1, 1, one.numel()).view(one.shape)).sum() for one in outs)
        total.backward()
        found.append([*(one.detach() for one in outs), *(one.grad for one in mine if one is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **DTYPES[dtype])
