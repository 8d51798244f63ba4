"""The training that everything else is measured by: it ends, leaves checkpoints on its way, and ends alike twice."""

import subprocess

from subjects import Subject


def test_the_training_ends_alike_twice(subject: Subject, tally, tiny_folder, tmp_path, many):
    counted = tally("R0", "undisturbed runs end alike", subject.name)
    found = []
    for number in range(many(4, 2)):
        subject.set_up(tmp_path / str(number), tiny_folder)
        done = subprocess.run(
            subject.command(tmp_path / str(number)),
            env=subject.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        found.append(subject.result(tmp_path / str(number)))
        counted.verdict(
            f"run {number}",
            done.returncode == 0 and found[-1] == found[0] != {},
            done.returncode != 0,
            done.stderr[-300:],
        )
