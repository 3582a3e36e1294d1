package behaviour_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// fault is what happens to a unit's connection.
type fault struct {
	name string
	// inject does it between two commands.
	inject func(m *matrix)
	// how a command is cut for it, and what finishes the fault when the cut has
	// struck: nil for nothing. lost says that the reply is not to arrive.
	cut    proxy.Fault
	finish func(m *matrix, lost bool)
}

var faults = []fault{
	{"FIN", func(m *matrix) { m.via.FIN() }, proxy.FIN, nil},
	{"RST", func(m *matrix) { m.via.RST() }, proxy.RST, nil},
	{"black hole", func(m *matrix) {
		m.via.Stall()
		m.later(func() { m.via.Heal() })
	}, proxy.Stall, func(m *matrix, _ bool) {
		m.later(func() { m.via.Heal() })
	}},
	{"SIGKILL, restart", func(m *matrix) { m.crash() }, proxy.Stall, func(m *matrix, lost bool) {
		m.crash()
		m.release(lost)
	}},
	{"KILL", func(m *matrix) { m.kill() }, proxy.Stall, func(m *matrix, lost bool) {
		m.kill()
		m.release(lost)
	}},
}

// A moment is when it happens.
type step struct {
	name string
	// between is after which step of the unit, -1 for a cut command.
	afterStep int
	command   string // begin, write, commit
	after     bool   // forwarded, and the reply lost
}

const (
	beforeBegin = iota
	afterBegin
	betweenStatements
)

var steps = []step{
	{"before BEGIN", beforeBegin, "", false},
	{"after BEGIN", afterBegin, "", false},
	{"statement not forwarded", -1, "write", false},
	{"statement forwarded, reply lost", -1, "write", true},
	{"between statements", betweenStatements, "", false},
	{"COMMIT not forwarded", -1, "commit", false},
	{"COMMIT forwarded, reply lost", -1, "commit", true},
}

// A way is how the unit is run.
type mode struct {
	name     string
	retries  bool // succeeds by itself before COMMIT is sent
	resolves bool // also after
	readOnly bool
	prepared bool
	run      func(m *matrix, unit int, step func(int)) error
}

