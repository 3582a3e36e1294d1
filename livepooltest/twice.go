package livepooltest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/livepool/livepool"
)

// A State is something that a job may change, and that Twice looks at.
type State struct {
	what string // the beginning of a sentence
	hint string
	read func(context.Context, *livepool.Session) ([]string, error)
}

// Rows are the rows that a query finds, in whatever order. A column that differs by itself,
// such as a time or an AUTO_INCREMENT, of which the server takes no number back, should not
// be among them.
func Rows(query string, args ...any) State {
	return State{
		what: "the rows of " + query,
		hint: "what the function does outside its transaction is not rolled back: does it add to a variable that it has not " +
			"set itself, or use the pool where it means its session?",
		read: func(ctx context.Context, s *livepool.Session) ([]string, error) { return readRows(ctx, s, query, args) },
	}
}

// Effect is something outside the database: how many mails were sent, say, or the list of
// what was told to another service. value is called at the end of each run, in the
// goroutine of Twice, and what it returns is compared as fmt's %+v prints it.
func Effect(name string, value func() any) State {
	return State{
		what: name,
		hint: "do it in Session.AfterCommit, which is called once, or so that it may be repeated.",
		read: func(context.Context, *livepool.Session) ([]string, error) {
			return []string{fmt.Sprintf("%+v", value())}, nil
		},
	}
}

func readRows(ctx context.Context, s *livepool.Session, query string, args []any) (lines []string, err error) {
	rows, err := s.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	values, into := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		cells := make([]string, len(columns))
		for i, v := range values {
			if text, ok := v.([]byte); ok {
				v = string(text)
			}
			cells[i] = fmt.Sprintf("%s=%v", columns[i], v)
		}
		lines = append(lines, strings.Join(cells, " "))
	}
	slices.Sort(lines)
	return lines, rows.Err()
}

// runAgain has the server say that there is a deadlock, for which livepool rolls back and
// runs the unit again. A Mock says so by itself.
const runAgain = "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'livepooltest.Twice runs the unit again'"

// Twice checks that the function of a unit of work may be run again, which livepool does
// after a lost connection or a deadlock. It runs job in a unit of pool; then the unit meets a
// deadlock, is rolled back, and job is run again and committed. At the end of both runs,
// before COMMIT, it looks at the states: where the second run ends with another state than
// the first, or with an error, the test fails and says what differs. What waits for
// Session.AfterCommit happens once, after that, and is not compared.
//
// Afterwards the job is applied, once, for the test to go on with. job may itself call
// WithSession with the context that it gets: it joins the unit. The pool may be on any
// server that knows SIGNAL, through a Proxy or not, or on a Mock, which then expects all
// that happens twice, the queries of Rows included: a rollback after the first time, a
// commit after the second.
func Twice(t testing.TB, pool *livepool.Pool, job func(context.Context, *livepool.Session) error, states ...State) {
	t.Helper()
	begun := 0            // runs
	var seen [][][]string // by runs that came to their end, and by states
	err := pool.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		begun++
		if err := job(ctx, s); err != nil {
			return err
		}
		found := make([][]string, len(states))
		for i, state := range states {
			var err error
			if found[i], err = state.read(ctx, s); err != nil {
				return fmt.Errorf("reading %s: %w", state.what, err)
			}
		}
		if seen = append(seen, found); len(seen) > 1 {
			return nil
		}
		_, err := s.ExecContext(ctx, runAgain)
		return err
	}, livepool.Name("livepooltest.Twice"), livepool.MaxAttempts(10))
	switch {
	case len(seen) == 0:
		t.Fatalf("livepooltest: Twice: the first run failed, so that there is nothing to compare: %v", err)
	case len(seen) == 1 && begun == 1:
		t.Fatalf("livepooltest: Twice: the unit was not run again after its first run: %v", err)
	case err != nil:
		t.Fatalf("livepooltest: Twice: the first run succeeded and was rolled back, and the second failed, "+
			"as it would after a lost connection or a deadlock: %v", err)
	}
	for i, state := range states {
		once, twice := seen[0][i], seen[len(seen)-1][i]
		if differ := append(missing("one run", once, twice), missing("two runs", twice, once)...); len(differ) > 0 {
			t.Errorf("livepooltest: Twice: %s: not the same after two runs, the first of them rolled back, as after one:\n\t%s\n%s",
				state.what, strings.Join(differ, "\n\t"), state.hint)
		}
	}
}

// mostShown is how many lines are shown of those that differ.
const mostShown = 10

// missing are the lines that the others lack.
func missing(after string, lines, others []string) (found []string) {
	others = slices.Clone(others)
	for _, line := range lines {
		if i := slices.Index(others, line); i >= 0 {
			others = slices.Delete(others, i, i+1)
			continue
		}
		found = append(found, "only after "+after+": "+line)
	}
	if n := len(found); n > mostShown {
		found = append(found[:mostShown], fmt.Sprintf("and %d more", n-mostShown))
	}
	return found
}
