"""The one-file objective of CONTRIBUTING.md, dropped into a copy of the package and put through the contract tests."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CALLS = {"tunesmith": (sys.executable, "-c", "import tunesmith.cli as cli; cli.main()"), "python": (sys.executable,)}


def test_an_objective_is_one_file(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- file: focal.py -->\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[1]
    shutil.copytree(ROOT / "src" / "tunesmith", tmp_path / "tunesmith", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tunesmith" / "methods" / "objectives" / "focal.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    said = []
    for block in re.findall(r"<!-- run -->\n```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            command = [*CALLS[program], *arguments]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            said.append(done.stdout)
    explained, tested = said
    assert "How quickly a token's weight falls" in explained
    assert int(re.search(r"(\d+) passed", tested)[1]) >= 4
