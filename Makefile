# The commands of the project: each makes .venv first, from pyproject.toml under the pins of constraints.txt.
# The newest that is there and runs: where pyenv is, a name on PATH may be a Python that is not chosen, and does not.
PYTHON ?= $(or $(firstword $(foreach python,python3.13 python3.12 python3.11,$(shell $(python) -c '' 2>/dev/null && echo $(python)))),python3)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
INSTALLED := .venv/.installed
RUN := runs/quickstart
CONFIG := configs/run/quickstart.yaml
PROMPT := def __init__(self

# The fine-tuning demo, and what it asks; a question of its own each, so that no answer leans on the one before.
DEMO := runs/finetune-demo
DEMO_STEPS := 120
QUESTION := What does the function `os.path.join` do?
QUESTIONS := '$(QUESTION)' /reset 'What is the class `threading.Thread`?' /reset 'What does the method `socket.socket.close` do?'
ANSWER := stellarbyte-torch chat $(DEMO)/base --max-new-tokens 40

.PHONY: quickstart finetune-demo test test-all lint format bench clean

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

finetune-demo: $(INSTALLED) $(DEMO)/base/config.json
	stellarbyte corpus stdlib --chat $(DEMO)/chat.jsonl
	@echo
	@echo "The first adapter learns to answer in prose."
	stellarbyte-torch finetune configs/finetune/demo_answers.yaml
	@echo
	@echo "The second is a non-linear LoRA and learns to answer the same questions with a call."
	python -c 'import json; \
	    conversations = [json.loads(line)["messages"] for line in open("$(DEMO)/chat.jsonl", encoding="utf-8")]; \
	    pairs = [{"prompt": m[0]["content"], "completion": m[3]["content"]} for m in conversations if len(m) == 4]; \
	    open("$(DEMO)/signatures.jsonl", "w", encoding="utf-8").writelines(json.dumps(pair) + "\n" for pair in pairs)'
	stellarbyte-torch finetune configs/finetune/demo_signatures.yaml
	@echo
	@echo "Before, the base, which has read source code and never a question:"
	printf '%s\n' $(QUESTIONS) | $(ANSWER)
	@echo
	@echo "After, the same questions to each adapter:"
	printf '%s\n' $(QUESTIONS) | $(ANSWER) --adapter answers=$(DEMO)/answers/adapter
	printf '%s\n' $(QUESTIONS) | $(ANSWER) --adapter signatures=$(DEMO)/signatures/adapter
	@echo
	@echo "Hot swap: one model, and the same question under one adapter, the other, the first again, and none."
	printf '%s\n' '$(QUESTION)' '/adapter signatures' /retry '/adapter answers' /retry '/adapter off' /retry /adapters | \
	    $(ANSWER) --adapter answers=$(DEMO)/answers/adapter --adapter signatures=$(DEMO)/signatures/adapter
	@echo
	@echo "Merged into the base: a model like any other."
	rm -rf $(DEMO)/merged
	stellarbyte-torch merge $(DEMO)/base $(DEMO)/answers/adapter $(DEMO)/merged
	printf '%s\n' '$(QUESTION)' | stellarbyte-torch chat $(DEMO)/merged --max-new-tokens 40
	@echo
	@echo "And where StellarByte is not imported: stock PEFT with the adapter, stock transformers with the merged model."
	python -W ignore -c 'import logging, sys; \
	    logging.disable(); \
	    from peft import PeftModel; \
	    from transformers import AutoModelForCausalLM, AutoTokenizer; \
	    load = lambda loader, folder: loader.from_pretrained(f"$(DEMO)/{folder}", trust_remote_code=True); \
	    base, merged = (load(AutoModelForCausalLM, folder) for folder in ("base", "merged")); \
	    tokenizer = load(AutoTokenizer, "base"); \
	    models = PeftModel.from_pretrained(base, "$(DEMO)/answers/adapter"), merged; \
	    question = [{"role": "user", "content": "$(QUESTION)"}]; \
	    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt"); \
	    tokens = [m.generate(**prompt, max_new_tokens=40)[0, prompt["input_ids"].shape[1]:].tolist() for m in models]; \
	    print(*(f"{ids}  {tokenizer.decode(ids, skip_special_tokens=True)}" for ids in tokens), sep="\n"); \
	    assert "stellarbyte_torch" not in sys.modules and tokens[0] == tokens[1]'
	@echo
	@echo "All of it is in $(DEMO): base, chat.jsonl, answers/adapter and signatures/adapter (PEFT's folders, with their runs"
	@echo "beside them: config.yaml, metrics.jsonl, summary.json), and merged."
	@echo "Next: . .venv/bin/activate, then"
	@echo "  stellarbyte-torch chat $(DEMO)/base --adapter answers=$(DEMO)/answers/adapter"
	@echo "  stellarbyte-torch data preview configs/finetune/demo_answers.yaml"
	@echo "  stellarbyte-torch finetune configs/finetune/demo_answers.yaml --training.max_steps 500 --output_dir runs/longer-answers"
	@echo "  and a config of your own, from those in configs/finetune."

# The quickstart's model where there is one, which later quickstarts leave alone; else one of half its training.
$(DEMO)/base/config.json: | $(INSTALLED)
	@rm -rf $(DEMO)/base && mkdir -p $(DEMO)
ifneq ($(wildcard $(RUN)/hf/config.json),)
	cp -R $(RUN)/hf $(DEMO)/base
else
	stellarbyte corpus stdlib $(RUN)/corpus.jsonl
	stellarbyte tokenizer train --input $(RUN)/corpus.jsonl --vocab-size 4096 --output $(RUN)/tokenizer
	stellarbyte prepare $(CONFIG)
	stellarbyte pretrain $(CONFIG) --training.max_steps $(DEMO_STEPS) --output_dir $(DEMO)/pretrained
	stellarbyte-convert to-hf $(DEMO)/pretrained $(DEMO)/base
endif

test: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy
	python -m pytest -n 2 -m 'not long'

# The long tier too: what is slow, and no law of its own.
test-all: $(INSTALLED)
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
	@# One of another version goes first: venv would leave its links to that where they are.
	$(PYTHON) -m venv $$([ "$$(.venv/bin/python -V 2>&1)" = "$$($(PYTHON) -V)" ] || echo --clear) .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
