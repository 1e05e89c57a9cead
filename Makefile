# Two commands do everything on a fresh Debian or Ubuntu machine with Python 3.11 or newer:
# `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo quick fix docs test coverage e2e kube gpu fuzz bench lint lock clean

help:
	@sed -n 's/^#: //p' $(MAKEFILE_LIST)

#: make demo      the whole job on an embedded S3
demo: .venv/ready
	$(BIN)/worker demo

#: make quick     lint, types and unit tests, in about a minute
quick: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python .ci/style.py
	$(BIN)/mypy
	$(BIN)/pytest -m unit -n 2 --dist loadfile --hypothesis-profile dev -q

#: make fix       format, and repair what ruff can
fix: .venv/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

#: make docs      write the parts of docs/ that are generated from the code
docs: .venv/ready
	$(BIN)/python -m tests.repository.generated_docs

# Three processes on two cores, as many tests wait for deadlines; each takes about 3 GB.
#: make test      everything on real processes, with an embedded S3
test: .venv/ready
	$(BIN)/pytest -n 3 --dist loadfile

#: make coverage  the same, with the lines of worker/ that no test runs
coverage: .venv/ready
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 3 --dist loadfile
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# Two processes, as most tests wait, and by folder, so that the longest files are not the last; but one
# large backbone at a time, as some take half of 24 GiB.
#: make e2e       real servers, schedulers and engines; crashes; all backbones
e2e: .venv/ready
	.ci/servers
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'e2e and not heavy'
	$(BIN)/pytest -m heavy

# A real Kubernetes control plane with JobSet, Trainer and Kueue, built once into ~/.cache/worker-kube (10 to 25
# minutes on two cores), and the shipped files on it (25 minutes). As root, with Go and iproute2.
#: make kube      a real Kubernetes control plane
kube: .venv/ready
	$(BIN)/pytest -m kube tests/kube

# What only a GPU can show: the tests for one, and what the product does there next to what it could.
#: make gpu       tests and measurements on an NVIDIA GPU
gpu: .venv/ready
	$(BIN)/pytest -m gpu tests/gpu
	$(BIN)/python -m bench.gpu

# A million cases of hostile and damaged input, in about an hour on two cores; `make test` runs a
# thousandth of them.
#: make fuzz      a million damaged or hostile inputs
fuzz: .venv/ready
	$(BIN)/python -m tests.fuzz

# The peers pin other versions of what we use, so they get an environment that only borrows torch.
#: make bench     speed next to peers
bench: .venv-bench/ready
	.venv-bench/bin/python -m bench.loader .venv-bench/data
	.venv-bench/bin/python -m bench.loader .venv-bench/data --latency 20 100
	for name in pack plan decode mixing ledger frozen activations checkpoint metrics step gil start train scale; do .venv-bench/bin/python -m bench.$$name || exit 1; done

.venv-bench/ready: .venv/ready
	$(PYTHON) -m venv .venv-bench
	ls -d $(CURDIR)/.venv/lib/python3.*/site-packages > \
	  $$(ls -d .venv-bench/lib/python3.*/site-packages)/borrowed.pth
	.venv-bench/bin/pip install --quiet --disable-pip-version-check \
	  datasets litdata mosaicml-streaming s3torchconnector webdataset
	{ [ -x /usr/sbin/nginx ] && command -v curl > /dev/null; } || { SUDO=$$([ $$(id -u) = 0 ] || echo sudo); \
	  $$SUDO apt-get update -q; $$SUDO apt-get install -qy nginx-light curl; }
	touch $@

#: make lint      ruff, mypy --strict, docs/style.md, spelling, hadolint
lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python .ci/style.py
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

# Debian and Ubuntu keep venv in a package of its own, and a slim image may lack git, which only
# the checkout needed.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; set PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { SUDO=$$([ $$(id -u) = 0 ] || echo sudo); \
	    V=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	    echo "installing $$V"; $$SUDO apt-get update -q; $$SUDO apt-get install -qy $$V; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	touch $@

# The versions that the tests have passed with, for installs that repeat; and those of the image.
#: make lock      pin what was installed
lock: .venv/ready
	$(BIN)/pip freeze --exclude-editable > constraints.txt
	$(BIN)/uv pip compile --quiet --extra onnx --extra pack --constraints constraints.txt --generate-hashes \
	  --universal --python-version 3.11 --no-annotate --no-header --output-file requirements.lock \
	  pyproject.toml

clean:
	rm -rf .venv .venv-bench