var modes = []mode{
	{"no option", true, false, false, false, session()},
	{"Once", true, true, false, false, session(func(unit int) livepool.SessionOption { return livepool.Once(fmt.Sprint("unit ", unit)) })},
	{"VerifyCommit", true, true, false, false, session(func(int) livepool.SessionOption { return livepool.VerifyCommit() })},
	{"ReadOnly", true, true, true, false, session(func(int) livepool.SessionOption { return livepool.ReadOnly() })},
	{"prepared", true, false, false, true, session()},
	{"plain BeginTx", false, false, false, false, func(m *matrix, unit int, step func(int)) error {
		step(beforeBegin)
		tx, err := m.pool.BeginTx(m.t.Context(), nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		return errors.Join(m.body(m.t.Context(), tx, unit, step, func() error { return tx.Commit() }))
	}},
}

// session runs the unit in a session with options.
func session(options ...func(unit int) livepool.SessionOption) func(*matrix, int, func(int)) error {
	return func(m *matrix, unit int, step func(int)) error {
		var opts []livepool.SessionOption
		for _, o := range options {
			opts = append(opts, o(unit))
		}
		step(beforeBegin)
		return m.pool.WithSession(m.t.Context(), func(ctx context.Context, s *livepool.Session) error {
			return m.body(ctx, s, unit, step, func() error { return nil })
		}, opts...)
	}
}

// matrix is a pool on a server behind a proxy.
type matrix struct {
	t    *testing.T
	s    *server.Server
	via  *proxy.Proxy
	pool *livepool.Pool
	mode *mode
	done chan struct{} // closed when what was done later is done
}

// body is the unit: a read, and two writes of its row's worth.
func (m *matrix) body(ctx context.Context, db fakedb.Execer, unit int, step func(int), commit func() error) error {
	if _, err := db.ExecContext(ctx, "DO 1"); err != nil { // BEGIN goes with the first statement
		return err
	}
	step(afterBegin)
	write := fmt.Sprintf("INSERT INTO ledger (unit) VALUES (%d)", unit)
	if m.mode.readOnly {
		write = "SELECT COUNT(*) FROM ledger"
	}
	if m.mode.prepared {
		s, err := db.(*livepool.Session).PrepareContext(ctx, "INSERT INTO ledger (unit) VALUES (?)")
		if err != nil {
			return err
		}
		if _, err := s.ExecContext(ctx, unit); err != nil {
			return err
		}
	} else if _, err := db.ExecContext(ctx, write); err != nil {
		return err
	}
	step(betweenStatements)
	if _, err := db.ExecContext(ctx, "DO 2"); err != nil {
		return err
	}
	return commit()
}

func (m *matrix) match(command string) proxy.Match {
	switch {
	case command == "commit":
		return proxy.QueryPrefix("COMMIT")
	case m.mode.readOnly:
		return proxy.QueryPrefix("SELECT COUNT")
	case m.mode.prepared:
		return proxy.Command(proxy.ComStmtExecute)
	default:
		return proxy.QueryPrefix("INSERT INTO ledger")
	}
}

func (m *matrix) later(f func()) {
	m.done = make(chan struct{})
	go func() {
		defer close(m.done)
		time.Sleep(time.Second)
		f()
	}()
}

func (m *matrix) crash() {
	if err := errors.Join(m.s.Kill(), m.s.Start()); err != nil {
		m.t.Error(err)
	}
}

func (m *matrix) kill() {
	if err := m.s.KillConnections(); err != nil {
		m.t.Error(err)
	}
}

// release ends a stall by which a command was held up for a fault.
func (m *matrix) release(lost bool) {
	if lost {
		m.via.FIN()
	}
	m.via.Heal()
}

// run has the fault happen at the step to one unit, and returns what the unit
// said.
func (m *matrix) run(d fault, at step, unit int) error {
	m.done = nil
	struck := false
	step := func(now int) {
		if at.afterStep == now && !struck {
			struck = true
			d.inject(m)
		}
	}
	finished := make(chan struct{})
	if at.afterStep < 0 {
		cut := m.via.CutBefore
		if at.after {
			cut = m.via.CutAfter
		}
		c := cut(m.match(at.command), d.cut)
		go func() {
			defer close(finished)
			<-c.Done()
			if d.finish != nil {
				d.finish(m, at.after)
			}
		}()
	} else {
		close(finished)
	}
	err := m.mode.run(m, unit, step)
	<-finished
	if m.done != nil {
		<-m.done
	}
	return err
}

// rows counts the unit's rows when nothing of it is left on the server.
func (m *matrix) rows(unit int) (n int) {
	m.pool.Recycle() // no connection outlives the unit
	awaitNoTransaction(m.t, m.s)
	return count(m.t, m.s, fmt.Sprintf("ledger WHERE unit = %d", unit))
}

func awaitNoTransaction(t *testing.T, s *server.Server) {
	t.Helper()
	labtest.Eventually(t, "no transaction is open", func() bool {
		open, err := transactions(s, "TRUE")
		return err == nil && open == 0
	})
}

// Whatever happens to a unit's connection, and whenever: its rows are exactly
// what it said.
func TestEffectsAreWhatWasReported(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			s := servertest.Run(t, kind, "--innodb-lock-wait-timeout=1")
			if err := s.Exec("CREATE TABLE test.ledger (id INT AUTO_INCREMENT PRIMARY KEY, unit INT NOT NULL, KEY (unit))"); err != nil {
				t.Fatal(err)
			}
			via := proxyTo(t, s)
			p := open(t, s.DSNVia(via.Addr()), "pool_stall_after=300ms&pool_ping_timeout=300ms")
			if err := p.CreateCommitTable(t.Context()); err != nil {
				t.Fatal(err)
			}
			var table strings.Builder
			w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
			fmt.Fprint(w, "moment\tdeed")
			for _, way := range modes {
				fmt.Fprintf(w, "\t%s", way.name)
			}
			fmt.Fprintln(w)
			defer func() {
				w.Flush()
				fmt.Fprintf(os.Stdout, "%s: what a unit said, and its rows\n%s\n", s.Version(), table.String())
			}()
			unit := 0
			for _, at := range steps {
				for _, d := range faults {
					fmt.Fprintf(w, "%s\t%s", at.name, d.name)
					for i := range modes {
						unit++
						m := &matrix{t: t, s: s, via: via, pool: p, mode: &modes[i]}
						err := m.run(d, at, unit)
						rows := m.rows(unit)
						fmt.Fprintf(w, "\t%s", m.check(err, rows, at, d))
					}
					fmt.Fprintln(w)
				}
			}
		})
	}
}

// check holds what the unit said against its rows.
func (m *matrix) check(err error, rows int, at step, d fault) string {
	said, want := "error", []int{0}
	switch {
	case err == nil:
		said, want = "nil", []int{1}
	case errors.Is(err, livepool.ErrCommitUnknown):
		said, want = "unknown", []int{0, 1}
	}
	if m.mode.readOnly {
		want = []int{0}
	}
	fail := func(why string) {
		m.t.Errorf("%s, %s, %s: %s: %d rows, said %v", at.name, d.name, m.mode.name, why, rows, err)
	}
	if !slices.Contains(want, rows) {
		fail("the rows are not what was said")
	}
	if said == "unknown" && (at.command != "commit" || m.mode.resolves) {
		fail("unknown, though it could be known")
	}
	if said != "nil" && m.mode.retries && (at.command != "commit" || m.mode.resolves) {
		fail("it did not succeed by itself")
	}
	return fmt.Sprintf("%s %d", said, rows)
}
