# The commands of this project. `make` lists them.

# Tests wait for servers more than they compute.
export RUST_TEST_THREADS ?= 4

.PHONY: help demo test test-examples test-guide test-postgres test-clients test-durable-streams chaos \
  load bench mutants test-containers lint fmt dist deb image test-packages

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Install what is missing, build, and play the story; EXIT=1 ends after it
	@scripts/demo

test: ## Install what is missing, and run every test on private servers
	@scripts/install-servers
	cargo test --locked

test-examples: ## Install what the examples need, and play them in a browser; run the recipes
	@scripts/test-examples

test-guide: ## Follow the guide as a reader does, each command and each page: PAGE=ten-minutes for one
	@scripts/test-guide

dist: ## Build the release as a tarball in target/dist; BINARY names a program that is built already
	@packaging/dist

deb: dist ## Build the Debian package in target/dist
	@packaging/deb/build

image: dist ## Build the container image: IMAGE is its name, BASE another image to build on
	@packaging/image/build

test-packages: ## Test tarball, package, image and manifests, of a debug build or of BINARY: ONLY=dist
	@scripts/install-servers --for-packages
	@ONLY="$(ONLY)" scripts/test-packages

VERSIONS ?= 13 14 15 16 17 18
test-postgres: ## Run the core's tests on each major version of Postgres: VERSIONS="13 18", ONLY=modules
	@scripts/install-servers
	@ONLY="$(ONLY)" scripts/test-postgres $(VERSIONS)

test-clients: ## Test the browser client with node and in Chromium, at a real server
	@scripts/install-servers --with-npm
	cargo build --locked
	cd clients/js && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && npm test --silent

test-durable-streams: ## Run the published suite of the Durable Streams protocol, and its client
	@scripts/install-servers --with-npm
	cargo build --locked
	cd tests/durable-streams && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && \
	  npm test --silent

SEED ?= 1
MINUTES ?= 3
TARGET ?= single
chaos: ## Break everything at random and compare: SEED, MINUTES, TARGET=single|sentinel|cluster
	@scripts/install-servers
	cargo test --locked --test chaos -- --seed $(SEED) --minutes $(MINUTES) --target $(TARGET)

SCENARIO ?= fanout
ARGS ?=
load: ## Load a release build with real clients: SCENARIO=fanout|storm|rolling|stuck|floor|drain|append, ARGS
	@scripts/install-servers
	cargo build --release --locked
	cargo test --release --locked --test load -- $(SCENARIO) $(ARGS)

TIMES ?= 3
bench: ## Each part beside its floor on a release build, TIMES runs: a table, JSON and pictures in target/bench
	@scripts/install-servers
	cargo build --release --locked
	cargo test --release --locked --test load -- bench --times $(TIMES)

SECONDS ?= 600
fuzz: ## Feed frames, ids and envelopes with what breaks most: SECONDS for each of them
	scripts/fuzz $(SECONDS)

ONLY ?=
mutants: ## Take conditions out one at a time, and expect tests to fail: ONLY=a word of their names or files
	@scripts/install-servers
	scripts/mutants $(ONLY)
	@if cargo mutants --version >/dev/null 2>&1; then cargo mutants; \
	else echo "cargo-mutants is not installed: the pure modules are left out"; fi

test-containers: ## Run every test on containers: TEST_POSTGRES_IMAGE, TEST_REDIS_IMAGE
	TEST_CONTAINERS=1 cargo test --locked

lint: ## Formatting, lints and documentation (warnings denied), and dependencies
	cargo fmt --check
	cargo fmt --check --manifest-path examples/orders-rust/Cargo.toml
	cargo clippy --locked --all-targets -- --deny warnings
	cargo clippy --locked --no-default-features -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --locked --no-deps
	@if ! cargo deny --version >/dev/null 2>&1; then \
	  echo "cargo-deny is not installed: licenses, bans, sources and advisories are not checked"; \
	else \
	  cargo deny --locked check --hide-inclusion-graph licenses bans sources || exit 1; \
	  if cargo deny fetch db >/dev/null 2>&1; then cargo deny --locked check --disable-fetch advisories; \
	  else echo "the advisory database cannot be reached: advisories are not checked"; fi; \
	fi

fmt: ## Format the sources
	cargo fmt
	cargo fmt --manifest-path examples/orders-rust/Cargo.toml
