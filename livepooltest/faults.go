package livepooltest

// This file says which fault is due, and when. What it does to a connection is in
// connection.go for a real server, and in mock.go for sqlmock.

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// A CommitLoss says on which side of a COMMIT the connection is lost.
type CommitLoss string

const (
	// BeforeApplied: COMMIT was sent and did not arrive. The server rolls back.
	BeforeApplied CommitLoss = "BeforeApplied"
	// AfterApplied: the server has committed, and its answer does not arrive.
	AfterApplied CommitLoss = "AfterApplied"
)

// Answers of a server, for NextStatement, with the codes and texts of MySQL. Every other
// mysql.MySQLError may be given as well.
var (
	// Deadlock: the server has rolled the transaction back.
	Deadlock = answer(1213, "40001", "Deadlock found when trying to get lock; try restarting transaction")
	// LockWait: the statement has waited for a lock for too long. The transaction goes on.
	LockWait = answer(1205, "HY000", "Lock wait timeout exceeded; try restarting transaction")
	// ReadOnly: the server takes no writes, as after a failover. The transaction goes on.
	ReadOnly = answer(1290, "HY000", "The MySQL server is running with the --read-only option so it cannot execute this statement")
	// Interrupted: KILL QUERY has ended the statement. The transaction goes on.
	Interrupted = answer(1317, "70100", "Query execution was interrupted")
)

func answer(number uint16, state, text string) mysql.MySQLError {
	return mysql.MySQLError{Number: number, SQLState: [5]byte([]byte(state)), Message: text}
}

// Faults are the faults of a server and of the way to it. FailNextCommit and NextStatement
// hit once for each call, in the order of the calls. The methods may be called from any
// goroutine, and before or after connections are opened.
type Faults struct {
	t testing.TB

	mu    sync.Mutex // guards what follows
	due   []*fault
	slow  time.Duration
	hole  chan struct{} // closed by Restore; nil while there is no black hole
	conns map[losable]bool
}

// A fault hits one statement.
type fault struct {
	call      string // that has asked for it, as the test's source has it
	meets     func(query string) bool
	applies   bool              // the statement reaches the server
	rollsBack bool              // it does not, and the server rolls back
	answer    *mysql.MySQLError // nil: the connection is lost
}

// losable is a connection that can be lost.
type losable interface{ lose() }

func newFaults(t testing.TB) *Faults { return &Faults{t: t, conns: map[losable]bool{}} }

// FailNextCommit has the connection lost around the next COMMIT, of whatever connection.
// livepool cannot know on which side that was, and reports livepool.ErrCommitUnknown;
// with Once or VerifyCommit it finds out.
func (f *Faults) FailNextCommit(when CommitLoss) {
	f.add(&fault{
		call:      "FailNextCommit(" + string(when) + ")",
		meets:     func(query string) bool { return strings.EqualFold(query, "COMMIT") },
		applies:   when == AfterApplied,
		rollsBack: when == BeforeApplied,
	})
}

// NextStatement has the server answer the next statement whose text contains this one, in
// whatever case, with an error, and not run it. Of a prepared statement the execution is
// hit. Deadlock, and what else has SQLSTATE 40001, rolls the transaction back on the
// server.
func (f *Faults) NextStatement(text string, err mysql.MySQLError) {
	f.t.Helper()
	if text == "" {
		f.t.Error("livepooltest: NextStatement needs a text: any statement would be hit, livepool's own too")
		return
	}
	text = strings.ToUpper(text)
	f.add(&fault{
		call:      "NextStatement(" + text + ")",
		meets:     func(query string) bool { return strings.Contains(strings.ToUpper(query), text) },
		rollsBack: string(err.SQLState[:]) == "40001",
		answer:    &err,
	})
}

// GoAway has all connections lost that there are, in use or not. New ones work. The server
// rolls back what was not committed.
func (f *Faults) GoAway() {
	f.mu.Lock()
	lost := maps.Clone(f.conns)
	f.mu.Unlock()
	for c := range lost {
		c.lose()
	}
}

// Slow has each statement and each ping take that much longer, logins not. 0, the default,
// ends it.
func (f *Faults) Slow(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.slow = d
}

// BlackHole has nothing arrive any more, in either direction, on new connections neither;
// nothing is closed. What was sent arrives after Restore. (On a Mock new connections are
// opened, and only what they are asked is held up.)
func (f *Faults) BlackHole() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hole == nil {
		f.hole = make(chan struct{})
	}
}

// Restore ends BlackHole and Slow.
func (f *Faults) Restore() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.slow = 0
	if f.hole != nil {
		close(f.hole)
		f.hole = nil
	}
}

// end is called when the test is over.
func (f *Faults) end() {
	f.Restore()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, left := range f.due {
		f.t.Errorf("livepooltest: %s has met no statement: the test has not seen this fault", left.call)
	}
}

func (f *Faults) add(due *fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.due = append(f.due, due)
}

// meet returns the fault that hits a statement, nil for none.
func (f *Faults) meet(query string) *fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.due, func(due *fault) bool { return due.meets(query) })
	if i < 0 {
		return nil
	}
	due := f.due[i]
	f.due = slices.Delete(f.due, i, i+1)
	return due
}

// pass holds up what is under way, and says whether it arrives: not if the connection, or
// who waits for it, has ended before. Only a request is slow.
func (f *Faults) pass(request bool, ended, given <-chan struct{}) bool {
	f.mu.Lock()
	slow, hole := f.slow, f.hole
	f.mu.Unlock()
	if request && slow > 0 && !comes(time.After(slow), ended, given) {
		return false
	}
	return hole == nil || comes(hole, ended, given)
}

// comes says whether what is awaited comes before the others.
func comes[T any](awaited <-chan T, ended, given <-chan struct{}) bool {
	select {
	case <-awaited:
		return true
	case <-ended:
	case <-given:
	}
	return false
}

func (f *Faults) track(c losable) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns[c] = true
}

func (f *Faults) forget(c losable) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
}
