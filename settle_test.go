package livepool_test

// A COMMIT whose answer was lost, of a unit with a key, is looked up.

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
)

// A unit that took longer than MaxElapsed may still ask.
func TestLostCommitOfALongUnitIsLookedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnCommit: func(c *fakedb.Conn) error { c.Valid.Store(false); return mysql.ErrInvalidConn }}
		p := openFake(t, f, func(c *livepool.Config) { c.MaxElapsed = time.Second })
		inserts := 0
		f.OnExec = func(_ context.Context, _ *fakedb.Conn, query string) error {
			if strings.HasPrefix(query, "INSERT INTO ") && strings.Contains(query, "livepool_commits") {
				if inserts++; inserts > 1 {
					return fakedb.ServerError(1062, "Duplicate entry")
				}
			}
			return nil
		}
		ran := 0
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			ran++
			time.Sleep(time.Minute)
			return nil
		}, livepool.Once("k"))
		if err != nil || ran != 1 || inserts != 2 || p.Stats().CommitsResolved != 1 {
			t.Errorf("ran %d times, %d looks: %v", ran, inserts-1, err)
		}
	})
}

// Whatever a look meets, another one is made; only the context and the time for it
// end them.
func TestALookThatFailsIsRepeated(t *testing.T) {
	for name, meets := range map[string]error{
		"1317": fakedb.ServerError(1317, "Query execution was interrupted"),
		"1969": fakedb.ServerError(1969, "Query execution was interrupted (max_statement_time exceeded)"),
		"3024": fakedb.ServerError(3024, "Query execution was interrupted, maximum statement execution time exceeded"),
		"1041": fakedb.ServerError(1041, "Out of memory"),
		"1105": fakedb.ServerError(1105, "unknown"),
		"lost": fakedb.ErrGone,
		"lock": fakedb.ServerError(1205, "Lock wait timeout exceeded"),
	} {
		for _, lasts := range []time.Duration{5 * time.Second, time.Hour} {
			synctest.Test(t, func(t *testing.T) {
				commits := 0
				f := &fakedb.DB{OnCommit: func(c *fakedb.Conn) error {
					if commits++; commits > 1 {
						return nil
					}
					c.Valid.Store(false)
					return mysql.ErrInvalidConn
				}}
				p := openFake(t, f, func(c *livepool.Config) { c.PoolTimeout = 0; c.PoolSize, c.MaxOverflow = 1, 0 })
				var lost time.Time
				ran, looks := 0, 0
				f.OnExec = func(_ context.Context, c *fakedb.Conn, query string) error {
					if !strings.HasPrefix(query, "INSERT INTO ") || lost.IsZero() {
						return nil
					}
					looks++
					if time.Since(lost) < lasts {
						c.Valid.Store(meets != fakedb.ErrGone)
						return meets
					}
					return fakedb.ServerError(1062, "Duplicate entry")
				}
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					ran++
					lost = time.Now()
					return nil
				}, livepool.Once("k"))
				took := time.Since(lost)
				unknown := errors.Is(err, livepool.ErrCommitUnknown)
				if ran != 1 || lasts < time.Minute && (err != nil || took > 8*time.Second) {
					t.Errorf("%s for %s: ran %d times, %d looks in %s: %v", name, lasts, ran, looks, took, err)
				}
				if lasts > time.Minute && (!unknown || errors.Is(err, livepool.ErrSessionDone) || !errors.Is(err, meets) && meets != fakedb.ErrGone || took < 40*time.Second || took > 41*time.Second || !strings.Contains(err.Error(), "40s")) {
					t.Errorf("%s: after %s and %d looks: %v", name, took, looks, err)
				}
			})
		}
	}
}

// Close ends the looks: there is nothing more to look with.
func TestCloseEndsTheLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnCommit: func(c *fakedb.Conn) error { c.Valid.Store(false); return mysql.ErrInvalidConn }}
		p := openFake(t, f, nil)
		var lost time.Time
		f.OnExec = func(_ context.Context, _ *fakedb.Conn, query string) error {
			if !lost.IsZero() {
				return fakedb.ServerError(1205, "Lock wait timeout exceeded")
			}
			return nil
		}
		err := p.WithSession(t.Context(), func(context.Context, *livepool.Session) error {
			lost = time.Now()
			go func() { time.Sleep(5 * time.Second); p.Close() }()
			return nil
		}, livepool.Once("k"))
		if took := time.Since(lost); !errors.Is(err, livepool.ErrCommitUnknown) || took > 15*time.Second || !strings.Contains(err.Error(), "the pool was closed") {
			t.Errorf("after %s: %v", took, err)
		}
	})
}
