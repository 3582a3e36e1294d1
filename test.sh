#!/usr/bin/env bash
# Runs every check and test of every module, on real servers that it fetches by
# itself. With CI=true nothing may be skipped. `bash ./test.sh lint` and
# `bash ./test.sh fuzz` run that part alone.
#
# The race detector needs a C compiler: as root it is installed where missing;
# otherwise the tests run without it, and say so.
set -euo pipefail
cd "$(dirname "$0")"

step() { printf '\n== %s\n' "$*"; }

# The tests, and at the end once more which failed and why: that is else lost
# among what the pools of all the tests have logged.
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
tests() { logged "$@" || failures; }
logged() {
	rm -f "$log"/*
	go test "$@" 2>&1 | tee "$log/0"
}
failures() {
	step 'what failed'
	grep -hE '^ *--- FAIL|^ +[a-z_]+\.go:|^panic: |^\s+Test.* \([0-9msh]+\)$|DATA RACE|^goleak: |^FAIL' "$log"/* || tail -n 50 "$log"/*
	return 1
}

# Tests that have real servers and real time, for which two cores may be too few beside
# others: up to three that fail are run again alone, and have to pass three times. A race,
# a panic, a leak or a build that fails is never forgiven.
server_tests() { logged "$@" || again "$@" || failures; }
again() {
	local failed
	! grep -qE 'DATA RACE|^(panic|fatal error|SIG[A-Z]+|goleak): |build failed' "$log"/* || return 1
	failed=$(grep -hoE '^--- FAIL: [A-Za-z0-9_]+' "$log"/* | cut -d' ' -f3)
	[ "$(wc -w <<<"$failed")" -le 3 ] && [ -n "$failed" ] || return 1
	step "alone, because they failed beside others: ${failed//$'\n'/ }"
	go test -count 3 -run "^($(paste -sd '|' <<<"$failed"))\$" "$@"
}

# The tests of one package, which mostly wait, dealt out to several processes side by side.
shards=3
sharded() {
	local names shard pattern failed=0
	names=$(go test -list '^(Test|Example|Fuzz)' "$@" | grep -E '^(Test|Example|Fuzz)')
	rm -f "$log"/*
	for ((shard = 0; shard < shards; shard++)); do
		pattern=$(awk -v n=$shards -v i=$shard 'NR % n == i' <<<"$names" | paste -sd '|')
		go test -run "^($pattern)\$" "$@" >"$log/$shard" 2>&1 &
	done
	for ((shard = 0; shard < shards; shard++)); do wait -n || failed=1; done
	cat "$log"/*
	[ $failed = 0 ] || again "$@" || failures
}

behaviour=./internal/lab/behaviour
beside='./livepooltest ./otel ./prometheus' # modules of their own that are published

# What is found without running anything. The first run compiles the linters, for
# some minutes. They need a newer Go than the library, which go fetches by itself.
linter='github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0'
lint() {
	step 'gofmt'
	local unformatted system
	unformatted=$(gofmt -l .)
	if [ -n "$unformatted" ]; then
		printf 'gofmt would change:\n%s\n' "$unformatted" >&2
		return 1
	fi

	step 'words that this repository has replaced by plainer ones'
	local found=0
	git grep -nP "$(paste -sd '|' internal/lab/words.txt)" -- '*.go' '*.md' '*.sh' || found=$?
	if [ $found != 1 ]; then # 0: there is one; more: git failed
		echo 'plain English takes the place of what internal/lab/words.txt lists' >&2
		return 1
	fi

	step 'vet'
	go vet ./... ./bench/... ./examples/... $beside
	for system in darwin windows; do GOOS=$system go vet ./... $beside; done

	step 'linters'
	GOTOOLCHAIN=auto go run "$linter" run ./... ./bench/... ./examples/... $beside
}

# Every target there is; an input that fails is left in testdata/fuzz beside it.
# By number, because a target whose time is up may fail by that alone ("context
# deadline exceeded").
fuzz() {
	step 'fuzzing, some seconds each'
	local targets file target
	targets=$(grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sort)
	while IFS=: read -r file target; do
		echo "${target#func }"
		go test -run '^$' -fuzz "^${target#func }\$" -fuzztime "${FUZZTIME:-20000x}" -fuzzminimizetime 100x -timeout 5m "$(dirname "$file")" </dev/null
	done <<<"$targets"
}

case "${1:-all}" in
all) ;;
lint | fuzz)
	"$1"
	exit
	;;
*)
	echo 'usage: bash ./test.sh [lint | fuzz]' >&2
	exit 2
	;;
esac

race=-race
if ! command -v cc >/dev/null && ! command -v gcc >/dev/null; then
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		step 'installing a C compiler for the race detector'
		apt-get update -q
		DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends gcc libc6-dev
	elif [ "${CI:-}" = true ]; then
		echo 'the race detector needs a C compiler, such as gcc' >&2
		exit 1
	else
		echo 'SKIPPED the race detector: it needs a C compiler, such as gcc' >&2
		race=
	fi
fi

lint

step 'tests of livepool, without a server'
tests $race -timeout 10m . ./trace

step 'tests of the packages inside, and of the test ground'
# With several CPUs the race detector of Go 1.26 may crash (SIGSEGV) where goroutines of a
# synctest bubble run expired timers side by side: they share its context of the bubble.
bubbles='connector hosts outage proclist'
tests $race -cpu 1 -timeout 20m $(printf './internal/%s ' $bubbles)
server_tests $race -parallel 4 -timeout 20m $(go list ./internal/... | grep -vE "/internal/(${bubbles// /|}|${behaviour#./internal/})\$")

step 'what only a newer Go has, which go fetches by itself'
GOTOOLCHAIN=go1.27.4 go vet ./internal/connector
GOTOOLCHAIN=go1.27.4 tests -timeout 10m ./internal/connector

step 'behaviour on real servers'
sharded $race -parallel 4 -timeout 45m $behaviour

step 'the examples: frameworks on livepool, and the worker'
server_tests $race -timeout 20m ./examples/...

step 'what is published beside it: faults for the tests of users, spans and metrics'
server_tests $race -timeout 10m $beside

fuzz

step 'tests of the benchmark, and each of its benchmarks once'
server_tests $race -p 1 -timeout 20m ./bench/... # one after the other: their jobs have little time
go test -run '^$' -bench . -benchtime 1x ./bench/...

step 'a minute of faults'
go run ./bench soak -duration 1m

step 'the embedded server, in a module of its own'
(cd bench/embedded && GOWORK=off CGO_ENABLED=0 go vet ./... && GOWORK=off CGO_ENABLED=0 go test ./...)
