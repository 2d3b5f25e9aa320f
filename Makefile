# make demo   trains on real digits and draws demo.png
# make test   what a CPU computes, by every backend that it can run
# make test-gpu-code  the GPU's code without a GPU: executed on the CPU, compiled, launched
# make bench  measures against PyTorch and pytorch-metric-learning; BENCH=quick for two minutes
# make launcher  every Triton kernel through Triton's launcher and compiler; TRITON=3.6.0 for
#             another Triton than the environment's
# make compile   every kernel for every architecture, nothing may spill: ten minutes
# make api    docs/api.md, from the docstrings
# make gpu    what a GPU must show, with PYTHON's own torch: RESULTS=folder takes what is found,
#             STEPS="machine latency" some of it, STEPS=first and STEPS=second its halves
# make gpu-build      the modules for it beforehand: PYTHON=python3.12, ARCHITECTURES=90-real (80-real
#             for an A100), KERNELS=1 for those of that Python's Triton too
# make gpu-rehearsal  every step of it, tiny, without a GPU

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Small, and enough without a GPU; pip takes any other index where this one is out of reach.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
SOURCES := setup.py CMakeLists.txt pyproject.toml constraints.txt $(shell find cmake csrc -type f)
CXX_FILES := $(shell find csrc tests/host_gpu tests/stand_in_driver -name '*.h' -o -name '*.c' \
  -o -name '*.cpp' -o -name '*.cu*')

# The tests compile the CUDA kernels themselves, for the CPU and with nvcc where there is one. With
# a GPU: make MSK_CUDA=ON CMAKE_CUDA_ARCHITECTURES=90-real
export MSK_CUDA ?= OFF

.PHONY: demo test test-gpu-code launcher compile bench tables api gpu gpu-build gpu-rehearsal lint format clean

# Editable, so that Python changes need no reinstall; a change of csrc/ rebuilds the module.
$(VENV)/installed: $(SOURCES)
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "make: $(PYTHON) -m venv failed; on Debian: apt install python3-venv"; exit 1; }
	@echo "installing torch and building the kernels, a few minutes the first time"
	$(PIP) --retries 0 --timeout 30 --extra-index-url $(TORCH_INDEX) torch
	$(PIP) -e .
	@touch $@

# An extra is installed when first asked for; the module is built already.
$(VENV)/extra-%: $(VENV)/installed
	MS_KERNELS_SKIP_BUILD=1 $(PIP) -e ".[$*]"
	@touch $@

demo: $(VENV)/extra-demo
	OMP_WAIT_POLICY=passive $(BIN)/python -m ms_kernels demo

# TESTS=tests/test_known.py runs one file, or several.
SUITE = OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n auto --dist worksteal $(TESTS)

test: $(VENV)/extra-test
	$(SUITE) -m "not gpu_code"

test-gpu-code: $(VENV)/extra-test
	$(SUITE) -m gpu_code

# Beside the environment's own Triton, which it comes before.
$(VENV)/triton-%: $(VENV)/extra-test
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $@ triton==$*

launcher: $(VENV)/extra-test $(TRITON:%=$(VENV)/triton-%)
	STAND_IN_DRIVER=cubin TRITON_INTERPRET=0 TRITON_CACHE_DIR=$(VENV)/launcher-$(TRITON) \
	  PYTHONPATH=$(TRITON:%=$(VENV)/triton-%:)tests:tests/launcher \
	  $(BIN)/python -m pytest -q -n auto tests/launcher

compile: $(VENV)/extra-test
	$(BIN)/python -m pytest -q -n auto --dist worksteal --every-architecture \
	  tests/test_cuda_build.py tests/test_host_gpu_shapes.py tests/test_triton_compile.py tests/test_layers.py

bench: $(VENV)/extra-bench
	$(BIN)/python -m bench $(BENCH)

# README's and docs' tables and plots, from what bench/results holds.
tables: $(VENV)/extra-bench
	$(BIN)/python -m bench.tables

api: $(VENV)/extra-test
	$(BIN)/python -m docs.api

# With the torch and Triton that the machine has: no environment is made, nothing is installed.
RESULTS ?= build/gpu-results
ARCHITECTURES ?= 90-real
gpu:
	$(PYTHON) tests/prove_gpu.py --results $(RESULTS) $(STEPS)

# Into build/gpu, named for PYTHON (cp312); make gpu finds it there, whatever machine built it.
gpu-build:
	PYTHONPATH=tests $(PYTHON) -m gpu_proof.carry --architectures "$(ARCHITECTURES)"
	$(if $(KERNELS),PYTHONPATH=tests $(PYTHON) -m gpu_proof.carry --triton)

# In the environment of the tests, or with a PYTHON that is named.
REHEARSAL := build/gpu-rehearsal
ifeq ($(origin PYTHON),command line)
gpu-rehearsal:
	$(PYTHON) tests/prove_gpu.py --rehearse --results $(REHEARSAL) $(STEPS)
else
gpu-rehearsal: $(VENV)/extra-test
	$(BIN)/python tests/prove_gpu.py --rehearse --results $(REHEARSAL) $(STEPS)
endif

lint: $(VENV)/extra-test $(VENV)/extra-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/python tests/users.py build/users
	$(BIN)/mypy --strict --config-file= --disable-error-code=import-untyped \
	  --disable-error-code=no-untyped-call --follow-imports=silent build/users/*.py

format: $(VENV)/extra-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf $(VENV) build dist *.egg-info ms_kernels/*.so demo.png explain.png
