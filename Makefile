# make train        install what is missing, then train the default AMIGo run on KeyCorridorS3R3
# make test         every test but the soak (make test-fast leaves out the slow ones too; make soak: hours of faults)
# make lint         ruff
# ARGS="..." adds arguments:  make train ARGS="--total_frames 100000"    make test ARGS="-k vtrace"

PYTHON = python3
VENV = .venv
ARGS =
WORKERS = -n 2 --dist loadfile

PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
VERSION_CHECK = import sys; v = sys.version_info; \
	v[:2] >= (3, 10) and v[:2] <= (3, 12) or sys.exit("error: Python 3.10, 3.11 or 3.12 is needed, but $(PYTHON) is %d.%d; \
	name another one, e.g. make train PYTHON=python3.11" % v[:2])

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
	$(PIP) install -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(PIP) install -r requirements-dev.txt
	@touch $@

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) here; name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c '$(VERSION_CHECK)'
	$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
