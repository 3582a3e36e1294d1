// client.go is the faults of the client itself: one that thinks for longer than
// the server keeps its connection, that is stopped, that sends what is too large.

package soak

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool"
)

const (
	largestPacket = 1 << 20 // the server's max_allowed_packet
	idleLimit     = 2       // seconds that the server keeps a connection of thinkers
)

// tooLarge sends a statement that the server refuses by ending the connection.
func tooLarge(ctx context.Context, n *nemesis, f fault) (string, error) {
	w := n.run.plain
	query := fmt.Sprintf("INSERT INTO %s (id, note) VALUES (?, '%s')", w.t.plain, strings.Repeat("x", largestPacket+largestPacket/8))
	by := []string{"db.Exec", "a sql.Tx", "a unit"}[f.of(0, 3)]
	e := w.entry("a statement above max_allowed_packet, by "+by, 1)
	e.tooLarge, e.tx = true, f.of(0, 3) > 0
	query = spelled(query, []int{int(e.ids[0])})
	ctx, cancel := context.WithTimeout(ctx, 2*statePatience)
	defer cancel()
	var err error
	switch f.of(0, 3) {
	case 0:
		_, err = w.pool.ExecContext(ctx, query)
	case 1:
		var tx *sql.Tx
		if tx, err = w.pool.BeginTx(ctx, nil); err != nil {
			return "", err
		}
		defer tx.Rollback()
		if _, err = tx.ExecContext(ctx, query); err == nil {
			err = tx.Commit()
		}
	default:
		err = w.pool.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			if _, err := s.ExecContext(ctx, "DO 1"); err != nil { // it begins the transaction, and may be lost by another fault
				return err
			}
			e.runs++
			_, err := s.ExecContext(ctx, query)
			return err
		}, livepool.Name("too large"))
	}
	if ctx.Err() != nil || unreached(err) {
		return "", nil
	}
	w.end(e, err)
	return "statement above max_allowed_packet, by " + by, nil
}

// stopClient stops this process, as a virtual machine is, or a container whose
// time is used up. It cannot do so by itself and go on.
func stopClient(ctx context.Context, _ *nemesis, f fault) (string, error) {
	script := fmt.Sprintf("kill -STOP %d; sleep %.3f; kill -CONT %[1]d", os.Getpid(), f.hold.Seconds())
	if err := exec.Command("sh", "-c", script).Run(); err != nil {
		return "", err
	}
	return "client stopped and continued", nil
}

// think has a unit, a transaction and a held connection be idle between two
// statements, for longer than the server keeps idle connections. Nothing else
// strikes meanwhile: each must come to its end, in one run.
func think(ctx context.Context, n *nemesis, f fault) (string, error) {
	r := n.run
	cfg := r.config(r.work.lane)
	cfg.MySQL.Params = map[string]string{"wait_timeout": fmt.Sprint(idleLimit)}
	cfg.PoolSize = 3
	pool, err := livepool.OpenConfig(cfg)
	if err != nil {
		return "", err
	}
	defer pool.Close()
	began := r.plain.begunThoughts(pool, f.hold)
	if began == 0 {
		return "", nil
	}
	return "thought for longer than wait_timeout", nil
}

// begunThoughts has the three think, and returns how many did.
func (w *plainWork) begunThoughts(pool *livepool.Pool, long time.Duration) int {
	var began atomic.Int32
	late := lateness()
	var wg sync.WaitGroup
	all := make(chan *entry, 3)
	for _, do := range []func(e *entry, between func()) error{
		func(e *entry, between func()) error { return w.thinkInUnit(pool, e, between) },
		func(e *entry, between func()) error { return w.thinkInTx(pool, e, between) },
		func(e *entry, between func()) error { return w.thinkOnConn(pool, e, between) },
	} {
		wg.Go(func() {
			e := w.entry("", 2)
			e.err = do(e, func() {
				e.calm = true
				began.Add(1)
				time.Sleep(long)
			})
			e.ended = w.run.now()
			all <- e
		})
	}
	wg.Wait()
	close(all)
	stoodStill := late() > idleLimit*time.Second/4
	for e := range all {
		e.calm = e.calm && !stoodStill
		w.end(e, e.err)
	}
	return int(began.Load())
}

func (w *plainWork) thinkInUnit(pool *livepool.Pool, e *entry, between func()) error {
	e.how, e.tx, e.atCommit = "a unit that thinks", true, true
	return pool.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		e.runs++
		return w.twoRows(ctx, s, e, between)
	}, livepool.Name(e.how), livepool.MaxAttempts(2))
}

func (w *plainWork) thinkInTx(pool *livepool.Pool, e *entry, between func()) error {
	e.how, e.tx = "a sql.Tx that thinks", true
	tx, err := pool.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := w.twoRows(context.Background(), tx, e, between); err != nil {
		return err
	}
	e.atCommit = true
	return tx.Commit()
}

// thinkOnConn is as the others, in a transaction that only the server knows of, so
// that either both rows are there or none.
func (w *plainWork) thinkOnConn(pool *livepool.Pool, e *entry, between func()) error {
	e.how, e.tx, e.spelled = "a sql.Conn that thinks", true, true
	ctx := context.Background()
	c, err := pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.ExecContext(ctx, "BEGIN"); err != nil {
		return err
	}
	if err := w.twoRows(ctx, c, e, between); err != nil {
		return err
	}
	e.atCommit = true
	_, err = c.ExecContext(ctx, "COMMIT")
	return err
}

func (w *plainWork) twoRows(ctx context.Context, on executor, e *entry, between func()) error {
	for i, id := range e.ids {
		if i > 0 {
			between()
		}
		if _, err := on.ExecContext(ctx, spelled(w.insert(), []int{int(id)})); err != nil {
			return err
		}
	}
	return nil
}

// lateness measures by how much the machine is late at the worst, until the
// function that it returns is called.
func lateness() (stop func() time.Duration) {
	const beat = 20 * time.Millisecond
	var worst time.Duration
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for last := time.Now(); ; {
			select {
			case <-end:
				return
			case <-time.After(beat):
			}
			now := time.Now()
			worst, last = max(worst, now.Sub(last)-beat), now
		}
	}()
	return func() time.Duration {
		close(end)
		<-ended
		return worst
	}
}
