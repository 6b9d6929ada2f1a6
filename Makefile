# The two commands that matter: `make demo` shows it, `make test` proves it.
# Both work on a Debian machine that has Go, git and make: what else they need,
# scripts/need finds or installs.

GO            ?= go
BIN           := bin/tallystick
CACHE         := $(CURDIR)/.cache
VERSION       := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LINT_VERSION  := v2.15.0
LINT          := $(CACHE)/bin/golangci-lint-$(LINT_VERSION)
TEST_FLAGS    ?= -race -shuffle=on -timeout=15m
TEST_PACKAGES ?= ./...
BENCH_FLAGS   ?= --each 3s --rows 10000000
SEEDS         ?= 200
STEPS         ?= 10000000
SPENDS        ?= 1000000
OUTAGES       ?= 20
FUZZ          ?= 30s
DELIVERIES    ?= 1000000
DEFECTS       ?= 500
DAYS          ?= 30

.DEFAULT_GOAL := help
.PHONY: help build demo test lint bench oracle proof contention upgrade storm outages campaign mutants fuzz fmt clean FORCE

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: $(BIN) ## build bin/tallystick

# The go command knows best whether anything changed.
$(BIN): FORCE
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-X main.stamp=$(VERSION)' -o $@ ./cmd/tallystick

demo: build ## play a day in the life; ends by itself with CI set or without a terminal
	@scripts/need postgres
	@if [ -n "$$CI" ] || ! [ -t 0 ] || ! [ -t 1 ]; then set -- --exit; fi; $(BIN) demo "$$@"

test: ## run all tests with the race detector
	@scripts/need postgres race node curl
	$(GO) vet $(TEST_PACKAGES)
	$(GO) test $(TEST_FLAGS) $(TEST_PACKAGES)
	cd conformance && $(GO) vet ./... && $(GO) test $(TEST_FLAGS) ./...

lint: $(LINT) ## check format, lint rules and go.mod
	$(LINT) fmt --diff
	$(LINT) run --allow-parallel-runners
	$(GO) mod tidy -diff
	cd conformance && $(LINT) run --allow-parallel-runners -c ../.golangci.yml && $(GO) mod tidy -diff
	@for script in scripts/* .ci/run conformance/*.sh; do bash -n "$$script" || exit 1; done

$(LINT):
	@mkdir -p $(@D)
	GOBIN=$(@D) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	@mv $(@D)/golangci-lint $@

fmt: $(LINT) ## format the Go sources
	$(LINT) fmt

# The tables with ten million usages take 10 GB below /var/tmp while it runs.
bench: build ## measure the metering API beside its yardsticks; BENCH_FLAGS="--each 30s" measures longer
	@scripts/need postgres
	@mkdir -p $(CACHE)
	$(BIN) bench --profile $(CACHE)/bench.pprof $(BENCH_FLAGS)
	$(GO) tool pprof -top -nodecount=10 $(CACHE)/bench.pprof
	@packages=$$(grep -rl --include='*_test.go' --exclude-dir=.cache '^func Benchmark' . | xargs -r -n1 dirname | sort -u); \
	set -x; $(GO) test -run '^$$' -bench . -benchmem -benchtime=2s -timeout=60m $$packages

oracle: ## play SEEDS=200 random stories against the simulator, and compute what it should hold
	$(GO) test -count=1 -timeout=60m -run TestStories -v ./stripesim/oracle ./stripesim/billingoracle -seeds $(SEEDS)

# The kernel takes all STEPS, the store a hundredth, the API and histories less: each takes minutes.
proof: ## hold ledger, store and API against naive ones for STEPS=10000000 random operations
	@scripts/need postgres
	$(GO) test -count=1 -timeout=4h -run AgreesWithNaiveLedger -v ./ledger -steps $(STEPS) -store-steps $$(( $(STEPS) / 100 ))
	$(GO) test -count=1 -timeout=4h -run 'TestT2|TestT5' -v ./meter -api-steps $$(( $(STEPS) / 300 )) -history $$(( $(STEPS) / 250 ))

contention: ## let processes race for the last credits with SPENDS=1000000 operations
	@scripts/need postgres
	$(GO) test -count=1 -timeout=4h -run TestT4 -v ./ledger -spends $(SPENDS)
	$(GO) test -count=1 -timeout=4h -run TestT4 -v ./meter -spends $(SPENDS)

# By default from before the last change of the schema.
upgrade: ## let the version FROM=commit and this one serve one database under load while it migrates
	@scripts/need postgres
	scripts/upgrade $(or $(FROM),$$(git rev-list -1 HEAD -- migrations)^)

storm: ## let Stripe's webhooks arrive DELIVERIES=1000000 times, in disorder, badly signed or not at all
	@scripts/need postgres
	$(GO) test -count=1 -timeout=4h -run TestStorm -v ./webhooks -deliveries $(DELIVERIES)

outages: ## play OUTAGES=20 random campaigns of outages, faults and crashes between us and Stripe
	@scripts/need postgres
	$(GO) test -count=1 -timeout=8h -run TestD08 -v ./internal/app -outages $(OUTAGES)

campaign: ## hold the auditor against SEEDS=200 clean days with faults, and DEFECTS=500 mixes of defects over DAYS=30 each
	@scripts/need postgres
	$(GO) test -count=1 -timeout=72h -run TestCleanMarketHasNoFindings -v ./internal/app -market-seeds $(SEEDS)
	$(GO) test -count=1 -timeout=168h -run TestRandomDefectsAreFoundAndNothingElse -v ./internal/app -defect-seeds $(DEFECTS) -defect-days $(DAYS)

# Each is built, started and played through a story: about ten seconds each.
mutants: ## plant bugs, one at a time, and want the auditor to find each
	@scripts/need postgres
	$(GO) test -count=1 -timeout=2h -run TestMutants -v ./internal/mutants -all

fuzz: ## fuzz each target for FUZZ=30s
	@scripts/need postgres
	@grep -rHoE --include='*_test.go' --exclude-dir=.cache --exclude-dir=conformance '^func Fuzz[A-Za-z0-9_]+' . | sed 's|/[^/]*:func | |' | \
	while read -r package target; do \
		echo "$$target in $$package"; $(GO) test $$package -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZ) </dev/null || exit 1; \
	done

clean: ## remove what was built
	rm -rf bin .cache conformance/node/node_modules clients/typescript/node_modules clients/typescript/dist
