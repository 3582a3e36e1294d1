// plain.go is those who use the pool as a *sql.DB: statements, held connections
// and transactions outside units, each with a row by which it can be found.

package soak

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/clock"
)

const plainWorkers = 3

// entry is one statement outside units, or one transaction.
type entry struct {
	how string
	ids []int64 // its rows: all of them, or none
	tx  bool

	err      error
	fresh    bool // err is of the first request, for which the pool chose the connection
	atCommit bool // err is the answer to COMMIT
	spelled  bool // which was a statement like any other
	tooLarge bool // for the server, which must refuse it
	calm     bool // nothing struck meanwhile, and the first statement was answered
	runs     int  // of a unit's function

	started, ended time.Duration
}

// name is what its notes tell of it.
func (e *entry) String() string {
	return fmt.Sprintf("%s, rows %v, %s to %s", e.how, e.ids, at(e.started), at(e.ended))
}

// plainWork is those who do it.
type plainWork struct {
	run  *run
	pool *livepool.Pool
	t    tables
	next atomic.Int64
	done sync.WaitGroup

	mu  sync.Mutex // guards what follows
	all []*entry
}

func newPlainWork(r *run, l *lane) *plainWork {
	return &plainWork{run: r, pool: r.pool, t: l.tables}
}

// entry begins one with as many rows.
func (w *plainWork) entry(how string, rows int) *entry {
	e := &entry{how: how, started: w.run.now()}
	for range rows {
		e.ids = append(e.ids, w.next.Add(1))
	}
	return e
}

// end keeps it, and returns its error.
func (w *plainWork) end(e *entry, err error) error {
	e.err = err
	if e.ended == 0 {
		e.ended = w.run.now()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, e)
	return err
}

func (w *plainWork) entries() []*entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.all)
}

func (w *plainWork) insert() string { return "INSERT INTO " + w.t.plain + " (id) VALUES (?)" }

func (w *plainWork) begin(ctx context.Context) {
	for n := range plainWorkers {
		w.done.Go(func() {
			rng := rand.New(rand.NewPCG(w.run.set.seed^0x91a12, uint64(n)))
			held, err := w.pool.Prepare(w.insert()) // on some connection; again on each that has not got it
			if err != nil {
				held = nil
			} else {
				defer held.Close()
			}
			for ctx.Err() == nil {
				w.run.work.rest(ctx)
				w.one(rng, held)
				clock.Wait(ctx, nil, time.Duration(rng.IntN(25))*time.Millisecond)
			}
		})
	}
}

func (w *plainWork) finish(patience time.Duration) []violation {
	return within(patience, "every plain statement ends", func() error { w.done.Wait(); return nil })
}

// one does one of the things that a program does with a *sql.DB.
func (w *plainWork) one(rng *rand.Rand, held *sql.Stmt) {
	ctx := context.Background()
	if chance(rng, 0.08) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(5+rng.IntN(300))*time.Millisecond)
		defer cancel()
	}
	switch roll := rng.IntN(100); {
	case roll < 30:
		e := w.entry("statement", 1)
		e.fresh = true
		_, err := w.pool.ExecContext(ctx, spelled(w.insert(), []int{int(e.ids[0])}))
		w.end(e, err)
	case roll < 45:
		e := w.entry("statement with arguments", 1)
		e.fresh = true
		_, err := w.pool.ExecContext(ctx, w.insert(), e.ids[0])
		w.end(e, err)
	case roll < 60 && held != nil:
		e := w.entry("prepared statement", 1)
		e.fresh = true
		_, err := held.ExecContext(ctx, e.ids[0])
		w.end(e, err)
	case roll < 75:
		w.conn(ctx)
	default:
		w.tx(ctx, chance(rng, 0.4), rng.IntN(shards))
	}
}

// conn holds a connection for two statements.
func (w *plainWork) conn(ctx context.Context) {
	e := w.entry("first statement of a sql.Conn", 1)
	e.fresh = true
	c, err := w.pool.Conn(ctx)
	if err != nil {
		w.end(e, err)
		return
	}
	defer c.Close()
	e.fresh = false
	_, err = c.ExecContext(ctx, w.insert(), e.ids[0])
	if w.end(e, err) != nil {
		return
	}
	e = w.entry("second statement of a sql.Conn", 1)
	_, err = c.ExecContext(ctx, spelled(w.insert(), []int{int(e.ids[0])}))
	w.end(e, err)
}

// tx is a transaction of two rows. Every other one meanwhile wants a row that may
// be locked for longer than the server lets it wait, and does not mind: of which
// servers differ in what they undo.
func (w *plainWork) tx(ctx context.Context, wants bool, shard int) {
	e := w.entry("sql.Tx", 2)
	e.tx, e.fresh = true, true
	tx, err := w.pool.BeginTx(ctx, nil)
	if err != nil {
		w.end(e, err)
		return
	}
	e.fresh = false
	defer tx.Rollback()
	_, err = tx.ExecContext(ctx, w.insert(), e.ids[0])
	if err == nil && wants {
		e.how = "sql.Tx that swallows an error"
		_, _ = tx.ExecContext(ctx, spelled("UPDATE "+w.t.counter+" SET n = n WHERE id = ?", []int{shard}))
	}
	if err == nil {
		_, err = tx.ExecContext(ctx, spelled(w.insert(), []int{int(e.ids[1])}))
	}
	if err == nil {
		e.atCommit = true
		err = tx.Commit()
	}
	w.end(e, err)
}
