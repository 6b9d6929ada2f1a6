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
BENCH_FLAGS   ?= --each 3s
SEEDS         ?= 200
STEPS         ?= 10000000
SPENDS        ?= 1000000
FUZZ          ?= 30s
DELIVERIES    ?= 1000000

.DEFAULT_GOAL := help
.PHONY: help build demo test lint bench oracle proof contention storm fuzz fmt clean FORCE

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

bench: build ## measure the metering API beside its yardsticks; BENCH_FLAGS="--each 30s" measures longer
	@scripts/need postgres
	$(BIN) bench $(BENCH_FLAGS)
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
	$(GO) test -count=1 -timeout=4h -run TestT4 -v ./meter -spends $$(( $(SPENDS) / 5 ))

storm: ## let Stripe's webhooks arrive DELIVERIES=1000000 times, in disorder, badly signed or not at all
	@scripts/need postgres
	$(GO) test -count=1 -timeout=4h -run TestStorm -v ./webhooks -deliveries $(DELIVERIES)

fuzz: ## fuzz each target for FUZZ=30s
	@scripts/need postgres
	@grep -rHoE --include='*_test.go' --exclude-dir=.cache --exclude-dir=conformance '^func Fuzz[A-Za-z0-9_]+' . | sed 's|/[^/]*:func | |' | \
	while read -r package target; do \
		echo "$$target in $$package"; $(GO) test $$package -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZ) </dev/null || exit 1; \
	done

clean: ## remove what was built
	rm -rf bin .cache conformance/node/node_modules clients/typescript/node_modules clients/typescript/dist
