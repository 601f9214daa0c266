# make train        install what is missing, then train the default AMIGo run on KeyCorridorS3R3
# make test         every test but the soak (make test-fast leaves out the slow ones too; make soak: hours of faults)
# make lint         ruff
# Without an NVIDIA driver the build of torch without CUDA is installed; TORCH=cuda installs PyPI's all the same, TORCH=cpu the other.
# ARGS="..." adds arguments:  make train ARGS="--total_frames 100000"    make test ARGS="-k vtrace"

PYTHON = python3
VENV = .venv
ARGS =
WORKERS = -n 2 --dist loadfile
TORCH := $(if $(shell command -v nvidia-smi || ls /proc/driver/nvidia/version 2>/dev/null),cuda,cpu)
TORCH_CPU_INDEX = https://download.pytorch.org/whl/cpu

PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
VERSION_CHECK = import sys; v = sys.version_info; \
	(3, 10) <= v[:2] <= (3, 14) or sys.exit("error: Python 3.10 to 3.14 is needed, but $(PYTHON) is %d.%d; \
	name another one, e.g. make train PYTHON=python3.11" % v[:2])

# PyPI's build for Linux brings 5 GB of CUDA, so the other one is put there first; torch==X is content with X+cpu.
TORCH_CPU = $(PIP) install --retries 1 --no-deps --index-url $(TORCH_CPU_INDEX) "$$(grep -o '^torch==[0-9.]*' requirements.txt)" \
	|| echo "$(TORCH_CPU_INDEX) could not be reached or has no such file: PyPI's build with CUDA instead, some 5 GB" >&2

export OMP_NUM_THREADS = 1

.PHONY: train test test-fast soak lint

train: $(VENV)/.installed
	$(VENV)/bin/python -m main.main --env MiniGrid-KeyCorridorS3R3-v0 --num_actors 40 --modify \
	--generator_batch_size 150 --generator_entropy_cost .05 --generator_threshold -.1 --total_frames 100000000 \
	--generator_reward_negative -.3 --savedir ./experimentMinigrid --model default $(ARGS)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest $(WORKERS) $(ARGS)

test-fast: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest $(WORKERS) -m "not slow and not soak" $(ARGS)

soak: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -m soak -s $(ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/python -m ruff check .

# The stamps are younger than the requirements they were made from, so a change of requirements installs again.
$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(if $(filter cpu,$(TORCH)),$(TORCH_CPU))
	$(PIP) install -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-minigrid.txt $(VENV)/.installed
	$(PIP) install -r requirements-dev.txt
	@touch $@

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) here; name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c '$(VERSION_CHECK)'
	$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
