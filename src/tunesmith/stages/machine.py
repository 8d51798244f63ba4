"""What this machine has: free memory within every limit set on the process, and measured speed."""

import gc
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from tunesmith.kernels.memory import give_back, keep_steady

CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Where a control group tells its limit and what is used of it, and what its statistics call pages of files that it would let go: version 2, then 1."""


def available_memory(cgroup: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that training may take: free memory of the GPU where there is one, else of the machine, the process and the control groups it is in.

    Args:
        cgroup: where control groups are mounted.
        membership: which of them the process is in.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    own = psutil.Process().memory_info()
    free = [psutil.virtual_memory().available]
    free += [left for group in _groups(cgroup, membership) for files in CGROUP_FILES for left in _left(group, *files)]
    for limit, used in ((resource.RLIMIT_AS, own.vms), (resource.RLIMIT_DATA, own.data)):
        most, _ = resource.getrlimit(limit)
        free += [most - used] if most != resource.RLIM_INFINITY else []
    return max(0, min(free))


def _groups(cgroup: Path, membership: Path) -> set[Path]:
    """The process's own groups and those around them; inside a container their paths may be those outside, of which only the mount is seen."""
    lines = membership.read_text().splitlines() if membership.is_file() else []
    found = {cgroup, cgroup / "memory"}
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers in ("", "memory"):
            root = cgroup / controllers
            group = root / path.lstrip("/")
            found |= {each for each in (group, *group.parents) if each.is_relative_to(root)}
    return found


def _left(group: Path, limit: str, used: str, idle: str) -> list[int]:
    """Bytes that a group leaves; nothing where it is none, or sets no limit."""
    if not ((group / limit).is_file() and (group / used).is_file()):
        return []
    text, statistics = (group / limit).read_text().strip(), group / "memory.stat"
    if text == "max":
        return []
    told = dict(line.split() for line in statistics.read_text().splitlines()) if statistics.is_file() else {}
    return [int(text) - int((group / used).read_text()) + int(told.get(idle, 0))]


def killed_for_memory(told: Path = Path("/proc/vmstat")) -> int | None:
    """How many processes the system has killed since it started because memory ran out; None where it does not say."""
    lines = told.read_text().splitlines() if told.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def boot(told: Path = Path("/proc/sys/kernel/random/boot_id")) -> str | None:
    """Tells machines, and their starts, apart; None where the system does not say."""
    return told.read_text().strip() if told.is_file() else None


def resident_memory() -> int:
    """Bytes that this process holds of the memory that `available_memory` speaks of, once it has given back what it can."""
    gc.collect()
    give_back()
    return 0 if torch.cuda.is_available() else int(psutil.Process().memory_info().rss)


@dataclass(frozen=True)
class Speed:
    """How fast operations are here."""

    fp32: float
    """Floating point operations a second in a float32 matrix product of the model's size."""
    bf16: float
    """The same in bfloat16."""
    bandwidth: float
    """Bytes read and written a second by an addition."""
    operation: float
    """Seconds that a smallest operation takes."""

    def seconds(self, flops: int, moved: int, bf16: bool) -> float:
        """Time of one operation: what it computes or what it moves, whichever takes longer (the roofline model)."""
        return self.operation + max(flops / (self.bf16 if bf16 else self.fp32), moved / self.bandwidth)


TOKENS = 512
"""Rows of the probed product."""


def measure_speed(hidden: int, wide: int, seconds: float = 0.5) -> Speed:
    """Measure for about `seconds` with products of [512, hidden] and [hidden, wide]; the fastest call counts, as other programs may be running."""
    keep_steady()  # oneDNN reads its limits at the first product, which may be one of these
    device = "cuda" if torch.cuda.is_available() else "cpu"
    share, flops = seconds / 4, 2 * TOKENS * hidden * wide
    left, right = torch.randn(TOKENS, hidden, device=device), torch.randn(hidden, wide, device=device)
    left_bf16, right_bf16 = left.bfloat16(), right.bfloat16()
    large, small = torch.zeros(2, 1 << 22, device=device), torch.zeros(8, device=device)
    return Speed(
        fp32=flops / _fastest(lambda: torch.mm(left, right), share),
        bf16=flops / _fastest(lambda: torch.mm(left_bf16, right_bf16), share),
        bandwidth=1.5 * large.nbytes / _fastest(lambda: torch.add(large[0], large[0], out=large[1]), share),
        operation=_fastest(lambda: small + small, share),
    )


def _fastest(call: Callable[[], torch.Tensor], seconds: float) -> float:
    """Time of the fastest call within about `seconds`."""
    wait: Callable[[], None] = torch.cuda.synchronize if torch.cuda.is_available() else _nothing
    call()
    wait()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


def _nothing() -> None:
    """A processor is done when the call returns."""
