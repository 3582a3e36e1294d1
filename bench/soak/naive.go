// naive.go is what many a program does instead: plain database/sql, and another
// try after any error. It does the same units under the same faults, to show
// that they are not harmless and that the checks find what they do.

package soak

import (
	"context"
	"database/sql"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/clock"
)

const (
	naiveWorkers  = 6
	naiveAttempts = 8
	naivePatience = 1500 * time.Millisecond // with one attempt
)

type naive struct {
	roster
	run     *run
	db      *sql.DB
	lane    *lane
	done    sync.WaitGroup
	applied atomic.Int64
	failed  atomic.Int64
}

// newNaive opens the pool as the driver's documentation advises, with timeouts.
func newNaive(r *run, l *lane) (*naive, error) {
	cfg := l.mysql()
	cfg.Timeout, cfg.ReadTimeout, cfg.WriteTimeout = time.Second, 2*time.Second, 2*time.Second
	cfg.Logger = driverLog{r.ground.log}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(10)
	db.SetMaxIdleConns(10)
	db.SetConnMaxLifetime(3 * time.Minute)
	return &naive{roster: newRoster(r), run: r, db: db, lane: l}, nil
}

func (n *naive) begin(ctx context.Context) {
	for range naiveWorkers {
		n.done.Go(func() {
			for ctx.Err() == nil {
				d := n.take(n.run.now(), true, false)
				d.of, d.plainSQL = 1, true
				err := n.deliver(d)
				d.end(n.run.now(), err)
				if err == nil {
					n.applied.Add(1)
				} else {
					n.failed.Add(1)
				}
				clock.Wait(ctx, nil, d.think)
			}
		})
	}
}

// deliver tries until it succeeds, whatever the error was.
func (n *naive) deliver(d *delivery) (err error) {
	for number := 1; number <= naiveAttempts; number++ {
		d.beginAttempt(number, n.run.now())
		err = n.attempt(d, number)
		d.endAttempt(n.run.now(), err == nil)
		if err == nil {
			return nil
		}
		time.Sleep(time.Duration(number) * 10 * time.Millisecond)
	}
	return err
}

func (n *naive) attempt(d *delivery, number int) error {
	ctx, cancel := context.WithTimeout(context.Background(), naivePatience)
	defer cancel()
	tx, err := n.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: d.mode == readOnly})
	if err != nil {
		return err
	}
	defer tx.Rollback()
	b := body{d: d, db: tx, t: n.lane.tables, attempt: number}
	for i, s := range d.steps {
		if s == stepInner || s == stepUndone {
			continue // which plain database/sql does not have
		}
		if err := b.do(ctx, i, s); err != nil {
			d.met(s, err)
			return err
		}
	}
	return tx.Commit()
}

func (n *naive) finish(patience time.Duration) []violation {
	return within(patience, "every naive unit ends", func() error { n.done.Wait(); return nil })
}
