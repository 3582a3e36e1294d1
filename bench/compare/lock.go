package compare

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-sql-driver/mysql"
)

const (
	lockPause   = 500 * time.Millisecond
	lockTimeout = 2 * time.Second
)

// orphanedLock has a caller leave in the middle of a statement, with the lock of a row, and
// measures when somebody else gets the row.
func orphanedLock(ctx context.Context, s *stage) ([]table, error) {
	t := table{
		Title: "A lock whose holder has left",
		What: fmt.Sprintf("A caller holds the lock of a row, and its context (or, in other languages, the statement's timeout) ends in the middle of the next statement, after %s. "+
			"Counted from then until another caller gets the row.", lockTimeout),
		Columns: []column{wait("in a slow statement"), wait("its connection has vanished")},
		charts:  []int{0, 1},
	}
	for i, vanish := range []bool{false, true} {
		statement := fmt.Sprintf("SELECT SLEEP(%.0f)", (2 * s.scale.cap).Seconds())
		if vanish {
			statement = "DO 1"
		}
		lanes, err := s.open(ctx, true, workers)
		if err != nil {
			return nil, err
		}
		cells := make([]cell, len(lanes))
		where := map[*lane]int{}
		for j, l := range lanes {
			where[l] = j
		}
		each(lanes, func(l *lane) (err error) {
			cells[where[l]], err = s.orphan(ctx, l, statement, vanish)
			return err
		})
		closeLanes(lanes)
		for j, l := range lanes {
			if i == 0 {
				t.Rows = append(t.Rows, row{Contender: l.entry.name, lane: l.entry})
			}
			if t.Rows[j].Missing = l.missing; l.missing == "" {
				t.Rows[j].Cells = append(t.Rows[j].Cells, cells[j])
			}
		}
	}
	return []table{t}, ctx.Err()
}

// orphan is the story of one lock.
func (s *stage) orphan(ctx context.Context, l *lane, statement string, vanish bool) (cell, error) {
	held, failed := make(chan time.Time, 1), make(chan error, 1)
	patience := s.scale.cap + lockPause + lockTimeout
	go func() {
		o := order{Kind: kindLock, Seconds: patience.Seconds(), PauseMS: int(lockPause.Milliseconds()), Statement: statement, Timeout: lockTimeout.Seconds()}
		a, err := l.Do(ctx, o, func(a answer) {
			if a.Held {
				select {
				case held <- time.Now():
				default: // its unit is run again
				}
			}
		})
		switch {
		case err != nil:
			failed <- err
		case a.Unsupported:
			failed <- errNone
		}
	}()
	select {
	case err := <-failed:
		return cell{}, err
	case <-time.After(orderPatience):
		return cell{}, errors.New("it did not get the lock")
	case since := <-held:
		if vanish {
			l.proxy.Stall()
		}
		free, ever, err := s.awaitRow(ctx, l, patience)
		return waited(max(0, free.Sub(since.Add(lockPause+lockTimeout))), ever, s.scale.cap), err
	}
}

// awaitRow waits for the row as another caller does.
func (s *stage) awaitRow(ctx context.Context, l *lane, patience time.Duration) (free time.Time, ever bool, err error) {
	conn, err := s.admin.Conn(ctx)
	if err != nil {
		return free, false, err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, fmt.Sprintf("SET SESSION innodb_lock_wait_timeout = %.0f", patience.Seconds())); err != nil {
		return free, false, err
	}
	const lockWaitTimeout = 1205
	_, err = conn.ExecContext(ctx, "UPDATE "+l.database+".bench_lock SET v = v + 1 WHERE id = 1")
	var my *mysql.MySQLError
	if errors.As(err, &my) && my.Number == lockWaitTimeout {
		return free, false, nil
	}
	return time.Now(), err == nil, err
}
