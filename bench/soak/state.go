// state.go is borrowers who leave something on their connection, and others who
// look whether they find it.

package soak

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/lab/server"
)

const (
	ruleState    = "what one borrower leaves on a connection reaches no other"
	ruleOwnState = "what the holder of a connection has set there stays as long as it is held"
	ruleSchema   = "nothing is written into another schema than one's own"

	otherSchema = "soak_other"
	stateLock   = "soak-state"
)

// leftState is a kind of state, and what leaves it.
type leftState struct {
	name      string
	statement func(t tables, tag string) string
	// ends: a transaction of the caller's own would be over, or another one.
	ends bool
}

func always(statement string) func(tables, string) string {
	return func(tables, string) string { return statement }
}

var leftStates = []leftState{
	{"a variable", func(_ tables, tag string) string { return "SET @soak_state = '" + tag + "'" }, false},
	{"sql_mode", always("SET SESSION sql_mode = 'ANSI_QUOTES'"), false},
	{"another schema", always("USE " + otherSchema), false},
	{"a lock", always("DO GET_LOCK('" + stateLock + "', 0)"), false},
	{"a temporary table", func(t tables, tag string) string {
		return "CREATE TEMPORARY TABLE " + t.state + " AS SELECT '" + tag + "' AS v"
	}, false},
	{"an open transaction", always("BEGIN"), true},
	{"no autocommit", always("SET autocommit = 0"), true},
}

// executor is a pool, a connection or a transaction.
type executor interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

const statePatience = 2 * time.Second

// leaveState borrows a connection, leaves something on it and returns it.
func leaveState(ctx context.Context, n *nemesis, f fault) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, statePatience)
	defer cancel()
	s, pool := leftStates[f.of(0, len(leftStates))], n.run.pool
	how := f.of(1, 3)
	if how == 2 && s.ends {
		how = 1
	}
	by := []string{"db.Exec", "a sql.Conn", "a sql.Tx"}[how]
	tag := fmt.Sprintf("%d, by %s", f.number, by)
	leave := func(to executor) error {
		_, err := to.ExecContext(ctx, s.statement(n.run.work.lane.tables, tag))
		return err
	}
	var err error
	switch how {
	case 0:
		err = leave(pool.DB)
	case 2:
		var tx *sql.Tx
		if tx, err = pool.BeginTx(ctx, nil); err == nil {
			err = errors.Join(leave(tx), tx.Commit())
		}
	default:
		var c *sql.Conn
		if c, err = pool.Conn(ctx); err != nil {
			return "", err
		}
		defer c.Close()
		if err = leave(c); err == nil {
			n.run.stillSees(ctx, c, s, tag)
		}
	}
	if err != nil {
		return "", err
	}
	return "state left: " + s.name + ", by " + by, nil
}

// stillSees has the holder of a connection look for what it has just left there.
func (r *run) stillSees(ctx context.Context, c *sql.Conn, s leftState, tag string) {
	seen, err := look(ctx, c, r.work.lane.tables)
	if err != nil {
		return // which the connection may have been lost for
	}
	if text := seen.ownLacks(s.name, tag); text != "" {
		r.violated(violation{Rule: ruleOwnState, Text: text})
	}
}

// sight is what one finds on a connection.
type sight struct {
	variable sql.NullString
	schema   sql.NullString
	auto     int
	mode     bool // the server's own
	lock     bool
	table    string
}

func look(ctx context.Context, on executor, t tables) (s sight, err error) {
	err = on.QueryRowContext(ctx, "SELECT @soak_state, DATABASE(), @@SESSION.autocommit, @@SESSION.sql_mode = @@GLOBAL.sql_mode, "+
		"IFNULL(IS_USED_LOCK('"+stateLock+"') = CONNECTION_ID(), 0), (SELECT MAX(v) FROM "+t.state+")").
		Scan(&s.variable, &s.schema, &s.auto, &s.mode, &s.lock, &s.table)
	return s, err
}

// clean is what it should be.
var clean = sight{schema: sql.NullString{String: server.Database, Valid: true}, auto: 1, mode: true, table: "of all"}

// differs says in what a connection is not as a new one, "" if in nothing.
func (s sight) differs() string {
	if s == clean {
		return ""
	}
	return fmt.Sprintf("found %+v where a new connection has %+v", s, clean)
}

// ownLacks says whether what was left by oneself is not there.
func (s sight) ownLacks(name, tag string) string {
	there := map[string]bool{
		"a variable": s.variable.String == tag, "sql_mode": !s.mode, "another schema": s.schema.String == otherSchema,
		"a temporary table": s.table == tag, "no autocommit": s.auto == 0,
		"a lock": true, "an open transaction": true, // another may have the one, the other is not seen
	}[name]
	if there {
		return ""
	}
	return fmt.Sprintf("%s of %s, just set, is gone: %+v", name, tag, s)
}

const stateWatchers = 2

// stateWatch borrows connections, in each way that there is, to see what is on them.
type stateWatch struct {
	run   *run
	looks atomic.Int64
	done  sync.WaitGroup
}

func (w *stateWatch) begin(ctx context.Context) {
	for n := range stateWatchers {
		w.done.Go(func() {
			rng := rand.New(rand.NewPCG(w.run.set.seed^0x57a7e, uint64(n)))
			for ctx.Err() == nil {
				w.run.work.rest(ctx)
				w.look(rng.IntN(4))
				clock.Wait(ctx, nil, time.Duration(rng.IntN(40))*time.Millisecond)
			}
		})
	}
}

func (w *stateWatch) finish(patience time.Duration) []violation {
	return within(patience, "every look at a connection ends", func() error { w.done.Wait(); return nil })
}

// look is one of them. What fails is no look.
func (w *stateWatch) look(how int) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	pool, t := w.run.pool, w.run.work.lane.tables
	var by string
	var s sight
	var err error
	switch how {
	case 0:
		by = "db.QueryRow"
		s, err = look(ctx, pool.DB, t)
	case 1:
		by = "a sql.Conn"
		var c *sql.Conn
		if c, err = pool.Conn(ctx); err == nil {
			defer c.Close()
			s, err = look(ctx, c, t)
		}
	case 2:
		by = "a sql.Tx"
		var tx *sql.Tx
		if tx, err = pool.BeginTx(ctx, nil); err == nil {
			defer tx.Rollback()
			s, err = look(ctx, tx, t)
		}
	default:
		by = "a unit"
		err = pool.WithSession(ctx, func(ctx context.Context, session *livepool.Session) (err error) {
			s, err = look(ctx, session, t)
			s.auto = clean.auto // it is off where a unit's first statement begins it
			return err
		}, livepool.Name("state watch"))
	}
	if err != nil {
		return
	}
	w.looks.Add(1)
	if text := s.differs(); text != "" {
		w.run.violated(violation{Rule: ruleState, Text: fmt.Sprintf("at %s, by %s: %s", at(w.run.now()), by, text)})
	}
}
