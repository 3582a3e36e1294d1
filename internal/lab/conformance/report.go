package main

// This file says what came of the suites: to the person who ran them, and in docs/conformance.md.

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// report says what is wrong with a result, and how often something is.
func (r result) report(w io.Writer, verbose bool) (problems int) {
	where := r.name + " on " + r.server
	fmt.Fprintf(w, "%s: took %s; livepool opened %d pools\n", where, r.took.Round(time.Second), r.livepool.pools)
	for _, name := range r.settled {
		fmt.Fprintf(w, "%s: %s was as expected only when it was run again alone\n", where, name)
	}
	for _, name := range r.failed {
		if verbose {
			fmt.Fprintf(w, "%s: %s fails on both:\n%s", where, name, r.plain.said[name])
		}
	}
	unknown := map[string]bool{}
	for _, name := range r.unknown {
		unknown[name] = true
		problems++
		fmt.Fprintf(w, "%s: DIFFERENCE without an explanation: %s: %s on plain database/sql, %s through livepool\n",
			where, name, ended(r.plain.outcomes[name]), ended(r.livepool.outcomes[name]))
	}
	for _, name := range r.obsolete {
		problems++
		fmt.Fprintf(w, "%s: OBSOLETE: %s does not differ: remove its explanation\n", where, name)
	}
	for _, name := range r.differences {
		if verbose || unknown[name] {
			fmt.Fprintf(w, "\n%s: %s on plain database/sql:\n%s\n%s: %s through livepool:\n%s", where, name, r.plain.said[name], where, name, r.livepool.said[name])
		}
	}
	return problems
}

func ended(outcome string) string {
	if outcome == "" {
		return "did not end"
	}
	return outcome
}

// table has a row for each result.
func table(results []result) string {
	var b strings.Builder
	b.WriteString("| tests of | version | server | tests | same outcome | of these fail on both | skipped on both | explained differences |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		fmt.Fprintf(&b, "| %s | %s | %s | %d | %d | %d | %d | %d |\n", r.name, r.version, r.server, r.tests, r.same, len(r.failed), r.skipped, len(r.differences)-len(r.unknown))
	}
	return b.String()
}

// page is docs/conformance.md.
func page(results []result) string {
	var b strings.Builder
	fmt.Fprintf(&b, pageHead, table(results))
	seen := map[string]bool{}
	for _, r := range results {
		for _, test := range r.explained {
			if row := fmt.Sprintf("| %s | `%s` | %s |\n", r.name, test, r.why[test]); !seen[row] {
				seen[row] = true
				b.WriteString(row)
			}
		}
	}
	b.WriteString(pageTail)
	for _, l := range leftOut {
		fmt.Fprintf(&b, "| %s | %s |\n", l[0], l[1])
	}
	return b.String()
}

const pageHead = `# Conformance

What works on a ` + "`*sql.DB`" + ` works on livepool's. The test suites of other projects know best what that is, so
they are run twice: on plain ` + "`database/sql`" + ` and through livepool with its defaults, by one program, on the
same server. ` + "`sql.Open(\"mysql\", dsn)`" + ` is ` + "`livepool.Open(dsn)`" + ` in the second run, and any other connector gets
` + "`livepool.NewConnector`" + ` around it. No file of a suite is changed for that, but for the few lines in which
a test looks below ` + "`database/sql`" + `.

` + "`go run ./internal/lab/conformance -docs`" + ` writes this page. It fails if an outcome differs that is not
explained below, and if one that is explained no longer differs.

%s
A test counts, and so does each of its subtests. Those that fail on both have reasons of their own:
ent's need SQLite, which is not built in.

## The differences

| tests of | test | why it is right that it differs |
|---|---|---|
`

const pageTail = `
## Left out

| suite | why |
|---|---|
`
