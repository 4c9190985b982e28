# Two commands matter: `make demo` shows it, `make test` checks it. Both set up what they need.
PYTHON ?= python3
BIN := .venv/bin
# Root installs for all users, and everybody else for themselves.
PREFIX ?= $(if $(filter 0,$(shell id -u)),/usr/local,$(HOME)/.local)

.PHONY: help setup demo install uninstall test lint types layers tests coverage programs soak registries reliability pictures bench audit lock format clean

help:
	@echo 'make demo     publish a sample into a throw-away cache, serve it, say what to try (Ctrl-C ends it)'
	@echo 'make install  the program, with dependencies of its own, into PREFIX: $(PREFIX); make uninstall removes it'
	@echo 'make test     every check: lint, types, layers, tests'
	@echo 'make coverage  the tests, and which lines of the program they run'
	@echo 'make soak     the tests that take minutes: load, faults, large searches'
	@echo 'make registries  the journey of a cache at every registry'"'"'s double with 200 MiB, and at crane'"'"'s and distribution 3, built first (needs Go)'
	@echo 'make reliability  run the fault matrix, and write docs/reliability.md anew from what came of it'
	@echo 'make pictures  take the pictures of the page in docs/pictures anew'
	@echo 'make bench    measure side by side with what a user would take instead; tables and a chart go to bench/results'
	@echo 'make audit    ask for known weaknesses of what is locked (needs the network)'
	@echo 'make setup    .venv for working on it: .venv/bin/nixcache-oci is the program, beside all that the checks need'
	@echo 'make lock     resolve the lock files anew from pyproject.toml'

setup: .venv/.done

# What runs the program comes first, and is all that the demo waits for: linters and tests take longer.
.venv/.runs: workflows/setup/requirements.txt pyproject.toml scripts/setup
	bash scripts/setup '$(PYTHON)' .venv -e .
	@touch $@

.venv/.done: .venv/.runs requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements.txt
	@touch $@

demo: .venv/.runs
	@exec $(BIN)/nixcache-oci demo

install:
	@bash scripts/install '$(PYTHON)' '$(PREFIX)'

uninstall:
	rm -rf '$(PREFIX)/lib/nixcache-oci'
	rm -f '$(PREFIX)/bin/nixcache-oci' '$(PREFIX)/share/bash-completion/completions/nixcache-oci' \
		'$(PREFIX)/share/zsh/site-functions/_nixcache-oci' \
		'$(PREFIX)/share/fish/vendor_completions.d/nixcache-oci.fish' '$(PREFIX)/share/man/man1/nixcache-oci.1'

test: setup programs lint types layers tests

programs: setup .venv/.go-programs .venv/.axe-core
	scripts/test-programs

# A minute at first; later, Go's own cache has what was built. Tried again where it failed.
.venv/.go-programs: .venv/.runs scripts/go-programs
	@scripts/go-programs '$(BIN)' && touch $@ || true

.venv/.axe-core: .venv/.runs scripts/axe-core
	@scripts/axe-core '$(BIN)' && touch $@ || true

# Taken by the test that looks at the page in a browser.
pictures: setup programs
	PAGE_PICTURES=docs/pictures $(BIN)/pytest -n0 tests/proxy/page/test_browser.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

# Three files at a time, for a fifth of what they take is waiting; in their order, which tests/support/order.py says:
# what a file's tests share is made once.
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder

tests: setup
	$(BIN)/pytest $(SIDE_BY_SIDE)

# The same tests, measured, which takes them twice as long.
coverage: setup programs
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(SIDE_BY_SIDE)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=85

# Some of them print figures, which belong to the result.
soak: setup programs
	$(BIN)/pytest -m soak -s

# Not a part of `make test`: building them takes minutes, and large blobs another.
registries: setup
	@scripts/go-programs '$(BIN)' registries || true
	$(BIN)/pytest -m registries

# The soak writes into the same folder, if it is run with the same variable.
reliability: setup programs
	rm -rf build/reliability
	RELIABILITY_RESULTS=build/reliability $(BIN)/pytest tests/reliability tests/hostile tests/fuzz
	$(BIN)/python -m tests.reliability.report build/reliability docs/reliability.md

bench: setup programs
	$(BIN)/python -m bench
	$(BIN)/python -m bench.chart

# The tools that say what is safe, and those that write the locks, are locked themselves.
audit:
	$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check --require-hashes -r scripts/requirements.txt
	for lock in requirements.txt workflows/setup/requirements.txt scripts/completion/requirements.txt scripts/requirements.txt; do \
		.venv-audit/bin/pip-audit --disable-pip --require-hashes -r $$lock || exit 1; done
	rm -rf .venv-audit

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check --require-hashes -r scripts/requirements.txt
	.venv-lock/bin/pip-compile --quiet --extra dev --extra completion --generate-hashes --no-emit-index-url --no-emit-find-links \
		--strip-extras --allow-unsafe --no-header --upgrade -o requirements.txt pyproject.toml
	.venv-lock/bin/pip-compile --quiet --build-deps-for wheel --generate-hashes --no-annotate --no-emit-index-url \
		--no-emit-find-links --strip-extras --allow-unsafe --no-header --upgrade -c requirements.txt \
		-o workflows/setup/requirements.txt pyproject.toml
	.venv-lock/bin/pip-compile --quiet --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
		--strip-extras --allow-unsafe --no-header --upgrade -c requirements.txt \
		-o scripts/completion/requirements.txt scripts/completion/requirements.in
	.venv-lock/bin/pip-compile --quiet --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
		--strip-extras --allow-unsafe --no-header --upgrade -o scripts/requirements.txt scripts/requirements.in
	rm -rf .venv-lock *.egg-info

clean:
	rm -rf .venv .venv-lock .venv-audit build *.egg-info .mypy_cache .hypothesis .coverage*
