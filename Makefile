# The daily handles; `make` lists them. What must hold before a change lands is test.sh's affair.

.DEFAULT_GOAL := help
.PHONY: help fast test one bench hot soak fuzz mutants conformance lint

help: ## list these
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

fast: ## the tests that need no server
	go test . ./internal/connector ./internal/proclist ./internal/driverconn ./internal/wire ./internal/mysqlerr ./internal/fifo ./internal/committable ./internal/repo

test: ## everything, as it must pass before a change lands
	bash ./test.sh

one: ## one test, wherever it is: T=TestName, and S=mariadb, mariadb-11.8 or mysql for one server only
	@test -n "$(T)" || { echo 'which test? make one T=TestName [S=mysql]' >&2; exit 2; }
	@files=$$(grep -rlE --include='*_test.go' '^func $(T)\(' .) || { echo 'there is no test $(T)' >&2; exit 1; }; \
	set -x; go test -count=1 -v -run '^$(T)$$$(if $(S),/^$(S)$$)' $$(dirname $$files | sort -u)

bench: ## plain database/sql and livepool under the same faults, 80 seconds
	go run ./bench

hot: ## what the hot path costs, appended to bench/history.csv: on a quiet machine, with all committed
	go run ./bench -server mariadb -history bench/history.csv hot

soak: ## units of work under random faults: D=15m (how long), S=mysql, pair-mysql or galera-hosts
	go run ./bench soak -duration $(or $(D),5m) $(if $(S),-server $(S))

fuzz: ## each fuzz target in turn: D=1m (how long each)
	FUZZTIME=$(or $(D),1m) bash ./test.sh fuzz

mutants: ## break each promise in turn, and see a test fail: T=COMMIT (those whose sentence has it)
	go run ./internal/lab/mutants $(if $(T),-run '$(T)')

conformance: ## other projects' test suites, on plain database/sql and through livepool: T=mysql (those whose name has it)
	go run ./internal/lab/conformance $(if $(T),-suite '$(T)')

lint: ## what is found without running anything: gofmt, vet, the linters
	bash ./test.sh lint
