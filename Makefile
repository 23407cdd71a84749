# Everything a contributor does, by name. `make` alone lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Rust where rustup puts it, for a shell that has not been told, and the tools that `make lint` installs for itself.
export PATH := $(CURDIR)/.sluice-dev/tools/bin:$(PATH):$(HOME)/.cargo/bin

# How `make run` builds, and what it passes on: make run PROFILE=dev ARGS='--help'
PROFILE ?= dev
ARGS ?=

CARGO_DENY_VERSION := 0.20.2

.PHONY: help
help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

## Use

.PHONY: run
run: needs-cargo web ## Build everything and run it here, in one process: ARGS='...' goes to sluice up
	@deploy/dev/packages.sh compiler
	@exec cargo run --profile $(PROFILE) --bin sluice -- up $(ARGS)

.PHONY: services
services: ## Start Postgres, RabbitMQ and Redis of your own, and print their addresses as settings
	@deploy/dev/services.sh install
	@deploy/dev/services.sh start
	@deploy/dev/services.sh env

.PHONY: services-stop
services-stop: ## Stop them, and keep their data
	@deploy/dev/services.sh stop

## Check

.PHONY: test it fault limits webhooks test-web screenshots
test: needs-cargo web ## Run all tests, against services of their own
	@deploy/dev/test.sh all
it: needs-cargo web ## Run the end-to-end tests only
	@deploy/dev/test.sh it
fault: needs-cargo web ## Run only those of them that kill services and processes
	@deploy/dev/test.sh fault
test-web: needs-cargo web ## Run only the tests of the web interface, in Chromium
	@deploy/dev/test.sh web
screenshots: needs-cargo web ## Take the pictures in docs/screenshots anew
	@deploy/dev/packages.sh compiler chromium
	cargo build --bin sluice
	cd web && SLUICE_TEST_CHROMIUM=$$(command -v chromium) npx playwright test --project screenshots
limits: needs-cargo web ## Run the test of limits at full size, and print how much of each was used
	@deploy/dev/test.sh limits
webhooks: needs-cargo web ## Run the fault test of webhooks at full size: 10,000 deliveries, 30 % of which fail
	@deploy/dev/test.sh webhooks

.PHONY: lint
lint: needs-cargo web cargo-deny ## Run every linter; warnings are errors
	@deploy/dev/packages.sh compiler
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps
	cargo deny --log-level error check bans licenses sources
ifneq ($(wildcard web/package.json),)
	cd web && npm run audit
	cd web && npm run lint
endif

.PHONY: bench
bench: needs-cargo web ## Measure it, against services of its own: ARGS='...' goes to sluice-bench
	@deploy/dev/bench.sh $(ARGS)

.PHONY: bench-gateway
bench-gateway: needs-cargo web ## Measure what a call of an SDK costs on its way through, beside the same call without it
	@deploy/dev/bench.sh gateway $(ARGS)

.PHONY: bench-routing
bench-routing: needs-cargo ## Compare the strategies in virtual time: the table of docs/routing.md
	@deploy/dev/packages.sh compiler
	@cargo run --quiet --package sluice-bench -- routing $(ARGS)

.PHONY: fmt
fmt: needs-cargo ## Format the Rust code
	cargo fmt --all

.PHONY: clean
clean: ## Delete what was built, and development services with their data
	@for set in .sluice-dev/services .sluice-dev/run.*/*/; do \
		if [[ -d $$set ]]; then deploy/dev/services.sh --dir "$$set" remove; fi; \
	done
	rm -rf target web/dist web/node_modules .sluice-dev

## Parts

.PHONY: web
ifneq ($(wildcard web/package.json),)
web: web/dist/index.html ## Build the web interface

web_sources := openapi.json $(shell find web -path web/node_modules -prune -o -path web/dist -prune -o \
	-path web/.tanstack -prune -o -path web/test-results -prune -o -path web/src/api/schema.ts -prune -o -type f -print)

web/node_modules/.package-lock.json: web/package.json web/package-lock.json
	@command -v npm >/dev/null || { echo 'Node.js with npm is missing: https://nodejs.org' >&2; exit 1; }
	cd web && npm ci --no-audit --no-fund
	@touch $@

web/dist/index.html: web/node_modules/.package-lock.json $(web_sources)
	cd web && npm run build
	@touch $@
else
web:
endif

.PHONY: needs-cargo
needs-cargo:
	@command -v cargo >/dev/null || { printf '%s\n' \
		'Rust is missing. Install it from https://rustup.rs, or so, and run make again:' \
		"    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y" >&2; exit 1; }

# Compiled once, in a few minutes, where it is not installed.
.PHONY: cargo-deny
cargo-deny: needs-cargo
	@command -v cargo-deny >/dev/null || \
		{ deploy/dev/packages.sh compiler && cargo install cargo-deny --version $(CARGO_DENY_VERSION) --locked --root .sluice-dev/tools; }
