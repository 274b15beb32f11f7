# What a developer types. `make run` on a fresh checkout needs python3 (3.11 or newer), g++ and about eight minutes.
SHELL := /bin/bash

LISTEN ?= 127.0.0.1:8443
STATE ?= .llmd
ARGS ?=

MODEL := .build/models/SmolLM2-135M-Instruct.Q4_1.gguf
PYTHON := .venv/bin/python -P
PACKAGES := llmd.daemon llmd.quantize llmd.api

.DEFAULT_GOAL := help
.PHONY: help setup setup-torch run test test-slow clients check check-cves bench wheelhouse deb deb-cuda deb-torch test-deb test-appliance test-power clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: ## .venv, the engine compiled for this machine, the default model
	@packaging/setup.sh

setup-torch: setup ## .build/torch: what converts Hugging Face models (torch, transformers, llama.cpp's converter)
	@packaging/setup_torch.sh

run: setup ## serve the default model; LISTEN=HOST:PORT STATE=DIR
	@exec .venv/bin/llmd serve --state-dir "$(STATE)" --listen "$(LISTEN)" --default-model "smollm2-135m-instruct=$(MODEL)"

test: setup ## the fast tests; ARGS='-k audit'
	@$(if $(ARGS),$(PYTHON) -m pytest -m "not slow" $(ARGS),tests/fast.sh)

test-slow: setup ## the tests that take longer than ten seconds each
	@$(PYTHON) -m pytest -m slow $(ARGS)

clients: setup ## the clients of docs/clients.md against a daemon
	@$(PYTHON) -m pytest -m "slow or not slow" tests/clients $(ARGS)

check: setup ## ruff and mypy --strict, over tests and benchmarks too
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet .
	@MYPYPATH=packaging/typing .venv/bin/mypy --strict $(addprefix -p ,$(PACKAGES))
	@MYPYPATH=packaging/typing:benchmarks:tests .venv/bin/mypy --strict benchmarks
	@MYPYPATH=packaging/typing:tests .venv/bin/mypy --strict --explicit-package-bases --exclude '^tests/clients/(?!test_)[a-z]' tests

FILES ?=
check-cves: setup ## advisories in OSV form (FILES='all.zip …') against what the packages ship, or a bill among them
	@$(PYTHON) packaging/check_cves.py $(FILES)

bench: setup ## llmd and llama-server under the same load in turn, then what the gateway costs; ARGS='...'
	@server=$$(packaging/build_peer.sh | tail -n 1) && [ -n "$$server" ] && \
		$(PYTHON) benchmarks/run.py --peer "$$server" --model "$(MODEL)" $(ARGS)
	@.venv/bin/python benchmarks/gateway.py

wheelhouse: setup ## what the Debian package is built from: pinned wheels, the engine for many kinds of CPU
	@packaging/wheelhouse.sh

deb: wheelhouse ## the Debian package, built without a network
	@packaging/deb.sh

deb-cuda: wheelhouse ## it and llmd-cuda, for NVIDIA GPUs; CUDA_ARCHITECTURES as CMake writes them, without it sm_90
	@cuda=$$(packaging/build_cuda.sh) && CUDA=$$cuda packaging/deb.sh

deb-torch: wheelhouse ## it and llmd-torch, which converts Hugging Face models
	@torch=$$(packaging/torch_house.sh) && TORCH=$$torch packaging/deb.sh

test-deb: wheelhouse ## the package in a Debian 12 of its own: install, first token, remove, purge, build again
	@packaging/test_deb.sh

test-appliance: wheelhouse ## the installed package under systemd: first run, watchdog, kills, reload; TESTS names some
	@packaging/test_appliance.sh $(TESTS)

TIMES ?= 2
test-power: wheelhouse ## the installed package in qemu, whose power fails under load; TIMES=20
	@packaging/test_power.sh $(TIMES)

clean: ## .venv, the model and everything built; not the wheels in ~/.cache/llmd, not STATE
	@rm -rf .venv .build build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find api daemon quantize tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
