# Every target sets up what it needs first; `make help` says what there is.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup doctor build up demo test test-etcd test-reference test-stores test-swaps soak bench check check-rust check-deny check-python clean

cache := $(or $(BEIGE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/beige)
checks := $(cache)/python/checks/bin
# The etcd layer meets two servers: the one on PATH, and one that is as new as can be had.
# Most of what they do is wait.
etcd_tests = cargo test --locked -p cluster --test against_etcd -- --test-threads=4
with_current_etcd := BEIGE_TEST_ETCD=$(cache)/bin/etcd-current
# Set-up says that there was nothing to do only to whoever asked for it.
quiet := $(if $(filter setup,$(MAKECMDGOALS)),,--quiet)
# One set of packages and features for all that is built for use, so that nothing is compiled twice.
services := --locked --release -p cli -p gateway -p trainer -p worker
# What `make soak` does, and when it ends in any case.
SWAPS ?= 1000
MINUTES ?= 60
python_files = $(shell git ls-files -co --exclude-standard -- '*.py'; \
	git grep --untracked -lI '^\#!/usr/bin/env python3' -- ':!*.py')

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## put in place what this machine lacks to build and run Beige
	@scripts/setup $(quiet)

doctor: ## print what this machine has and what it lacks
	@scripts/doctor

build: setup ## build the release binaries: beige, beige-gateway, beige-trainer, beige-worker
	cargo build $(services)

up: build ## run a local cluster until Ctrl-C
	target/release/beige up

demo: build ## run a cluster, embed, search, rerank and fine-tune on it, and stop it
	@scripts/demo

test: setup ## run every test
	@scripts/setup --quiet --also python-checks
	cargo test --workspace --locked --no-fail-fast
	$(checks)/pytest -q -p no:cacheprovider scripts/tests
	@scripts/setup --quiet --only etcd-current || { echo 'not tested against a current etcd'; exit 0; }; \
	$(with_current_etcd) $(etcd_tests)

test-etcd: setup ## run the tests of the etcd layer against this machine's etcd and a current one
	@scripts/setup --quiet --only etcd-current
	$(etcd_tests)
	$(with_current_etcd) $(etcd_tests)

test-reference: setup ## see whether sentence-transformers reads what was trained as Beige does
	@tests/reference/environment flagembedding >/dev/null
	cargo test --locked --workspace --test rank -- --ignored

test-stores: setup ## run the tests of the checkpoint store against MinIO and fake-gcs-server
	@scripts/setup --quiet --only minio,fake-gcs
	PATH="$(cache)/bin:$$PATH" cargo test --locked -p store --features servers --test behaviour

test-swaps: setup ## run the scenarios of swaps on real processes alone
	cargo test --locked --workspace --test swaps --no-fail-fast

soak: setup ## swap checkpoints under load, SWAPS times or for MINUTES, and say whether anybody noticed
	cargo build $(services) -p tests --bins --examples
	target/release/examples/soak --swaps $(SWAPS) --minutes $(MINUTES)

bench: setup ## measure Beige beside its peers on this machine
	cargo build $(services) -p model -p bench --bins --examples
	@bench/run

check: check-rust check-deny check-python ## run what continuous integration refuses a change for

check-rust: setup ## check the format, the lints and the documentation
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features store/servers --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked

check-deny: ## check which crates may come in, their licences and where they come from
	@scripts/setup --quiet --only cargo-deny
	$(cache)/bin/cargo-deny --locked check bans licenses sources

check-python: ## check the scripts' format, lints and types
	@scripts/setup --quiet --only python-checks
	$(checks)/ruff format --no-cache --config scripts/ruff.toml --check $(python_files)
	$(checks)/ruff check --no-cache --config scripts/ruff.toml $(python_files)
	cd scripts && $(checks)/mypy --no-incremental --cache-dir=/dev/null --strict --scripts-are-modules setup doctor provision tests

clean: ## remove what was built here; the cache, which other checkouts use too, stays
	cargo clean
