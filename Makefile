SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

FUZZTIME ?= 60s

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

ADDR ?= 127.0.0.1:8080
DATA ?=

.PHONY: run
run: ## run all services in one process at ADDR, with the folder DATA or a sample; state is kept in .state
	@echo "Building bin/standalone and bin/sluice; the first time takes minutes."
	@CGO_ENABLED=0 go build -trimpath -o bin/ ./services/standalone ./services/sluice
	@exec bin/standalone --state .state --addr "$(ADDR)" $(if $(DATA),--data "$(DATA)")

.PHONY: demo
demo: ## run one export from kick-off to verified files, with synthetic patients
	@scripts/demo.sh

.PHONY: test
test: ## run the tests under the race detector, with real Redis, MinIO and PostgreSQL servers; a skip fails
	@scripts/test.sh

.PHONY: test-long
test-long: ## also run the long tests: outages, storms of stops, a rolling upgrade, the admin page in a browser
	@TESTFLAGS="-tags=long $(TESTFLAGS)" scripts/test.sh

.PHONY: containers-test
containers-test: ## test `make up`: exports while containers are killed, paused, restarted, cut off and scaled
	@scripts/engine.sh scripts/containers-test.sh

.PHONY: k8s-test
k8s-test: ## test k8s/overlays/production in a real cluster: KEDA scales, a worker is killed, an upgrade, a drain; as root
	@scripts/engine.sh scripts/k8s-test.sh

.PHONY: chaos
chaos: ## break one thing after the other for 10 minutes while clients export; scripts/chaos.sh has settings
	@scripts/chaos.sh

.PHONY: verify
verify: ## run all other checks: modules, generated code, lint, vulnerabilities, alert rules, Kubernetes
	@scripts/verify.sh

.PHONY: bench
bench: ## measure export throughput
	@scripts/bench.sh

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (60s) each
	@FUZZTIME=$(FUZZTIME) scripts/fuzz.sh

.PHONY: shots
shots: ## retake the screenshots of the admin page in docs/img
	@mkdir -p docs/img
	@SLUICE_SCREENSHOTS=$(CURDIR)/docs/img TESTFLAGS="-tags=long -run=TestOperatorsPage" scripts/test.sh ./services/e2e

.PHONY: gen
gen: ## regenerate the Go of proto/ and the PrometheusRule of k8s/monitoring
	@scripts/gen.sh .

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
up: ## start the whole system in containers with PATIENTS (50) synthetic patients, and print how to export
	@scripts/compose.sh up

.PHONY: down
down: ## remove the containers, their volumes and their secrets
	@scripts/compose.sh down

.PHONY: images
images: ## build the images of VERSION, with labels and bills of materials; the same commit gives the same images
	@scripts/engine.sh scripts/images.sh
