# Everything that one does with gaisnet. `make help` lists it.
#
# Targets that compile with libtorch depend on `setup`, which puts libtorch into a cache outside the
# checkout and changes nothing when it is there.

.DEFAULT_GOAL := help
.PHONY: help setup build demo test chaos verify fix bench bench-finetune doc clean

CARGO ?= cargo
# Everything but libtorch: a relay or broker on an old gateway is built so.
LIGHT := --no-default-features --features runtime,mqtt,broker,store,web,cli,sim
# cargo-nextest runs tests in parallel processes; plain cargo does where it isn't installed.
NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo nextest)
DENY := $(shell $(CARGO) deny --version >/dev/null 2>&1 && echo deny)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## libtorch into a shared cache, once a machine
	@.ci/libtorch

# The demo's report names the commit that it was built from.
build demo: export GAISNET_COMMIT ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)

build: setup ## the program, optimised: target/release/gaisnet
	$(CARGO) build --release

demo: setup ## two sites, four machines and a cloud learn together on this machine (ARGS=... for more)
	$(CARGO) run --release -- demo $(ARGS)

# Some tests need the recordings; those that lack something else (a broker, a tool) write a line into a
# file, since runners hide what passing tests print. The library's tests run in one process: for each
# process the system links libtorch, which takes longer than most of them.
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
test: export GAISNET_SKIP_LOG := $(TARGET)/skipped
test: setup ## all tests, documentation examples too
	$(CARGO) test --all-features --lib --bins --tests --examples --no-run
	@$(TARGET)/debug/gaisnet data fetch bearings || echo "note: no recordings, so the tests on them are skipped"
	@$(TARGET)/debug/gaisnet data fetch excavators || echo "note: no work orders, so the tests on them are skipped"
	@for set in fashion-mnist mnist; do $(TARGET)/debug/gaisnet data fetch $$set \
	  || echo "note: no $$set, so the tests on it are skipped"; done
	@for model in smollm2-135m minilm-l6; do $(TARGET)/debug/gaisnet model fetch $$model \
	  || echo "note: no $$model, so the tests on it are skipped"; done
	@rm -f $(GAISNET_SKIP_LOG)
	$(CARGO) test --all-features --lib --no-fail-fast
ifeq ($(NEXTEST),nextest)
	$(CARGO) nextest run --all-features --no-fail-fast -E 'not kind(lib)'
else
	$(CARGO) test --all-features --bins --tests --no-fail-fast
endif
	$(CARGO) test --all-features --doc
	@if [ -s $(GAISNET_SKIP_LOG) ]; then echo "skipped tests: $$(wc -l < $(GAISNET_SKIP_LOG))"; cat $(GAISNET_SKIP_LOG); fi

# The program without libtorch, so that processes start quickly; docs/chaos.md tells the variables.
# CHAOS_BUILD=--all-features takes the one that `make test` has built.
CHAOS_BUILD ?= $(LIGHT),failpoints
chaos: export GAISNET_SKIP_LOG := $(TARGET)/skipped
chaos: ## real processes and brokers that die, hang and lie, and what the ledgers say then (QUICK=1: minutes, else an hour)
	$(CARGO) test $(CHAOS_BUILD) --test chaos -- --ignored --nocapture chaos

# From the smallest build to the largest: a mistake in the pure half shows in seconds, and each step
# uses what the ones before it compiled.
verify: setup ## what CI checks before the tests; changes nothing
	$(CARGO) fmt --all --check
	$(CARGO) check --no-default-features --lib
	$(CARGO) clippy --no-default-features --lib -- -D warnings
	$(CARGO) clippy $(LIGHT) --all-targets -- -D warnings
	$(CARGO) clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps
ifeq ($(DENY),deny)
	$(CARGO) deny check bans licenses sources
else
	@echo "note: cargo-deny is not installed, dependencies were not checked (cargo install cargo-deny)"
endif

fix: setup ## formats, and applies what clippy can repair; the one target that edits sources
	$(CARGO) fmt --all
	$(CARGO) clippy --fix --allow-dirty --allow-staged --all-targets
	$(CARGO) fmt --all

bench: setup ## figures beside their references, as a table (JSON=out.json writes them too, ARGS=... for more)
	$(CARGO) bench --bench gaisnet -- $(if $(JSON),--json $(JSON)) $(ARGS)

# Work files hold the same tokens for both sides; benches/peers/make-venv makes the peer's Python.
PEERS := $(or $(PEERS_VENV),$(HOME)/.cache/gaisnet/peers-venv)/bin/python
bench-finetune: setup ## SmolLM2 beside transformers + peft (GGUF=model.gguf WORK="a.safetensors b.safetensors")
	$(CARGO) bench --bench finetune -- --gguf $(GGUF) $(addprefix --work ,$(WORK)) --python $(PEERS) $(if $(JSON),--json $(JSON)) $(ARGS)

doc: setup ## the documentation of the code: target/doc/gaisnet/index.html
	$(CARGO) doc --no-deps

clean: ## removes what was built and the demo's folder; the libtorch cache stays
	$(CARGO) clean
	rm -rf demo
	rm -f .libtorch
