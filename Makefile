# The commands of the project: each makes .venv first, from pyproject.toml under the pins of constraints.txt.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
INSTALLED := .venv/.installed
RUN := runs/quickstart
CONFIG := configs/run/quickstart.yaml
PROMPT := def __init__(self

.PHONY: quickstart test lint format bench clean

quickstart: $(INSTALLED)
	stellarbyte corpus stdlib $(RUN)/corpus.jsonl
	stellarbyte tokenizer train --input $(RUN)/corpus.jsonl --vocab-size 4096 --output $(RUN)/tokenizer
	stellarbyte prepare $(CONFIG)
	stellarbyte pretrain $(CONFIG)
	stellarbyte evaluate $(RUN)
	stellarbyte generate $(RUN) --prompt '$(PROMPT)' --max-new-tokens 64
	stellarbyte-convert to-hf $(RUN) $(RUN)/hf
	stellarbyte-convert verify $(RUN) $(RUN)/hf
	stellarbyte-torch generate $(RUN)/hf --prompt '$(PROMPT)' --max-new-tokens 64
	@echo
	@echo "The run is in $(RUN): config.yaml, metrics.jsonl, checkpoints/. The Hugging Face model is in $(RUN)/hf."
	@echo "Next: . .venv/bin/activate, then"
	@echo "  stellarbyte generate $(RUN) --prompt 'import ' --temperature 0.8 --top-p 0.95 --seed 1"
	@echo "  stellarbyte pretrain $(CONFIG) --training.max_steps 1000 --output_dir runs/longer"
	@echo "  and configs/run/plays_en.yaml, to train on text of your own."

test: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy
	python -m pytest -n 2

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format: $(INSTALLED)
	ruff check --fix .
	ruff format .

bench: $(INSTALLED)
	python -m tests.bench

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "StellarByte needs Python 3.11 or newer, not %s: make PYTHON=python3.11 …" % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
