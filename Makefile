SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

FUZZTIME ?= 60s

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: ## run everything in one process on this machine; state is kept in .state
	@CGO_ENABLED=0 go build -trimpath -o bin/ ./services/standalone
	@exec bin/standalone --state .state

.PHONY: demo
demo: ## show an export from kick-off to files, on synthetic patients
	@scripts/demo.sh

.PHONY: test
test: ## run all tests under the race detector beside a real Redis and MinIO; a skip fails
	@scripts/test.sh

.PHONY: verify
verify: ## check what no test does: modules, generated code, proto compatibility, lint, layout
	@scripts/verify.sh

.PHONY: bench
bench: ## measure export throughput
	@scripts/bench.sh

.PHONY: fuzz
fuzz: ## fuzz every fuzz target for FUZZTIME (60s) each
	@FUZZTIME=$(FUZZTIME) scripts/fuzz.sh

.PHONY: shots
shots: ## take the pictures of the operator's page in docs/img anew
	@mkdir -p docs/img
	@SLUICE_SCREENSHOTS=$(CURDIR)/docs/img TESTFLAGS=-run=TestOperatorsPage scripts/test.sh ./services/e2e

.PHONY: gen
gen: ## regenerate proto/ from its .proto files
	@scripts/gen.sh proto

.PHONY: lint
lint: ## run golangci-lint over each module
	@scripts/lint.sh

.PHONY: settings
settings: ## regenerate the table in docs/configuration.md
	@go run ./services/config/internal/configdoc docs/configuration.md
gen: settings

.PHONY: build
build: ## build every service into bin/
	@mkdir -p bin
	@mains=$$(go list -f '{{if eq .Name "main"}}{{.ImportPath}}{{end}}' ./services/... | grep -v /internal/); \
		if [ -z "$$mains" ]; then echo "services/ has no main package" >&2; exit 1; fi; \
		CGO_ENABLED=0 go build -trimpath -o bin/ $$mains; \
		for main in $$mains; do echo "bin/$${main##*/}"; done

.PHONY: up
up: ## start the whole system in containers with sample data, and say how to export
	@scripts/compose.sh up

.PHONY: down
down: ## remove the containers, what they hold, and their secrets
	@scripts/compose.sh down
