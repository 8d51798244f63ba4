"""Compiles the CPU kernels when the package is built: one library per instruction set, none where there is no compiler."""

import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/tunesmith/kernels/native/fused.c")
X86 = {
    "avx512bf16": ["-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-mprefer-vector-width=512"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    "avx2": ["-march=x86-64-v3"],
    "portable": [],
}
OTHER = {"portable": []}
# What lets compilers turn sums into vector code, and still keeps NaN and infinity what they are.
FLAGS = "-O3 -fno-math-errno -fno-trapping-math -fassociative-math -fno-signed-zeros -freciprocal-math -fopenmp -fPIC"


class CompileKernels(BuildHookInterface):
    """Runs for wheels and for editable installs; OpenMP is left unlinked, since torch brings the one that is to be used."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile beside the source and add what came of it to the wheel."""
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if platform.system() != "Linux" or compiler is None:
            self.app.display_warning("no C compiler: tunesmith's CPU kernels are left out, torch does their work")
            return
        source = Path(self.root) / SOURCE
        made = []
        for level, flags in (X86 if platform.machine() in ("x86_64", "AMD64") else OTHER).items():
            target = source.with_name(f"fused-{level}.so")
            with tempfile.TemporaryDirectory(dir=source.parent) as folder:
                compiled, linked = Path(folder) / "fused.o", Path(folder) / "fused.so"
                compiling = [compiler, *FLAGS.split(), *flags, "-c", str(source), "-o", str(compiled)]
                linking = [compiler, "-shared", str(compiled), "-o", str(linked)]
                failed = next((done for done in map(_run, (compiling, linking)) if done.returncode), None)
                if failed is not None:
                    self.app.display_warning(f"kernels for {level} did not compile: {failed.stderr.strip()[-300:]}")
                    target.unlink(missing_ok=True)  # an older one was compiled from other files
                    continue
                linked.replace(target)  # a library in use is not written into
            made.append(str(target.relative_to(self.root)))
        if made:
            build_data["artifacts"].extend(made)
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform.system().lower()}_{platform.machine()}"


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)
